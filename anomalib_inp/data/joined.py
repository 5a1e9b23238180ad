# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""One data set out of many, of whatever classes; anomalib's own sum refuses different ones."""

from collections.abc import Callable, Mapping, Sequence

import pandas as pd
import torch
from anomalib import TaskType
from anomalib.data import AnomalibDataset, ImageBatch, ImageItem
from torchvision.transforms.v2 import Transform
from torchvision.tv_tensors import Mask

from anomalib_inp.data.quirks import mask_files


class JoinedDataset(AnomalibDataset):
    """The images of many data sets, each read as its own data set reads it.

    The table of the images says in the column ``category`` which of them an image is of.

    Args:
        parts: The data sets by category.
    """

    def __init__(self, parts: Mapping[str, AnomalibDataset]) -> None:
        self.parts = list(parts.values())
        super().__init__()
        tables = [
            part.samples.assign(category=category, part=number, row=range(len(part)))
            for number, (category, part) in enumerate(parts.items())
        ]
        samples = pd.concat(tables, ignore_index=True)
        segmented = any(part.task == TaskType.SEGMENTATION for part in self.parts)
        samples.attrs = {"task": TaskType.SEGMENTATION if segmented else TaskType.CLASSIFICATION}
        self.samples = samples

    @property
    def augmentations(self) -> Transform | None:
        """What is done to every image and its mask when it is read."""
        return self._augmentations

    @augmentations.setter
    def augmentations(self, augmentations: Transform | None) -> None:
        self._augmentations = augmentations
        for part in self.parts:
            part.augmentations = augmentations

    def __getitem__(self, index: int) -> ImageItem:
        """Read an image."""
        place = self.samples.iloc[index]
        item = self.parts[place.part][place.row]
        if len(mask_files(place)) > 1:
            item.mask_path = None  # anomalib names the first, which would be drawn for all
        return item

    @property
    def collate_fn(self) -> Callable[[list[ImageItem]], ImageBatch]:
        """How images become a batch."""
        return collate


def collate(items: Sequence[ImageItem]) -> ImageBatch:
    """Make a batch of images with masks and images without.

    Where some have masks, the others are given empty ones: of a normal image that is the truth, and the anomalous ones
    are left out of what is counted in pixels (``Subset.has_masks``).
    """
    if any(item.gt_mask is not None for item in items):
        for item in items:
            if item.gt_mask is None:
                item.gt_mask = Mask(torch.zeros(item.image.shape[-2:], dtype=torch.bool))
    if any(item.mask_path for item in items):
        for item in items:
            item.mask_path = item.mask_path or ""
    return ImageBatch.collate(list(items))
