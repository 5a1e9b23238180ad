# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What of an image is inspected, and how large a region must be: settings of a model, for all that use it."""

import base64
import binascii
import io
import math
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from anomalib_inp.frame import CropBox
from anomalib_inp.images import is_deep

LONGEST_SIDE = 1024
"""Pixels that a mask is kept with: it is laid over maps, which are smaller."""
MOST_PIXELS = 2**26
"""Of a mask that is read."""
WHITE, DEEP_WHITE = 128, 32768
"""Grey value from which a mask says: inspect; of 8 and of 16 bits."""
OPAQUE = 255
"""What is less than that is transparent."""


class Inspection(NamedTuple):
    """What of an image is inspected, and how large a region must be.

    Attributes:
        smallest_area: Pixels of the image that a region has at least; smaller ones are not listed.
        mask: A mask of the whole image as PNG in Base64, white where it is inspected; empty for everywhere.
    """

    smallest_area: float = 0.0
    mask: str = ""

    @property
    def pixels(self) -> np.ndarray | None:
        """The mask, bool ``(H, W)`` of the whole image; ``None`` for everywhere."""
        return _kept(self.mask) if self.mask else None

    def places(self, crop_box: CropBox, size: tuple[int, int]) -> np.ndarray | None:
        """Tell which places of a map are inspected.

        Args:
            crop_box: The part of the image that the map covers.
            size: Height and width of the map.

        Returns:
            Bool ``(h, w)``; ``None`` for all of them.

        Raises:
            ValueError: None is.
        """
        pixels = self.pixels
        if pixels is None:
            return None
        places = crop_box.cut(pixels, size)
        if not places.any():
            msg = "The mask leaves nothing to inspect: white says where to look, black what to ignore."
            raise ValueError(msg)
        return None if places.all() else places

    def changed(self, mask: str | Path | bytes | None = None, smallest_area: float | None = None) -> "Inspection":
        """Take over new settings.

        Args:
            mask: An image file or the content of one, white where to look; an empty text for everywhere; ``None``
                leaves it.
            smallest_area: Pixels; ``None`` leaves it.

        Raises:
            ValueError: The file is no image, or black everywhere, or the area is no number from 0 on.
        """
        changed = self
        if smallest_area is not None:
            if not 0 <= smallest_area < math.inf:
                msg = f"The smallest area is a number of pixels from 0 on, got {smallest_area}."
                raise ValueError(msg)
            changed = changed._replace(smallest_area=float(smallest_area))
        if mask is not None:
            pixels = read_mask(mask) if mask else None
            changed = changed._replace(mask="" if pixels is None or pixels.all() else encode(pixels))
        return changed


EVERYTHING = Inspection()
"""Everywhere, and regions of any size."""


def read_mask(mask: str | Path | bytes) -> np.ndarray:
    """Read the mask of what is inspected, bool ``(H, W)``.

    Raises:
        ValueError: The file is no image, or black everywhere.
    """
    try:
        return _decode(mask if isinstance(mask, bytes) else Path(mask).read_bytes())
    except (OSError, ValueError) as error:
        name = "What was given" if isinstance(mask, bytes) else mask
        msg = f"{name} cannot be used as a mask of what is inspected: {error}"
        raise ValueError(msg) from error


def encode(pixels: np.ndarray) -> str:
    """Write a mask, bool ``(H, W)``, as PNG in Base64, made smaller where it is large."""
    image, file = Image.fromarray(pixels.astype(np.uint8) * 255), io.BytesIO()
    if (side := max(image.size)) > LONGEST_SIDE:
        size = [max(1, round(length * LONGEST_SIDE / side)) for length in image.size]
        image = image.resize((size[0], size[1]), Image.Resampling.NEAREST)
    image.convert("1").save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")


@lru_cache(8)
def _kept(mask: str) -> np.ndarray:
    """Read a mask that a model keeps; asked for with each image."""
    pixels = _decode(base64.b64decode(mask))
    pixels.flags.writeable = False
    return pixels


def _decode(content: bytes) -> np.ndarray:
    clear = False
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.width * image.height > MOST_PIXELS:
                msg = f"{image.width} x {image.height} pixels are too many for a mask; {MOST_PIXELS} at most."
                raise ValueError(msg)
            if is_deep(image):
                pixels = np.asarray(image).astype(np.uint16) >= DEEP_WHITE
            else:
                clear = image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < OPAQUE
                pixels = np.asarray(image.convert("L")) >= WHITE
    except UnidentifiedImageError as error:
        msg = "no readable image."
        raise ValueError(msg) from error
    except (OSError, SyntaxError, binascii.Error, Image.DecompressionBombError) as error:
        msg = f"no readable image: {error}"
        raise ValueError(msg) from error
    if clear:
        msg = "parts of it are transparent, so neither black nor white: save it without transparency."
        raise ValueError(msg)
    if not pixels.any():
        msg = "it is black everywhere; white says where to look."
        raise ValueError(msg)
    return pixels
