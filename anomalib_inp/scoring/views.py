# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What the network sees at a time: the whole image, or tiles of it."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from anomalib_inp.scoring.smoothing import Smoothing
from anomalib_inp.tiles import STEP, Tiles, fused

AT_ONCE = 16
"""Tiles of each image that the network sees in one batch: memory does not grow with the image."""


class View(Protocol):
    """What the network sees at a time, and how what it says becomes maps of the images."""

    def cut(self, images: Tensor) -> Iterator[Tensor]:
        """Cut images ``(B, 3, H, W)`` into batches of what the network sees."""

    def shrink(self, masks: Tensor, size: torch.Size) -> Tensor:
        """Bring masks ``(B, H, W)`` of the images to the height and width of their maps."""

    def join(self, reading: Tensor, image_size: tuple[int, int], smoothing: Smoothing) -> Tensor:
        """Make maps ``(B, 1, h, w)`` of what a reading says of all that was cut."""


class WholeImage:
    """The network sees the whole image, as published."""

    def cut(self, images: Tensor) -> Iterator[Tensor]:
        """Give the images as they are."""
        yield images

    def shrink(self, masks: Tensor, size: torch.Size) -> Tensor:
        """Bring masks to the size of maps by nearest neighbour (reference, ``evaluation_batch``)."""
        return F.interpolate(masks.to(torch.uint8).unsqueeze(1), size=size, mode="nearest").squeeze(1).bool()

    def join(self, reading: Tensor, image_size: tuple[int, int], smoothing: Smoothing) -> Tensor:
        """Smooth readings ``(B, h, w)``."""
        return smoothing(reading, image_size)


class TiledImage:
    """The network sees tiles, which overlap; their maps are merged without seams.

    Args:
        tiles: How images are cut.
    """

    def __init__(self, tiles: Tiles) -> None:
        self.tiles = tiles

    def cut(self, images: Tensor) -> Iterator[Tensor]:
        """Cut images into batches of tiles: first all of one place, row by row; then the whole images, if at all.

        Raises:
            ValueError: They are smaller than a tile.
        """
        (height, width), places = self.tiles.size, self.tiles.places(_size_of(images))
        for first in range(0, len(places), AT_ONCE):
            yield torch.cat([images[..., r : r + height, c : c + width] for r, c in places[first : first + AT_ONCE]])
        if self.tiles.second_scale:
            yield F.interpolate(images, size=(height, width), mode="bilinear", antialias=True)

    def shrink(self, masks: Tensor, size: torch.Size) -> Tensor:
        """Mark a pixel of the map where a pixel of the image that it stands for is marked: thin defects stay."""
        height, width = (STEP * side for side in size)
        padded = F.pad(masks, (0, width - masks.shape[-1], 0, height - masks.shape[-2]))
        return padded.unflatten(2, (-1, STEP)).any(dim=3).unflatten(1, (-1, STEP)).any(dim=2)

    def join(self, reading: Tensor, image_size: tuple[int, int], smoothing: Smoothing) -> Tensor:
        """Merge readings of all tiles ``(T B, h, w)``, fuse them with those of whole images, if any, and blur them."""
        values = _size_of(reading)
        rows, columns = _tensors(self.tiles.merging(image_size, values), like=reading)
        count = len(rows) * len(columns)
        parts = reading.unflatten(0, (count + self.tiles.second_scale, -1))  # (T, B, h, w)
        tiles = parts[:count].unflatten(0, (len(rows), len(columns)))  # (R, C, B, h, w)
        merged = sum(
            row @ sum(tile @ column.T for tile, column in zip(strip, columns, strict=True))
            for strip, row in zip(tiles, rows, strict=True)
        )
        if self.tiles.second_scale:
            row, column = _tensors(self.tiles.spreading(image_size, values), like=reading)
            merged = fused(merged, row @ parts[count] @ column.T)
        return smoothing.blur(merged.unsqueeze(1))


def _tensors(matrices: Sequence[np.ndarray], like: Tensor) -> list[Tensor]:
    return [torch.tensor(matrix).to(like) for matrix in matrices]  # copied: what is kept of them is read-only


def _size_of(images: Tensor) -> tuple[int, int]:
    # plain numbers, so that tracing for export takes the size as fixed
    return int(images.shape[-2]), int(images.shape[-1])
