# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The frame of what is inspected: its size and its place in the image."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

DEFAULT_RESIZE, DEFAULT_CROP = 448, 392  # the published protocol


def centre_offset(size: tuple[int, int], crop: tuple[int, int]) -> tuple[int, int]:
    """First row and column of the centre of an image, both given as height and width in pixels."""
    # torchvision's center_crop rounds the same way
    return round((size[0] - crop[0]) / 2.0), round((size[1] - crop[1]) / 2.0)


class CropBox(NamedTuple):
    """The part of the image that the model sees, as fractions of the image's width and height in [0, 1]."""

    left: float
    top: float
    right: float
    bottom: float

    @classmethod
    def centre(cls, size: tuple[int, int], crop: tuple[int, int]) -> "CropBox":
        """The centre of a resized image, both given as height and width in pixels."""
        top, left = centre_offset(size, crop)
        (height, width), (rows, columns) = size, crop
        return cls(left / width, top / height, (left + columns) / width, (top + rows) / height)

    def within(self, part: "CropBox") -> "CropBox":
        """The place in the image of a part of this box, given as fractions of the box."""
        width, height = self.right - self.left, self.bottom - self.top
        return CropBox(
            self.left + part.left * width,
            self.top + part.top * height,
            self.left + part.right * width,
            self.top + part.bottom * height,
        )

    def seen_from(self, part: "CropBox") -> "CropBox":
        """This box in fractions of a part of the image, which it may go beyond."""
        width, height = part.right - part.left, part.bottom - part.top
        return CropBox(
            (self.left - part.left) / width,
            (self.top - part.top) / height,
            (self.right - part.left) / width,
            (self.bottom - part.top) / height,
        )

    def cut(self, plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Bring the inspected part of a plane ``(H, W)`` of the whole image to another size by nearest neighbour."""
        height, width = plane.shape
        rows = self.top * height + (np.arange(size[0]) + 0.5) * (self.bottom - self.top) * height / size[0]
        columns = self.left * width + (np.arange(size[1]) + 0.5) * (self.right - self.left) * width / size[1]
        return plane[np.ix_(rows.astype(int), columns.astype(int))]

    def inside(self, size: tuple[int, int]) -> np.ndarray:
        """Tell which pixels of an image of this height and width are inspected, bool ``(H, W)``."""
        rows, columns = np.indices(size)
        x, y = (columns + 0.5) / size[1], (rows + 0.5) / size[0]
        return (x >= self.left) & (x < self.right) & (y >= self.top) & (y < self.bottom)

    def from_image(self, plane: tuple[int, int], size: tuple[int, int]) -> tuple[float, ...]:
        """Where pixels of the whole image lie in a plane of the crop, as Pillow's affine transform takes it.

        Args:
            plane: Height and width of the plane, which covers the crop.
            size: Height and width of the whole image.

        Returns:
            ``(a, b, c, d, e, f)``: the pixel ``(x, y)`` of the image is ``(a x + b y + c, d x + e y + f)`` there.
        """
        scale_x, scale_y = plane[1] / (self.right - self.left), plane[0] / (self.bottom - self.top)
        return (scale_x / size[1], 0, -scale_x * self.left, 0, scale_y / size[0], -scale_y * self.top)


WHOLE_IMAGE = CropBox(0.0, 0.0, 1.0, 1.0)


def resolve_sizes(
    image_size: int | Sequence[int] | None, crop_size: int | Sequence[int] | None, patch_size: int
) -> tuple[tuple[int, int], tuple[int, int] | None]:
    """Fill in the default sizes and check that the inspected part consists of whole patches.

    Args:
        image_size: Side, or height and width, in pixels; ``None`` for the default: 448 with a crop, otherwise the
            largest multiple of the patch size up to 392.
        crop_size: Side, or height and width, in pixels; ``None`` for the whole image.
        patch_size: Side of a patch in pixels.

    Raises:
        ValueError: The inspected height or width is not a multiple of the patch size.
    """
    if image_size is None:
        image_size = DEFAULT_CROP // patch_size * patch_size if crop_size is None else DEFAULT_RESIZE
    image = as_pair(image_size, "image_size")
    crop = None if crop_size is None else as_pair(crop_size, "crop_size")
    check_patches(*((image, "image_size") if crop is None else (crop, "crop_size")), patch_size)
    return image, crop


def check_patches(size: tuple[int, int], name: str, patch_size: int) -> None:
    """Refuse a height and width that are no whole patches.

    Raises:
        ValueError: One is no multiple of the patch size.
    """
    if any(side % patch_size for side in size):
        nearest = tuple(max(patch_size, side // patch_size * patch_size) for side in size)
        msg = (
            f"{name} must be a multiple of the encoder's patch size {patch_size} in height and width, got {size}. "
            f"The nearest smaller size is {nearest}."
        )
        raise ValueError(msg)


def as_pair(size: int | Sequence[int], name: str) -> tuple[int, int]:
    """Turn a side, or height and width, into height and width.

    Raises:
        ValueError: Not one or two positive numbers.
    """
    sides = np.ravel(np.array(size, dtype=object)).tolist()
    if len(sides) not in {1, 2} or not all(
        isinstance(side, int | float | np.integer | np.floating) and side % 1 == 0 and side >= 1 for side in sides
    ):
        msg = f"{name} must be a positive number of pixels, or height and width, got {size!r}."
        raise ValueError(msg)
    return int(sides[0]), int(sides[-1])
