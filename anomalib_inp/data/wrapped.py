# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""A data set around another one, which it gives differently."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from anomalib.data import AnomalibDataset, ImageBatch, ImageItem
from pandas import DataFrame
from torch import Tensor
from torch.utils.data import default_collate


class WrappedImages(AnomalibDataset):
    """A data set that is another one, until somebody overrides a part.

    Args:
        images: The other one.
    """

    def __init__(self, images: AnomalibDataset) -> None:
        self.images = images
        super().__init__(images.augmentations)

    @property
    def samples(self) -> DataFrame:
        """Table of the images."""
        return self.images.samples

    @samples.setter
    def samples(self, samples: DataFrame) -> None:
        self.images.samples = samples

    @property
    def name(self) -> str:
        """Name of the data set."""
        return self.images.name

    @property
    def category(self) -> str | None:
        """Category of the data set."""
        return self.images.category

    @property
    def collate_fn(self) -> Callable:
        """How images become a batch."""
        return self.images.collate_fn

    def __getitem__(self, index: int) -> Any:
        """Read an image."""
        return self.images[index]


class LargeImages(WrappedImages):
    """Images that are given one at a time: a batch of one is the image itself, where anomalib copies it twice."""

    @property
    def collate_fn(self) -> Callable:
        """How one image becomes a batch."""
        return _alone


def _alone(items: list[ImageItem]) -> ImageBatch:
    (item,) = items
    values = {field.name: getattr(item, field.name) for field in fields(item)}
    return ImageBatch(**{
        name: value[None] if isinstance(value, Tensor) else default_collate([value])
        for name, value in values.items()
        if value is not None
    })  # fmt: skip
