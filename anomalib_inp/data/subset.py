# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Which category an image is of: what is counted, chosen and reported per category asks here."""

from collections.abc import Sequence

import torch
from anomalib.data import ImageBatch
from anomalib.data.utils import LabelName
from lightning import Trainer
from pandas import DataFrame
from torch import Tensor

MEAN = "mean"
"""What the mean over the categories is called, and no category may be."""


class Categories:
    """The categories of a table of images.

    Args:
        samples: Table of a data set of anomalib; its images are of the category in the column ``category``, or all of
            one where there is no such column.
        name: Name of that one.

    Attributes:
        names: The categories, in alphabetical order.
        has_masks: For each category, whether its anomalous images have masks; also true where none is anomalous.
    """

    def __init__(self, samples: DataFrame, name: str = "") -> None:
        column = samples.category if "category" in samples else [name] * len(samples)
        self.names = sorted(set(column))
        number = {category: index for index, category in enumerate(self.names)}
        self._rows = {
            path: (row, number[category])
            for row, (path, category) in enumerate(zip(samples.image_path, column, strict=True))
        }
        masks = samples.get("mask_path", [None] * len(samples))
        anomalous, masked = [False] * len(self.names), [False] * len(self.names)
        for category, label, mask in zip(column, samples.label_index, masks, strict=True):
            anomalous[number[category]] |= label == LabelName.ABNORMAL
            # MVTec LOCO has several masks of an image; a missing one may be None or NaN.
            masked[number[category]] |= isinstance(mask, str | list) and bool(mask)
        self.has_masks = [has or not need for has, need in zip(masked, anomalous, strict=True)]

    def __len__(self) -> int:
        """Number of images."""
        return len(self._rows)

    def of(self, paths: Sequence[str]) -> Tensor:
        """Number of the category of each image, ``(B,)``: its place in ``names``."""
        return torch.tensor([self._rows[path][1] for path in paths])

    def name_of(self, path: str) -> str:
        """Category of an image."""
        return self.names[self._rows[path][1]]

    def counted(self, paths: Sequence[str], trainer: Trainer) -> Tensor:
        """Whether this process counts an image, ``(B,)``.

        Of several processes, Lightning gives each every n-th image, and the first images once more to those that would
        have fewer.
        """
        rows = torch.tensor([self._rows[path][0] for path in paths])
        return rows % trainer.world_size == trainer.global_rank

    @classmethod
    def of_data(cls, trainer: Trainer, subset: str) -> "Categories | None":
        """Find the categories of a subset (``val_data``, ``test_data``) of the trainer's data module, if it has one."""
        data = getattr(trainer, "datamodule", None)
        samples = getattr(getattr(data, subset, None), "samples", None)
        if data is None or not isinstance(samples, DataFrame):
            return None
        return cls(samples, str(getattr(data, "category", "") or data.name))

    def known(self, batch: ImageBatch) -> bool:
        """Whether all images of a batch are in the table."""
        return batch.image_path is not None and all(path in self._rows for path in batch.image_path)
