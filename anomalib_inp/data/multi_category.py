# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Many categories and data sets at once: one model is trained on all of them, and tested on each."""

import importlib
import inspect
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.error import URLError

import anomalib.data
import numpy as np
import torch
from anomalib.data import AnomalibDataModule, AnomalibDataset, MVTecAD2
from anomalib.data.utils import TestSplitMode, ValSplitMode
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader, WeightedRandomSampler
from torchvision.transforms.v2 import Transform

from anomalib_inp.data.few_shot import FewShotViews
from anomalib_inp.data.file_checks import DataError, check_masks, is_repeatable
from anomalib_inp.data.joined import JoinedDataset
from anomalib_inp.data.source import Source
from anomalib_inp.data.subset import MEAN
from anomalib_inp.files import first_few
from anomalib_inp.preprocessing import InpPreProcessor


class MultiCategory(AnomalibDataModule):
    """One training set out of many categories, one test set per category.

    Splits are made in each category by itself. Tests report each category and the mean.

    Args:
        source: Image data module of anomalib that the categories are of; see :class:`Source`.
        root: Its folder.
        categories: Names of the categories, or ``all``.
        arguments: Further arguments of that data module.
        sources: Several data sets at once, instead of the four above (a ``root`` may stay that is one of theirs);
            categories are then called ``<source>/<category>``.
        train_on: Categories or sources to train on; by default all.
        test_on: Categories or sources to test and validate on; by default all.
        shots: Train on so many normal images per category, each as 22 views (few-shot); by default on all images.
        sampling: ``natural`` shows every image once an epoch, ``balanced`` draws from every category
            with equal chance.
        train_batch_size: Images in a batch of the training; an incomplete last one is dropped.
        eval_batch_size: Images in a batch of tests and validations.
        num_workers: Processes that read images.
        train_augmentations: Changes to training images; none that are random with ``shots``, whose views are made once.
        val_augmentations: Changes to validation images.
        test_augmentations: Changes to test images.
        augmentations: Changes to all images, where the former are not given.
        test_split_mode: Where test images come from; by default as the source's data module has it.
        test_split_ratio: Share of the images that become test images, where they are split off.
        val_split_mode: Where validation images come from; by default as the source's data module has it.
        val_split_ratio: Share of the images that become validation images.
        seed: Seed of the splits and of the draw of ``shots``.

    Raises:
        ValueError: An argument does not fit; all faults are named at once.

    Example:
        >>> from anomalib_inp.data import MultiCategory
        >>> data = MultiCategory("MVTecAD", "./datasets/MVTecAD")  # doctest: +SKIP
    """

    train_data: AnomalibDataset
    val_data: AnomalibDataset
    test_data: AnomalibDataset

    def __init__(
        self,
        source: str = "MVTecAD",
        root: str | None = None,
        categories: list[str] | str = "all",
        arguments: dict[str, Any] | None = None,
        # No list: jsonargparse would fill its entries up from those that stood in their places in an earlier file.
        sources: tuple[Source, ...] | None = None,
        train_on: list[str] | str | None = None,
        test_on: list[str] | str | None = None,
        shots: int | None = None,
        sampling: Literal["natural", "balanced"] = "natural",
        train_batch_size: int = 16,
        eval_batch_size: int = 16,
        num_workers: int = 8,
        train_augmentations: Transform | None = None,
        val_augmentations: Transform | None = None,
        test_augmentations: Transform | None = None,
        augmentations: Transform | None = None,
        test_split_mode: TestSplitMode | str | None = None,
        test_split_ratio: float | None = None,
        val_split_mode: ValSplitMode | str | None = None,
        val_split_ratio: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            train_batch_size=train_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            train_augmentations=train_augmentations,
            val_augmentations=val_augmentations,
            test_augmentations=test_augmentations,
            augmentations=augmentations,
            val_split_mode=val_split_mode,
            seed=seed,
        )
        if shots is not None and (type(shots) is not int or shots < 1):
            msg = f"shots must be a number of normal images per category, at least 1, got {shots}."
            raise ValueError(msg)
        if shots is not None and not is_repeatable(self.train_augmentations):
            msg = (
                "shots makes the views of its images once, so that changes which should be drawn anew in every epoch "
                f"would be drawn once and kept. Leave out train_augmentations, got {self.train_augmentations}."
            )
            raise ValueError(msg)
        if type(seed) is not int or seed < 0:
            msg = f"seed must be a whole number that is not negative, got {seed}."
            raise ValueError(msg)
        for name, ratio in (("test_split_ratio", test_split_ratio), ("val_split_ratio", val_split_ratio)):
            if ratio is not None and not 0 < ratio < 1:
                msg = f"{name} must be a share of the images, between 0 and 1, got {ratio}."
                raise ValueError(msg)
        if sampling not in {"natural", "balanced"}:
            msg = f"sampling must be natural or balanced, got {sampling!r}."
            raise ValueError(msg)
        if sources is not None and not (sources and all(isinstance(one, Source) for one in sources)):
            msg = f"sources must be one anomalib_inp.data.Source at least, and nothing else, got {sources}."
            raise ValueError(msg)
        self.shots = shots
        self.sampling = sampling
        splits = {
            "test_split_mode": test_split_mode,
            "test_split_ratio": test_split_ratio,
            "val_split_mode": val_split_mode,
            "val_split_ratio": val_split_ratio,
        }
        if sources and categories != "all":
            msg = f"categories={categories} belong to one source: name them in each of sources."
            raise ValueError(msg)
        among = any(one.source == source and root in {None, one.root} for one in sources or ())
        if sources and not among and (root or arguments or source != Source.source):
            there = ", ".join(f"{one.source} in {one.root}" for one in sources)
            msg = (
                f"source={source} in root={root} is none of the sources, {there}: give sources alone, each with its "
                "root and arguments, or no sources."
            )
            raise ValueError(msg)
        given = sources or [Source(source, root, categories, arguments or {})]
        self.modules = _modules(given, {**splits, "seed": seed, "num_workers": 0})
        self.trained, self.tested = _chosen({"train_on": train_on, "test_on": test_on}, self.modules)
        roots = [str(Path(module.root).absolute()) for module in self.modules.values()]
        self.root = Path(os.path.commonpath(roots))

    def prepare_data(self) -> None:
        """Download what is missing, and look at the folders.

        Raises:
            DataError: Categories whose data cannot be had or do not fit; all are named at once.
        """

        def prepare(module: AnomalibDataModule) -> None:
            try:
                module.prepare_data()
            except URLError as fault:
                msg = f"it is not in {module.root}, and cannot be downloaded: {fault.reason}"
                raise DataError(msg) from fault

        _for_all(self.modules, prepare)

    def setup(self, stage: str | None = None) -> None:
        """Set the data sets up; a training with ``shots`` is given views of the few images.

        Raises:
            DataError: A category has no images to train or test on, or masks that do not fit; all are named at once.
        """
        super().setup(stage)
        if stage == "fit" and self.shots is not None:
            pre_processor = getattr(getattr(self.trainer, "lightning_module", None), "pre_processor", None)
            if not isinstance(pre_processor, InpPreProcessor):
                msg = (
                    "shots makes views of normalised crops, so it needs a model with InpPreProcessor (InpFormer, "
                    f"InpFormerPlusPlus), got {type(pre_processor).__name__}."
                )
                raise DataError(msg)
            known = self.train_data  # of an earlier training, perhaps with a model of another frame
            if not isinstance(known, FewShotViews):
                self.train_data = FewShotViews(known, pre_processor)
            elif not known.fits(pre_processor):
                self.train_data = FewShotViews(known.images, pre_processor)

    def _setup(self, _stage: str | None = None) -> None:
        def set_up(module: AnomalibDataModule) -> None:
            check_masks(module)
            try:
                module.setup()
            except ValueError as fault:
                if len(getattr(module, "train_data", [None])):
                    raise
                # anomalib splits validation images off nothing
                mode = module.val_split_mode.value
                msg = (
                    f"there are no normal training images, of which val_split_mode={mode} takes some; same_as_test and "
                    "from_test need none"
                )
                raise DataError(msg) from fault
            if isinstance(module, MVTecAD2):
                module.test_data = module.test_public_data  # setup() takes the normal images out of the former
            if module in self.trained.values() and not len(module.train_data):
                msg = f"there are no images to train on in {module.root}; name the categories to train on: train_on"
                raise DataError(msg)
            if module in self.tested.values() and not module.test_data.has_anomalous:
                msg = "there are no anomalous images to test on; name the categories to test on: test_on"
                raise DataError(msg)

        _for_all({**self.trained, **self.tested}, set_up)
        train = {category: module.train_data for category, module in self.trained.items()}
        if self.shots is not None:
            train = self._drawn(train, self.shots)
        self.train_data = JoinedDataset(train)
        self.test_data = JoinedDataset({category: module.test_data for category, module in self.tested.items()})
        tested = self.test_data.samples
        if (again := tested[tested.image_path.duplicated(keep=False)]).size:
            msg = (
                f"The same images are tested in several categories ({', '.join(sorted(set(again.category)))}), which "
                f"an image tells by its file: {first_few(sorted(set(again.image_path)))}."
            )
            raise DataError(msg)
        validated = {name: module.val_data for name, module in self.tested.items() if hasattr(module, "val_data")}
        if validated:
            self.val_data = JoinedDataset(validated)
        rank_zero_info(
            f"Training on {len(self.train_data)} images of {len(self.trained)} categories "
            f"({', '.join(self.trained)}), testing on {len(self.test_data)} of {len(self.tested)} "
            f"({', '.join(self.tested)})."
        )

    def _create_test_split(self) -> None:
        """Leave the test images as the data modules of the categories have split them."""

    def _create_val_split(self) -> None:
        """Leave the validation images as the data modules of the categories have split them."""

    def _drawn(self, train: dict[str, AnomalibDataset], shots: int) -> dict[str, AnomalibDataset]:
        """Draw the few images of each category; fewer shots are among more, so that their numbers compare."""
        if few := [f"{len(images)} of {category}" for category, images in train.items() if len(images) < shots]:
            msg = f"shots={shots} are more normal images than there are: {', '.join(few)}."
            raise DataError(msg)
        drawn = {}
        for category, images in train.items():
            rows = np.random.default_rng(self.seed).permutation(len(images))[:shots]
            drawn[category] = images.subsample(sorted(rows.tolist()))
            rank_zero_info(f"{shots} of {category}: {', '.join(drawn[category].samples.image_path)}")
        return drawn

    def train_dataloader(self) -> DataLoader:
        """Draw batches of all categories; an incomplete last one is dropped."""
        sampler = None
        if self.sampling == "balanced":
            category = self.train_data.samples.category
            weights = 1 / category.map(category.value_counts())
            sampler = WeightedRandomSampler(torch.tensor(weights.to_numpy()), len(weights))
        processes = 1 if self.trainer is None else self.trainer.world_size  # each has its share of the images
        return DataLoader(
            self.train_data,
            batch_size=self.train_batch_size,
            shuffle=None if sampler else True,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=self.external_collate_fn or self.train_data.collate_fn,
            drop_last=len(self.train_data) >= self.train_batch_size * processes,
        )


def _modules(sources: Iterable[Source], common: dict[str, Any]) -> dict[str, AnomalibDataModule]:
    """Build a data module for each category.

    Raises:
        ValueError: Unknown data modules or categories, or arguments that do not fit; all are named at once.
    """
    sources = list(sources)
    modules: dict[str, AnomalibDataModule] = {}
    faults = []
    names = Counter(source.name or source.source for source in sources)
    faults += [f"several sources are called {name}: give each a name" for name, count in names.items() if count > 1]
    faults += [
        f"a source cannot be called {name}: / stands between source and category" for name in names if "/" in name
    ]
    for source in sources:
        try:
            kind = _kind_of(source.source)
            wanted, wrong = _categories_of(source, kind)
        except ValueError as fault:
            faults.append(str(fault))
            continue
        faults += wrong
        for category in wanted:
            label = f"{source.name or source.source}/{category}" if len(sources) > 1 else category
            try:
                modules[label] = _build(kind, source, category, common)
            except (TypeError, ValueError) as fault:
                faults.append(f"{label}: {fault}")
    if MEAN in modules and len(modules) > 1:
        faults.append(f"a category cannot be called {MEAN}, as the mean over the categories is")
    if faults:
        raise ValueError(_listed(faults))
    return modules


def _kind_of(name: str) -> type[AnomalibDataModule]:
    """Find a data module by its name in anomalib, or by its full path."""
    module, _, short = name.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module) if module else anomalib.data, short, None)
    except ImportError:
        kind = None
    place = "anomalib.data.datamodules.image"
    if inspect.isclass(kind) and issubclass(kind, AnomalibDataModule) and kind is not MultiCategory:
        home = kind.__module__
        if home.startswith(place) or not home.startswith("anomalib."):
            return kind
    known = [kind.__name__ for kind in AnomalibDataModule.__subclasses__() if kind.__module__.startswith(place)]
    msg = f"there is no image data module {name}; anomalib has {', '.join(sorted(set(known)))}"
    raise ValueError(msg)


def categories_of(kind: type[AnomalibDataModule]) -> list[str]:
    """List the categories of a published data set; none where a data module takes any folder."""
    home = importlib.import_module(kind.__module__.replace(".datamodules.", ".datasets."))
    return list(getattr(home, "CATEGORIES", ()))


def _categories_of(source: Source, kind: type[AnomalibDataModule]) -> tuple[list[str], list[str]]:
    """Find the categories of a source, and what is wrong with them."""
    arguments = inspect.signature(kind).parameters
    if "category" not in arguments and "name" not in arguments:
        return [source.source.rpartition(".")[2]], []  # the data set is one category
    root = Path(source.root or arguments["root"].default or ".")
    there = [path for path in root.iterdir() if _is_folder(path)] if root.is_dir() else []
    known = categories_of(kind)
    if known:
        # Some data sets have their categories one folder further down: Visa in visa_pytorch, RealIAD in realiad_256.
        below = [path for folder in there for path in (folder / name for name in known) if _is_folder(path)]
        split = [path for path in there if any(_is_folder(path / part) for part in ("train", "test"))]
        there = [path for path in there if path.name in known] + below + split
    folders = sorted({path.name for path in there})
    if source.categories == "all":
        missing = [name for name in known if name not in folders]
        if missing and set(folders) & set(known):
            rank_zero_warn(f"all: the categories {', '.join(missing)} of {source.source} are not in {root}.")
        found = folders or known
        return found, [] if found else [f"there are no folders of categories in {root}"]
    wanted = [source.categories] if isinstance(source.categories, str) else list(source.categories)
    wrong = [name for name in wanted if name not in known and name not in folders]
    if not wanted:
        return [], [f"no categories of {source.source} are asked for"]
    if wrong:
        names = ", ".join(folders or sorted(known)) or "nothing"
        hint = "; several are given as a list, '[one, other]'" if any("," in name for name in wrong) else ""
        return [], [f"{source.source} in {root} has no category {', '.join(wrong)}; there is {names}{hint}"]
    return wanted, []


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _build(kind: type[AnomalibDataModule], source: Source, category: str, common: dict[str, Any]) -> AnomalibDataModule:
    """Build the data module of one category."""
    known = inspect.signature(kind).parameters
    given = {name: value for name, value in common.items() if value is not None and name in known}
    ignored = [name for name, value in common.items() if value is not None and name not in known]
    if splits := [name for name in ignored if name.endswith(("mode", "ratio"))]:
        msg = f"{kind.__name__} has no {', '.join(splits)}"
        raise ValueError(msg)
    if source.root is not None:
        given["root"] = source.root
    if "category" in known:
        given["category"] = category
    elif "name" in known:
        given |= {"name": category, "root": Path(source.root or ".", category)}
    if taken := sorted(source.arguments.keys() & given.keys() & {"category", "name", "root"}):
        msg = f"{', '.join(taken)} cannot be among the arguments: give root and categories of the source"
        raise ValueError(msg)
    return kind(**{**given, **source.arguments})


def _chosen(
    wanted: dict[str, list[str] | str | None], modules: dict[str, AnomalibDataModule]
) -> Iterator[dict[str, AnomalibDataModule]]:
    """Choose categories for each argument, by their names or those of their sources; ``None`` chooses all.

    Raises:
        ValueError: A name is unknown; all are named at once.
    """
    sources = {label: label.partition("/")[0] for label in modules if "/" in label}
    there = [*modules, *sorted(set(sources.values()))]
    faults = []
    chosen = {argument: [names] if isinstance(names, str) else names for argument, names in wanted.items()}
    for argument, names in chosen.items():
        unknown = [name for name in names or () if name not in there]
        if unknown or names == []:
            faults.append(f"{argument} must name categories or sources, got {', '.join(unknown) or 'none'}")
    if faults:
        raise ValueError(_listed([*faults, f"there are {', '.join(there)}"]))
    for names in chosen.values():
        own = set(modules if names is None else names)
        yield {label: module for label, module in modules.items() if {label, sources.get(label)} & own}


def _for_all(modules: dict[str, AnomalibDataModule], action: Callable[[AnomalibDataModule], None]) -> None:
    """Do something to all data modules, and name all that it fails for.

    Raises:
        DataError: It failed.
    """
    faults = []
    for category, module in modules.items():
        try:
            action(module)
        except Exception as fault:
            faults.append(f"{category}: {str(fault) or type(fault).__name__}")
    if faults:
        raise DataError(_listed(faults))


def _listed(faults: list[str]) -> str:
    return "The data do not fit:\n" + "\n".join(f"- {fault}" for fault in faults)
