# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The images of a split: what is counted, chosen, drawn and reported by category asks here, and only here."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from anomalib.data.utils import DirType, LabelName
from lightning import Trainer
from pandas import DataFrame
from torch import Tensor

from anomalib_inp.data.quirks import mask_files
from anomalib_inp.results.score_table import GOOD

MEAN = "mean"
"""What the mean over the categories is called, and no category may be."""


class Membership(NamedTuple):
    """What a split says of the images of a batch; of images that are not its own, nothing special.

    Attributes:
        names: The category of each image; empty for images that are not of the split.
        indices: Its place in the names of the split ``(B,)``; 0 for images that are not of it.
        counted: Whether this process counts the image ``(B,)``.
        masked: Whether its pixels are counted ``(B,)``: not where the anomalous images of its category have no masks.
    """

    names: list[str]
    indices: Tensor
    counted: Tensor
    masked: Tensor


class Subset:
    """The images of a split, their categories, and which of them this process counts.

    Args:
        samples: Table of a data set of anomalib; its images are of the category in the column ``category``, or all of
            one where there is no such column. Without a table there is no image.
        name: Name of that one.
        rank: Number of this process.
        world_size: Number of processes.

    Attributes:
        names: The categories, in alphabetical order.
        has_masks: For each category, whether its anomalous images have masks; also true where none is anomalous.
    """

    def __init__(self, samples: DataFrame | None = None, name: str = "", rank: int = 0, world_size: int = 1) -> None:
        samples = DataFrame({"image_path": [], "label_index": []}) if samples is None else samples
        categories = list(samples.category) if "category" in samples else [name] * len(samples)
        self.names = sorted(set(categories))
        several = len(self.names) > 1
        self._kinds = [
            f"{category}/{kind}" if several else kind
            for category, kind in zip(categories, map(kind_of, samples.itertuples()), strict=True)
        ]
        self.rank = rank
        self.world_size = world_size
        index_of = {category: index for index, category in enumerate(self.names)}
        indices = [index_of[category] for category in categories]
        self._rows = {path: place for place, path in enumerate(samples.image_path)}
        self._indices = torch.tensor(indices, dtype=torch.long)
        anomalous, masked = [False] * len(self.names), [False] * len(self.names)
        for index, row in zip(indices, samples.itertuples(), strict=True):
            anomalous[index] |= row.label_index == LabelName.ABNORMAL
            masked[index] |= bool(mask_files(row))
        self.has_masks = [has or not need for has, need in zip(masked, anomalous, strict=True)]

    def __len__(self) -> int:
        """Number of images."""
        return len(self._rows)

    @property
    def paths(self) -> list[str]:
        """The images."""
        return list(self._rows)

    def indices_of(self, paths: Sequence[str]) -> Tensor:
        """Find the category of each image, its place in ``names``: ``(B,)``."""
        return self._indices[self._rows_of(paths)]

    def category_of(self, path: str) -> str:
        """Name the category of an image; empty for one that is not of the split."""
        return self.names[self._indices[self._rows[path]]] if path in self._rows else ""

    def kind_of(self, path: str) -> str:
        """Say what an image is: ``good`` or a kind of defect, after its category where there are several.

        Empty for an image that is not of the split.
        """
        return self._kinds[self._rows[path]] if path in self._rows else ""

    def is_normal(self, path: str) -> bool:
        """Tell whether an image of the split is normal."""
        return self.kind_of(path).rpartition("/")[2] == GOOD

    def counted_here(self, paths: Sequence[str]) -> Tensor:
        """Tell whether this process counts an image, ``(B,)``.

        Of several processes, Lightning gives each every n-th image, and the first images once more to those that would
        have fewer.
        """
        return self._rows_of(paths) % self.world_size == self.rank

    def attach(self, batch: Any) -> Membership:
        """Tell what a batch is of; it keeps the answer as ``membership`` for all who ask."""
        if not hasattr(batch, "membership"):
            batch.membership = self._membership(batch)
        return batch.membership

    @classmethod
    def from_trainer(cls, trainer: Trainer, split: str) -> "Subset":
        """Find the images of a split, ``val`` or ``test``, of the trainer's data module; empty where it has none.

        It is made once, and again where other images are of the split.
        """
        data = getattr(trainer, "datamodule", None)
        samples = getattr(getattr(data, f"{split}_data", None), "samples", None)
        if data is None or not isinstance(samples, DataFrame):
            return cls()
        made = vars(trainer).setdefault("_subsets", {})
        if split not in made or made[split][0] is not samples:
            name = str(getattr(data, "category", "") or data.name)
            made[split] = samples, cls(samples, name, trainer.global_rank, trainer.world_size)
        return made[split][1]

    def _rows_of(self, paths: Sequence[str]) -> Tensor:
        return torch.tensor([self._rows[path] for path in paths], dtype=torch.long)

    def _membership(self, batch: Any) -> Membership:
        paths = batch.image_path
        if paths is None or not all(path in self._rows for path in paths):
            count = len(batch.image)
            every = torch.ones(count, dtype=torch.bool)
            return Membership([""] * count, torch.zeros(count, dtype=torch.long), every, every)
        indices = self.indices_of(paths)
        names = [self.names[index] for index in indices]
        return Membership(names, indices, self.counted_here(paths), torch.tensor(self.has_masks)[indices])


def kind_of(row: Any) -> str:
    """Say what the image in a row of a table is: ``good``, or a kind of defect."""
    if row.label_index == LabelName.NORMAL:
        return GOOD
    label = getattr(row, "label", "") or "anomalous"
    # anomalib's Folder says of all that they are abnormal; their folders are called by the kind
    return Path(row.image_path).parent.name if isinstance(label, DirType) else str(label)
