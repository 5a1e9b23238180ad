# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Many categories and data sets at once: one model is trained on all of them, and tested on each."""

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from anomalib.data import AnomalibDataModule, AnomalibDataset
from anomalib.data.utils import TestSplitMode, ValSplitMode
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, WeightedRandomSampler
from torchvision.transforms.v2 import Transform

from anomalib_inp.data.few_shot import FewShotViews
from anomalib_inp.data.file_checks import DataError, is_repeatable
from anomalib_inp.data.joined import JoinedDataset
from anomalib_inp.data.modules import build_modules, chosen_modules, for_all, prepare, set_up
from anomalib_inp.data.source import Source, given_sources
from anomalib_inp.errors import end_with_messages
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
        end_with_messages()
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
                "shots makes the views of its images once, so random changes would be the same in every epoch. Leave "
                f"out train_augmentations, got {self.train_augmentations}."
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
        self.shots = shots
        self.sampling = sampling
        splits = {
            "test_split_mode": test_split_mode,
            "test_split_ratio": test_split_ratio,
            "val_split_mode": val_split_mode,
            "val_split_ratio": val_split_ratio,
        }
        given = given_sources(Source(source, root, categories, arguments or {}), sources)
        self.modules = build_modules(given, {**splits, "seed": seed, "num_workers": 0})
        self.trained, self.tested = chosen_modules({"train_on": train_on, "test_on": test_on}, self.modules)
        roots = [str(Path(module.root).absolute()) for module in self.modules.values()]
        self.root = Path(os.path.commonpath(roots))

    def without_validation(self) -> "MultiCategory":
        """Leave all images to training and test: none are kept back for validation; before they are set up."""
        for module in self.modules.values():
            if module.val_split_mode in {ValSplitMode.FROM_TEST, ValSplitMode.FROM_TRAIN, ValSplitMode.SYNTHETIC}:
                module.val_split_mode = ValSplitMode.NONE
        return self

    def prepare_data(self) -> None:
        """Download what is missing, and look at the folders.

        Raises:
            DataError: Categories whose data are unavailable or do not fit; all are named at once.
        """
        for_all(self.modules, prepare)

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
            if not isinstance(self.train_data, FewShotViews):
                self.train_data = FewShotViews(self.train_data, pre_processor)
            elif not self.train_data.fits(pre_processor):  # those of an earlier training, with a model of another frame
                self.train_data = FewShotViews(self.train_data.images, pre_processor)

    def _setup(self, _stage: str | None = None) -> None:
        def set_up_and_look(module: AnomalibDataModule) -> None:
            set_up(module)
            if module in self.trained.values() and not len(module.train_data):
                msg = f"there are no images to train on in {module.root}; name the categories to train on: train_on"
                raise DataError(msg)
            if module in self.tested.values() and not module.test_data.has_anomalous:
                msg = "there are no anomalous images to test on; name the categories to test on: test_on"
                raise DataError(msg)

        for_all({**self.trained, **self.tested}, set_up_and_look)
        train = {category: module.train_data for category, module in self.trained.items()}
        if self.shots is not None:
            train = self._drawn(train, self.shots)
        self.train_data = JoinedDataset(train)
        self.test_data = JoinedDataset({category: module.test_data for category, module in self.tested.items()})
        tested = self.test_data.samples
        if (again := tested[tested.image_path.duplicated(keep=False)]).size:
            msg = (
                f"The same images are tested in several categories ({', '.join(sorted(set(again.category)))}), but the "
                f"category of an image is known by its file: {first_few(sorted(set(again.image_path)))}."
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
        if few := [f"{category} has {len(images)}" for category, images in train.items() if len(images) < shots]:
            msg = f"shots={shots} normal images of each category, but {', '.join(few)}."
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
