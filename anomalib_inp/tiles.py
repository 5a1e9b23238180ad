# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Where the tiles of an image lie, and how what is said of each becomes one map; without importing torch.

Rows and columns are treated apart: places, weights and interpolation of a whole map are one matrix for the rows and one
for the columns, in PyTorch as in NumPy.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import product
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from typing_extensions import NotRequired, TypedDict

from anomalib_inp.frame import as_pair, check_patches

if TYPE_CHECKING:
    from torch import Tensor

STEP = 2
"""Pixels of the image, in each direction, that a pixel of the map stands for; published is 1.5 (392 for 256)."""
TILED = 0.75
"""What tiles count beside the whole image: with as much of both, small defects were lost (docs/small_defects.md)."""
LEAST = 1e-6
"""Weight of a tile at its very border, which may be all that is there."""


Map = TypeVar("Map", np.ndarray, "Tensor")


class TileSettings(TypedDict):
    """Tiles, as a model is told of them.

    size: side, or height and width, of a tile in pixels. overlap: pixels that neighbours share at least, by default a
    quarter of the side. per_image: tiles of each training image that are drawn at random, by default all; without a
    feature cache, others in each epoch. scored_area: pixels of the image that it is scored by, the highest ones, by
    default the share of the map. second_scale: whether the whole image, resized to a tile, is seen too.
    """

    size: int | Sequence[int]
    overlap: NotRequired[int]
    per_image: NotRequired[int | None]
    scored_area: NotRequired[int | None]
    second_scale: NotRequired[bool]


class Tiles(NamedTuple):
    """How images are cut into tiles.

    Attributes:
        size: Height and width of a tile in pixels.
        overlap: Pixels that neighbours share at least.
        second_scale: Whether the whole image, resized to a tile, is seen after the tiles.
    """

    size: tuple[int, int]
    overlap: int
    second_scale: bool = False

    @classmethod
    def of(cls, settings: Mapping[str, Any], patch_size: int) -> "Tiles":
        """Read the settings of a model.

        Raises:
            ValueError: Tiles that are no whole patches, an overlap that leaves nothing, or an unknown setting.
        """
        if not isinstance(settings, Mapping):
            msg = f"tiles must be settings, for example {{size: 252, overlap: 63}}, got {settings!r}."
            raise ValueError(msg)  # noqa: TRY004 - a choice of the user, which the command line shows as one line
        if unknown := settings.keys() - TileSettings.__annotations__.keys():
            msg = f"tiles has {', '.join(TileSettings.__annotations__)}, got {', '.join(sorted(map(str, unknown)))}."
            raise ValueError(msg)
        if settings.get("size") is None:
            msg = "tiles needs a size in pixels, for example {size: 252}."
            raise ValueError(msg)
        size = as_pair(settings["size"], "The size of tiles")
        check_patches(size, "The size of tiles", patch_size)
        overlap = settings.get("overlap", min(size) // 4)
        if not _is_count(overlap) or not 0 <= overlap < min(size):
            msg = f"The overlap of tiles must be a number of pixels from 0 to {min(size) - 1}, got {overlap!r}."
            raise ValueError(msg)
        for name, unit in (("per_image", "tiles"), ("scored_area", "pixels")):
            value = settings.get(name)
            if value is not None and (not _is_count(value) or value < 1):
                msg = f"{name} must be a number of {unit} from 1 on, got {value!r}."
                raise ValueError(msg)
        second_scale = settings.get("second_scale", False)
        if second_scale not in (True, False):
            msg = f"second_scale must be true or false, got {second_scale!r}."
            raise ValueError(msg)
        return cls(size, int(overlap), bool(second_scale))

    def map_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the map of an image of this height and width."""
        return math.ceil(image_size[0] / STEP), math.ceil(image_size[1] / STEP)

    def starts(self, image_size: tuple[int, int]) -> tuple[list[int], list[int]]:
        """First rows and first columns of the tiles of an image of this height and width.

        Raises:
            ValueError: The image is smaller than a tile.
        """
        rows, columns = (
            tile_starts(length, tile, self.overlap) for length, tile in zip(image_size, self.size, strict=True)
        )
        return rows, columns

    def places(self, image_size: tuple[int, int]) -> list[tuple[int, int]]:
        """List the upper left pixels of the tiles of an image of this height and width, row by row.

        Raises:
            ValueError: The image is smaller than a tile.
        """
        return list(product(*self.starts(image_size)))

    def spreading(self, image_size: tuple[int, int], values: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Make the matrices that spread what is said of the whole image over its map; arguments as of merging.

        Returns:
            One for the rows ``(map rows, values)`` and one for the columns.
        """
        rows, columns = Tiles(image_size, 0).merging(image_size, values)
        return rows[0], columns[0]

    def merging(self, image_size: tuple[int, int], values: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Make the matrices that merge what is said of the tiles of an image of this height and width.

        Args:
            image_size: Height and width of the image.
            values: Rows and columns of what is said of a tile.

        Returns:
            One for the rows ``(tiles, map rows, values)`` and one for the columns: the map is the sum over all tiles of
            ``rows[i] @ tile[i, j] @ columns[j].T``.
        """
        arguments = zip(image_size, self.size, values, self.map_size(image_size), strict=True)
        rows, columns = (merge_matrices(length, tile, self.overlap, *rest) for length, tile, *rest in arguments)
        return rows, columns


def _is_count(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def fused(tiled: Map, whole: Map) -> Map:
    """Fuse what is said of tiles with what is said of the whole image, maps of one size, in PyTorch or in NumPy."""
    return TILED * tiled + (1 - TILED) * whole


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """List where tiles begin along an axis; the last one ends with the image, and overlaps its neighbour by more.

    Raises:
        ValueError: The image is shorter than a tile.
    """
    if length < tile:
        msg = (
            f"An image of {length} pixels is smaller than a tile of {tile}. Smaller images need a model of smaller "
            "tiles, or one that resizes images before it cuts them (image_size)."
        )
        raise ValueError(msg)
    count = math.ceil((length - tile) / (tile - overlap)) + 1
    return [min(place * (tile - overlap), length - tile) for place in range(count)]


@lru_cache(8)  # of a few sizes of images: those of a large one with a head take 0.3 GB
def merge_matrices(length: int, tile: int, overlap: int, values: int, pixels: int) -> np.ndarray:
    """Make the matrices ``(tiles, pixels, values)`` that merge what is said of tiles along an axis.

    Each value stands at the centre of its part of the tile; between two, it is interpolated. Where tiles overlap, each
    weighs the less the nearer its border is, over the width of the overlap, and all weights add up to 1.

    Args:
        length: Pixels of the image.
        tile: Pixels of a tile.
        overlap: Pixels that neighbours share at least.
        values: Values of a tile.
        pixels: Pixels of the map.
    """
    starts = np.array(tile_starts(length, tile, overlap))
    centres = (np.arange(pixels) + 0.5) * length / pixels
    inside = centres - starts[:, None]  # (tiles, pixels), from the tile's beginning
    from_border = np.minimum(inside, tile - inside)
    weights = np.where(from_border >= 0, np.clip(from_border / max(overlap, 1), LEAST, 1), 0)
    weights /= weights.sum(axis=0)
    place = np.clip(inside * values / tile - 0.5, 0, values - 1)
    nearness = np.maximum(1 - np.abs(place[..., None] - np.arange(values)), 0)  # (tiles, pixels, values), sum 1
    matrices = (weights[..., None] * nearness).astype(np.float32)
    matrices.flags.writeable = False
    return matrices
