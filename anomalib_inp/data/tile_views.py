# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Training images as tiles of them."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from anomalib.data import AnomalibDataset, ImageItem
from pandas import DataFrame
from torch import Tensor
from torchvision.transforms.v2 import Compose, Resize, Transform
from torchvision.transforms.v2.functional import resize
from torchvision.tv_tensors import Image, Mask

from anomalib_inp.data.file_checks import DataError
from anomalib_inp.files import first_few
from anomalib_inp.images import Header, as_batch, read_header, read_pixels, scaled
from anomalib_inp.preprocessing import steps_of
from anomalib_inp.tiles import Tiles

WHOLE = -1
"""In the place of row and column: the whole image."""
TILES_TO_WHOLE = 8
"""Tiles for each time that the whole image is trained on, where there is a second scale."""


class TileViews(AnomalibDataset):
    """Tiles of normal images, as the network sees them; each is an image of its own.

    The table has a row for each tile, with the place of its upper left pixel in ``row`` and ``column``, -1 for the
    whole image, resized to a tile, where there is a second scale. Of tiles of one image that are asked for one after
    the other, the image is read once.

    Args:
        images: The normal images.
        tiles: How they are cut.
        resize: What is done to a whole image before it is cut; ``None`` leaves it as it is.
        image_size: Height and width that images have then; ``None``: that of the file.
        per_image: Tiles of each image that are drawn at random; ``None`` takes all.
        anew: Whether drawn tiles lie elsewhere each time that they are read.

    Raises:
        DataError: An image is smaller than a tile.
    """

    def __init__(
        self,
        images: AnomalibDataset,
        tiles: Tiles,
        resize: Transform | None = None,
        image_size: tuple[int, int] | None = None,
        per_image: int | None = None,
        anew: bool = True,
    ) -> None:
        super().__init__(_without_resizing(images.augmentations))
        self.images = images
        self.tiles = tiles
        self.resize = resize
        self.image_size = image_size
        self.anew = anew and per_image is not None
        self._read: tuple[str, Tensor] | None = None
        sizes = [image_size or size_of(path) for path in images.samples.image_path]
        check_sizes(images.samples.image_path, sizes, tiles)
        generator = np.random.default_rng(0)
        places = [_places(tiles, size, per_image, generator) for size in sizes]
        rows = images.samples.index.repeat([len(of_image) for of_image in places])
        samples = images.samples.loc[rows].reset_index(drop=True)
        samples["row"], samples["column"] = np.concatenate(places).T
        samples["tile"] = f"{tuple(tiles)} of {image_size or 'native'}"  # a cache on disk tells them apart
        samples.attrs = images.samples.attrs
        self.samples: DataFrame = samples

    def __getitem__(self, index: int) -> ImageItem:
        """Read a tile."""
        sample = self.samples.iloc[index]
        tile = Image(self._tile(self._whole(sample.image_path), sample["row"], sample["column"]))
        return ImageItem(
            image=self.augmentations(tile) if self.augmentations else tile,
            gt_label=torch.tensor(0),
            gt_mask=Mask(torch.zeros(self.tiles.size, dtype=torch.bool)),
            image_path=sample.image_path,
        )

    def __getstate__(self) -> dict:
        """Leave the image that was read behind: a worker process reads its own."""
        return {**self.__dict__, "_read": None}

    def _tile(self, image: Tensor, row: int, column: int) -> Tensor:
        """Cut a tile ``(3, h, w)`` out of an image, or resize the image to one, with values in [0, 1]."""
        height, width = self.tiles.size
        if row == WHOLE:
            # one colour after the other: all of a large image in 32 bits is much beside it
            return torch.cat([resize(_scaled(plane), [height, width], antialias=True) for plane in image.split(1)])
        if self.anew:
            row, column = (
                int(torch.randint(side - tile + 1, ()))
                for side, tile in zip(image.shape[1:], (height, width), strict=True)
            )
        return _scaled(image[:, row : row + height, column : column + width])

    def _whole(self, path: str) -> Tensor:
        """Read an image ``(3, H, W)``: as it lies in the file, or resized in [0, 1]."""
        if self._read is None or self._read[0] != path:
            pixels = read_pixels(path)
            if self.resize is None:
                image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)  # in its own type: tiles are scaled
            else:
                image = self.resize(torch.from_numpy(as_batch(pixels)))[0]
            self._read = path, image
        return self._read[1]


def _without_resizing(augmentations: Transform | None) -> Transform | None:
    """Leave out what anomalib puts among augmentations to resize whole images: tiles are cut out of resized ones."""
    steps = [step for step in steps_of(augmentations) if not isinstance(step, Resize)]
    return Compose(steps) if steps else None


def check_sizes(paths: Sequence[str], sizes: Sequence[tuple[int, int]], tiles: Tiles) -> None:
    """Refuse images that are smaller than a tile.

    Raises:
        DataError: One is.
    """
    small = [
        f"{path} ({width} x {height})"
        for path, (height, width) in zip(paths, sizes, strict=True)
        if height < tiles.size[0] or width < tiles.size[1]
    ]
    if small:
        msg = (
            f"{len(small)} images are smaller than a tile of {tiles.size[1]} x {tiles.size[0]} pixels: "
            f"{first_few(small)}. Choose smaller tiles, or resize images to one size: --model.image_size."
        )
        raise DataError(msg)


def size_of(path: str) -> tuple[int, int]:
    """Height and width of an image file, by its header.

    Raises:
        DataError: It is no image.
    """
    header = read_header(path)
    if not isinstance(header, Header):
        msg = f"{path} is no image that can be used ({header}). Replace, convert or remove it."
        raise DataError(msg)
    return header.size[::-1]


def _places(tiles: Tiles, size: tuple[int, int], per_image: int | None, generator: np.random.Generator) -> np.ndarray:
    """Upper left pixels of the tiles of an image ``(tiles, 2)``."""
    if per_image is None:
        places = np.array(tiles.places(size))
    else:
        most = [side - tile for side, tile in zip(size, tiles.size, strict=True)]
        places = generator.integers(0, most, size=(per_image, 2), endpoint=True)
    copies = math.ceil(len(places) / TILES_TO_WHOLE) if tiles.second_scale else 0
    return np.concatenate([places, np.full((copies, 2), WHOLE)])


def _scaled(pixels: Tensor) -> Tensor:
    """Bring pixels ``(C, h, w)`` to [0, 1]."""
    return pixels if pixels.is_floating_point() else torch.from_numpy(scaled(pixels.numpy()))
