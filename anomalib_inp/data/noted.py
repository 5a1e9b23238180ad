# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The images of a training, noted in its checkpoint, so that it can be done again with the same validation images."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from anomalib import TaskType
from anomalib.data import AnomalibDataModule, AnomalibDataset
from anomalib.data.utils import Split, ValSplitMode
from pandas import DataFrame

from anomalib_inp.data.changed_views import ChangedViews
from anomalib_inp.data.file_checks import DataError
from anomalib_inp.data.joined import collate
from anomalib_inp.data.subset import kind_of
from anomalib_inp.data.tile_views import TileViews
from anomalib_inp.files import first_few

COLUMNS = ["image_path", "label_index", "label", "mask_path", "category"]
SPLITS = {"train": Split.TRAIN, "val": Split.VAL, "test": Split.TEST}
MOST_IMAGES = 200_000
"""Of more images, none are noted: the list would be as large as the model."""


def note_images(datamodule: Any) -> dict[str, Any]:
    """Note which images a data module trains, validates and tests on; empty where it does not list them.

    Returns:
        Plain data: the folder that all images are below, and of each split a row for each image, of ``COLUMNS``, with
        paths below that folder.
    """
    tables = {name: getattr(_whole(getattr(datamodule, f"{name}_data", None)), "samples", None) for name in SPLITS}
    found = {name: table for name, table in tables.items() if isinstance(table, DataFrame) and len(table)}
    if "train" not in found or sum(map(len, found.values())) > MOST_IMAGES:
        return {}
    paths = [path for table in found.values() for path in map(os.path.abspath, table.image_path)]
    root = os.path.commonpath([os.path.dirname(path) for path in paths])  # noqa: PTH120 - of a hundred thousand paths
    return {
        "root": root,
        "name": str(getattr(datamodule, "category", "") or datamodule.name),
        "train_batch_size": datamodule.train_batch_size,
        "eval_batch_size": datamodule.eval_batch_size,
        **{name: _rows(table, root) for name, table in found.items()},
    }


def _whole(dataset: Any) -> Any:
    """Find the images behind tiles and views of them, and behind what is made of these for a training."""
    views = (TileViews, ChangedViews)
    while isinstance(dataset, views) or isinstance(getattr(dataset, "images", None), views):
        dataset = dataset.images
    return dataset


def _rows(table: DataFrame, root: str) -> list[list[Any]]:
    rows = []
    for row in table.itertuples():
        mask = getattr(row, "mask_path", None)
        mask = os.path.relpath(mask, root) if isinstance(mask, str) and mask else ""
        label, kind = int(row.label_index), kind_of(row)
        rows.append([os.path.relpath(row.image_path, root), label, kind, mask, str(getattr(row, "category", ""))])
    return rows


class NotedImages(AnomalibDataset):
    """Images that were noted.

    Args:
        samples: Their table, with the columns ``COLUMNS``.
    """

    def __init__(self, samples: DataFrame) -> None:
        super().__init__()
        segmented = bool((samples.mask_path != "").any())
        samples.attrs = {"task": TaskType.SEGMENTATION if segmented else TaskType.CLASSIFICATION}
        self.samples = samples

    collate_fn = staticmethod(collate)


class NotedData(AnomalibDataModule):
    """The images that a checkpoint was made with, and more to train on.

    Args:
        note: What :func:`note_images` has noted.
        more: Further normal images to train on.
        root: Folder that the images are below now; by default the one that is noted.
        num_workers: Processes that read images.

    Raises:
        DataError: Images are gone.
    """

    def __init__(
        self, note: Mapping[str, Any], more: Iterable[Path] = (), root: Path | None = None, num_workers: int = 0
    ) -> None:
        super().__init__(
            train_batch_size=note["train_batch_size"],
            eval_batch_size=note["eval_batch_size"],
            num_workers=num_workers,
            val_split_mode=ValSplitMode.NONE,
        )
        self.root = Path(note["root"] if root is None else root)
        self.category = note["name"]
        tables = {name: self._table(note[name], split) for name, split in SPLITS.items() if name in note}
        gone = [path for table in tables.values() for path in table.image_path if not Path(path).is_file()]
        if gone:
            msg = f"{len(gone)} images of the training are gone: {first_few(gone)}. If they were moved: --images DIR."
            raise DataError(msg)
        train = tables["train"]
        added = DataFrame([{**train.iloc[0].to_dict(), "image_path": str(path), "mask_path": ""} for path in more])
        tables["train"] = train if added.empty else pd.concat([train, added], ignore_index=True)
        self._tables = tables

    @property
    def name(self) -> str:
        """What the data are called, in the folder of results."""
        return self.category

    def images(self, split: str) -> list[tuple[Path, str]]:
        """List the images of a split with their kinds: ``good``, or the kind of defect."""
        table = self._tables.get(split)
        if table is None:
            return []
        return list(zip(map(Path, table.image_path), table.label, strict=True))

    def _table(self, rows: list[list[Any]], split: Split) -> DataFrame:
        table = DataFrame(rows, columns=COLUMNS).assign(split=split)
        place = self.root.as_posix()
        table["image_path"] = [os.path.normpath(f"{place}/{path}") for path in table.image_path]
        table["mask_path"] = [os.path.normpath(f"{place}/{path}") if path else "" for path in table.mask_path]
        return table.drop(columns="category") if not table.category.any() else table

    def _setup(self, _stage: str | None = None) -> None:
        for name, table in self._tables.items():
            setattr(self, f"{name}_data", NotedImages(table))
        if "test" not in self._tables:
            self.test_data = self.val_data

    def _create_test_split(self) -> None:
        """Leave the test images as they are noted."""

    def _create_val_split(self) -> None:
        """Leave the validation images as they are noted."""
