# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What the network sees at a time: the whole image, or tiles of it."""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from anomalib_inp.scoring.smoothing import Smoothing
from anomalib_inp.tiles import Tiles

AT_ONCE = 16
"""Tiles of each image that the network sees in one batch: memory does not grow with the image."""


class View(Protocol):
    """What the network sees at a time, and how what it says becomes maps of the images."""

    def cut(self, images: Tensor) -> Iterator[Tensor]:
        """Cut images ``(B, 3, H, W)`` into batches of what the network sees."""

    def join(self, reading: Tensor, image_size: tuple[int, int], smoothing: Smoothing) -> Tensor:
        """Make maps ``(B, 1, h, w)`` of what a reading says of all that was cut."""


class WholeImage:
    """The network sees the whole image, as published."""

    def cut(self, images: Tensor) -> Iterator[Tensor]:
        """Give the images as they are."""
        yield images

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
        """Cut images into batches of tiles: first all of one place, row by row.

        Raises:
            ValueError: They are smaller than a tile.
        """
        (height, width), places = self.tiles.size, self.tiles.places(_size_of(images))
        for first in range(0, len(places), AT_ONCE):
            yield torch.cat([images[..., r : r + height, c : c + width] for r, c in places[first : first + AT_ONCE]])

    def join(self, reading: Tensor, image_size: tuple[int, int], smoothing: Smoothing) -> Tensor:
        """Merge readings of all tiles ``(T B, h, w)``, and blur them."""
        rows, columns = (
            torch.tensor(matrices).to(reading)  # copied: what is kept of it is read-only
            for matrices in self.tiles.merging(image_size, _size_of(reading))
        )
        tiles = reading.unflatten(0, (len(rows), len(columns), -1))  # (R, C, B, h, w)
        merged = sum(
            row @ sum(tile @ column.T for tile, column in zip(strip, columns, strict=True))
            for strip, row in zip(tiles, rows, strict=True)
        )
        return smoothing.blur(merged.unsqueeze(1))


def _size_of(images: Tensor) -> tuple[int, int]:
    # plain numbers, so that tracing for export takes the size as fixed
    return int(images.shape[-2]), int(images.shape[-1])
