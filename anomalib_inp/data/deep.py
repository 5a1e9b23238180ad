# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Grey images of 16 bits, which anomalib's reader clips to white: scaled by their range instead."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anomalib.data import AnomalibDataset, ImageBatch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torchvision.tv_tensors import Image, Mask

from anomalib_inp.data.wrapped import WrappedImages
from anomalib_inp.files import first_few
from anomalib_inp.images import Header, as_batch, is_deep_file, read_header, read_pixels


class DeepImages(WrappedImages):
    """A data set whose images of 16 bits are read by their range; all others, and masks, as the data set reads them.

    Args:
        images: The data set. What is done to its images when they are read is done here.
    """

    def __init__(self, images: AnomalibDataset) -> None:
        super().__init__(images)
        images.augmentations = None

    def __getitem__(self, index: int) -> Any:
        """Read an image."""
        item = self.images[index]
        if is_deep_file(item.image_path):
            item.image = Image(read_tensor(item.image_path))
        if self.augmentations and item.gt_mask is not None:
            item.image, item.gt_mask = self.augmentations(item.image, Mask(item.gt_mask))
        elif self.augmentations:
            item.image = self.augmentations(item.image)
        return item


def with_deep_images(dataset: AnomalibDataset, deep: Iterable[str] | None = None) -> AnomalibDataset:
    """Read images of 16 bits by their range.

    Args:
        dataset: The data set; one without any such image stays as it is.
        deep: The images of 16 bits; ``None`` looks for them.
    """
    if isinstance(dataset, DeepImages):
        return dataset
    paths = set(dataset.samples.image_path)
    return dataset if paths.isdisjoint(find_deep(paths) if deep is None else deep) else DeepImages(dataset)


def find_deep(paths: Iterable[str | Path]) -> list[str]:
    """List the images of 16 bits, by their headers; a file that cannot be opened is none."""
    found = []
    for path in paths:
        header = read_header(path)
        if isinstance(header, Header) and header.deep:
            found.append(str(path))
    return found


def read_deep_again(batch: ImageBatch) -> None:
    """Read the images of a batch again that anomalib has clipped, and that nothing has changed since."""
    for index, path in enumerate(batch.image_path or ()):
        header = read_header(path)
        if not isinstance(header, Header) or not header.deep:
            continue
        pixels = read_pixels(path)
        clipped = torch.from_numpy(np.minimum(pixels, 255).astype(np.float32) / 255).permute(2, 0, 1)
        image = batch.image[index]
        if image.shape == clipped.shape and torch.allclose(image, clipped.to(image), atol=1e-3):
            batch.image[index] = torch.from_numpy(as_batch(pixels))[0].to(image)


def read_tensor(path: str | Path) -> Tensor:
    """Read an image ``(3, H, W)``, float32 in [0, 1], of 8 or 16 bits.

    Raises:
        ValueError: The file is no readable image.
    """
    return torch.from_numpy(as_batch(read_pixels(path)))[0]


def say_how_deep(deep: list[str]) -> None:
    """Say how images of 16 bits are read."""
    if deep:
        rank_zero_info(
            f"{len(deep)} grey images have 16 bits per pixel, {first_few(deep[:1])} for one: they are scaled by their "
            "whole range, 65535 is white. Images of a camera with 10, 12 or 14 bits that fill the lower bits are dark "
            "then: shift them up."
        )
