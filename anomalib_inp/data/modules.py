# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""anomalib's data modules, one for each category of each source."""

import importlib
import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import anomalib.data
from anomalib.data import AnomalibDataModule
from lightning.pytorch.utilities import rank_zero_warn

from anomalib_inp.data.file_checks import DataError
from anomalib_inp.data.layout import check_layout
from anomalib_inp.data.quirks import category_folders, test_images
from anomalib_inp.data.source import Source
from anomalib_inp.data.subset import MEAN

OF_ALL = {
    *("train_batch_size", "eval_batch_size", "num_workers"),
    *("train_augmentations", "val_augmentations", "test_augmentations", "augmentations"),
}
"""Arguments of loaders and of what is done to images, which all categories share."""

Modules = dict[str, AnomalibDataModule]
"""Data modules by category, in the order of the sources."""


def build_modules(sources: Iterable[Source], common: Mapping[str, Any]) -> Modules:
    """Build a data module for each category.

    Args:
        sources: The sources; of several, categories are called ``<source>/<category>``.
        common: Arguments of all data modules; ``None`` leaves a data module's default.

    Raises:
        ValueError: Unknown data modules or categories, or arguments that do not fit; all are named at once.
    """
    sources = list(sources)
    modules: Modules = {}
    names = Counter(source.name or source.source for source in sources)
    faults = [f"several sources are called {name}: give each a name" for name, count in names.items() if count > 1]
    faults += [
        f"a source cannot be called {name}: / stands between source and category" for name in names if "/" in name
    ]
    for source in sources:
        try:
            kind = _class_of(source.source)
            categories = _wanted_categories(source, kind)
        except ValueError as fault:
            faults.append(str(fault))
            continue
        for category in categories:
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


def categories_of(kind: type[AnomalibDataModule]) -> list[str]:
    """List the categories of a published data set; none where a data module takes any folder."""
    home = importlib.import_module(kind.__module__.replace(".datamodules.", ".datasets."))
    return list(getattr(home, "CATEGORIES", ()))


def chosen_modules(wanted: Mapping[str, list[str] | str | None], modules: Modules) -> Iterator[Modules]:
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
        among = set(modules if names is None else names)
        yield {label: module for label, module in modules.items() if {label, sources.get(label)} & among}


def prepare(module: AnomalibDataModule) -> None:
    """Download the data of a category, if they are missing.

    Raises:
        DataError: They are not there and cannot be downloaded.
    """
    try:
        module.prepare_data()
    except URLError as fault:
        msg = f"it is not in {module.root}, and cannot be downloaded: {fault.reason}"
        raise DataError(msg) from fault


def set_up(module: AnomalibDataModule) -> None:
    """Set up the images of a category.

    Raises:
        DataError: Masks do not fit, or validation images are to be split off nothing.
    """
    check_layout(module)
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
    module.test_data = test_images(module)


def for_all(modules: Modules, action: Callable[[AnomalibDataModule], None]) -> None:
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


def _class_of(name: str) -> type[AnomalibDataModule]:
    """Find a data module by its name in anomalib, or by its full path."""
    module, _, short = name.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module) if module else anomalib.data, short, None)
    except ImportError:
        kind = None
    place = "anomalib.data.datamodules.image"
    if inspect.isclass(kind) and issubclass(kind, AnomalibDataModule):
        home = kind.__module__
        if home.startswith(place) or not home.startswith(("anomalib.", "anomalib_inp.")):
            return kind
    there = {kind.__name__ for kind in AnomalibDataModule.__subclasses__() if kind.__module__.startswith(place)}
    msg = f"there is no image data module {name}; anomalib has {', '.join(sorted(there))}"
    raise ValueError(msg)


def _wanted_categories(source: Source, kind: type[AnomalibDataModule]) -> list[str]:
    """Find the categories of a source.

    Raises:
        ValueError: There are none, or not those that are asked for.
    """
    arguments = inspect.signature(kind).parameters
    if "category" not in arguments and "name" not in arguments:
        return [source.source.rpartition(".")[2]]  # the data set is one category
    root = Path(source.root or arguments["root"].default or ".")
    published = categories_of(kind)
    there = category_folders(root, published)
    if source.categories == "all":
        missing = [name for name in published if name not in there]
        if missing and set(there) & set(published):
            rank_zero_warn(f"all: the categories {', '.join(missing)} of {source.source} are not in {root}.")
        if not (there or published):
            msg = f"there are no folders of categories in {root}"
            raise ValueError(msg)
        return there or published
    wanted = [source.categories] if isinstance(source.categories, str) else list(source.categories)
    if not wanted:
        msg = f"no categories of {source.source} are asked for"
        raise ValueError(msg)
    if wrong := [name for name in wanted if name not in published and name not in there]:
        names = ", ".join(there or sorted(published)) or "nothing"
        hint = "; several are given as a list, '[one, other]'" if any("," in name for name in wrong) else ""
        msg = f"{source.source} in {root} has no category {', '.join(wrong)}; there is {names}{hint}"
        raise ValueError(msg)
    return wanted


def _build(
    kind: type[AnomalibDataModule], source: Source, category: str, common: Mapping[str, Any]
) -> AnomalibDataModule:
    """Build the data module of one category.

    Raises:
        ValueError: An argument does not fit.
    """
    taken = inspect.signature(kind).parameters
    given = {name: value for name, value in common.items() if value is not None and name in taken}
    ignored = [name for name, value in common.items() if value is not None and name not in taken]
    if splits := [name for name in ignored if name.endswith(("mode", "ratio"))]:
        msg = f"{kind.__name__} has no {', '.join(splits)}"
        raise ValueError(msg)
    if source.root is not None:
        given["root"] = source.root
    if "category" in taken:
        given["category"] = category
    elif "name" in taken:
        given |= {"name": category, "root": Path(source.root or ".", category)}
    if twice := sorted(source.arguments.keys() & given.keys() & {"category", "name", "root"}):
        msg = f"{', '.join(twice)} cannot be among the arguments: give root and categories of the source"
        raise ValueError(msg)
    if of_all := sorted(name for name in source.arguments if name in OF_ALL):
        msg = f"{', '.join(of_all)} cannot be among the arguments of a source: they are arguments of MultiCategory"
        raise ValueError(msg)
    return kind(**{**given, **source.arguments})


def _listed(faults: list[str]) -> str:
    return "The data do not fit:\n" + "\n".join(f"- {fault}" for fault in faults)
