# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Images as they come, in files or arrays: their pixels as models take them, or one sentence that refuses them."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import TiffImageFile

T = TypeVar("T")
Channels = Literal["rgb", "bgr"]

WHITE = {"uint8": 255, "uint16": 65535}
"""Whole numbers that images are made of, and the brightest of each."""
ROUNDING = 1e-3
"""How far floating-point values may lie outside [0, 1]: resizing and filters overshoot a little."""
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0
"""TIFF's tag that says what the numbers mean, and the value for grey where 0 is white."""
SIDEWAYS = 5
"""EXIF orientation from which on width and height change places."""
FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's names of the formats whose suffixes are read from folders; what opens JPEG opens MPO of cameras too."""
UNREADABLE = ("F", "I", "LAB")
"""Pillow's modes that become no colours: their values have no known range, or no way to RGB."""


def is_deep(image: Image.Image) -> bool:
    """Whether an opened image is grey with 16 bits per pixel; of colours with 16 bits, Pillow reads the upper 8."""
    # Older versions of Pillow open PNG, and all of them PGM, of 16 bits as if they had 32.
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in {"PNG", "PPM"})


def is_deep_file(path: str | Path) -> bool:
    """Whether an image file is grey with 16 bits per pixel, by its header alone."""
    with Image.open(path) as image:
        return is_deep(image)


def read_pixels(path: str | Path) -> np.ndarray:
    """Read an image as RGB ``(H, W, 3)``, as it lies in the file: not rotated.

    Returns:
        uint8, or uint16 where the image is grey with 16 bits per pixel.

    Raises:
        ValueError: The file is no readable image.
    """
    return _read(path, str(path), _pixels_of)


def read_picture(path: str | Path) -> Image.Image:
    """Read an image to be drawn, RGB of 8 bits, as :func:`read_pixels` does; a large one is held once.

    Raises:
        ValueError: The file is no readable image.
    """
    return _read(path, str(path), _picture_of)


def decode_pixels(content: bytes, name: str, most: int) -> np.ndarray:
    """Read an image from the content of a file, as :func:`read_pixels` does.

    Args:
        content: What the file holds.
        name: What the image is called in messages.
        most: Pixels that it may have; it is looked at before anything is decoded.

    Raises:
        ValueError: It is no readable image, or too large.
    """
    return _read(io.BytesIO(content), name, _pixels_of, most)


def _read(
    file: str | Path | io.BytesIO, name: str, content_of: Callable[[Image.Image], T], most: int | None = None
) -> T:
    try:
        with Image.open(file, formats=None if most is None else FORMATS) as image:
            _check_size(image.width, image.height, most)
            return content_of(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # a broken PNG is a syntax error
        msg = f"{name} is no readable image: {str(error).replace(repr(file), 'its content')}"
        raise ValueError(msg) from error


def _check_size(width: int, height: int, most: int | None) -> None:
    if most is not None and width * height > most:
        msg = f"{width} x {height} pixels are more than the {most} that are taken"
        raise ValueError(msg)


class Header(NamedTuple):
    """What a file says of its image before it is decoded.

    Attributes:
        size: Width and height in pixels, as they lie in the file.
        orientation: How the image is to be turned to be upright, by EXIF: 1 for not at all.
        deep: Whether it is grey with 16 bits per pixel.
        fault: Why it cannot be used as an image, if it cannot; as a mask it can.
    """

    size: tuple[int, int]
    orientation: int
    deep: bool
    fault: str | None

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height of the image as a viewer shows it."""
        return self.size[::-1] if self.orientation >= SIDEWAYS else self.size


def read_header(path: str | Path) -> Header | str:
    """Look at the header of an image file; a file that is no image gives the name of its fault."""
    try:
        with Image.open(path) as image:
            # of a PNG, Pillow would decode the pixels to see whether EXIF comes behind them
            exif = {} if image.format == "PNG" and "exif" not in image.info else image.getexif()
            return Header(image.size, exif.get(ExifTags.Base.Orientation, 1), is_deep(image), _mode_fault(image))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return type(error).__name__


def image_fault(path: str | Path) -> str | None:
    """Say what is wrong with an image file by its header alone; ``None`` if nothing is."""
    header = read_header(path)
    fault = header if isinstance(header, str) else header.fault
    return fault and f"{path} ({fault})"


def _pixels_of(image: Image.Image) -> np.ndarray:
    if fault := _mode_fault(image):
        raise ValueError(fault)
    if is_deep(image):
        pixels = np.asarray(image).astype(np.uint16)
        # Of a TIFF whose 0 is white, Pillow turns 8 bits around, but not 16.
        if isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC, 1) == WHITE_IS_ZERO:
            pixels = WHITE["uint16"] - pixels
        return np.repeat(pixels[..., None], 3, axis=2)
    return np.asarray(to_rgb(image))


def _picture_of(image: Image.Image) -> Image.Image:
    if is_deep(image) or _mode_fault(image):
        return to_rgb(_pixels_of(image))
    image.load()
    return to_rgb(image)


def _mode_fault(image: Image.Image) -> str | None:
    if is_deep(image) or image.mode not in UNREADABLE:
        return None
    return (
        f"mode {image.mode}; expected 8 bits per channel, or grey of 16 bits: scale the values to 0..65535 and save "
        "them as uint16"
    )


def as_batch(images: Any, channels: Channels = "rgb") -> np.ndarray:
    """Make a batch ``(B, 3, H, W)``, float32 in [0, 1], number for number as anomalib reads images.

    Args:
        images: An image ``(H, W, 3)`` or ``(3, H, W)``, or a batch of them; uint8 and uint16 are scaled by their range,
            floating-point values must lie in [0, 1]. Where both axes that the channels can be have length 3, they
            come first.
        channels: Order of the channels: ``rgb``, or OpenCV's ``bgr``.

    Raises:
        ValueError: Another number of axes or channels, another type, no pixels, or values that are no image; or unknown
            channels.
    """
    if channels not in {"rgb", "bgr"}:
        msg = f"channels must be rgb or bgr, got {channels!r}."
        raise ValueError(msg)
    batch = channels_first(np.asarray(images))
    if channels == "bgr":
        batch = batch[:, ::-1]
    if batch.dtype.name in WHITE:
        return scaled(batch)
    check_values(batch.dtype.name, batch)
    return batch.astype(np.float32, copy=False)


def scaled(pixels: np.ndarray) -> np.ndarray:
    """Bring pixels of uint8 or uint16, of any shape, to float32 in [0, 1]."""
    return pixels * np.float32(1 / WHITE[pixels.dtype.name])


def channels_first(images: Any) -> Any:
    """Bring an image or a batch of them, an array or a tensor, to ``(B, 3, H, W)``; see :func:`as_batch`.

    Raises:
        ValueError: Another number of axes or channels, or no pixels.
    """
    shape = tuple(images.shape)
    if len(shape) not in {3, 4} or 3 not in {shape[-3], shape[-1]} or 0 in shape:
        msg = (
            f"Expected an image of shape (H, W, 3) or (3, H, W), or a batch of them, got shape {shape}. A grey image "
            "is given three times, np.stack([image] * 3), and one with transparency without it, image[..., :3]."
        )
        raise ValueError(msg)
    batch = images if len(shape) == 4 else images[None]
    return batch if batch.shape[1] == 3 else batch.swapaxes(1, 3).swapaxes(2, 3)


def to_rgb(image: Image.Image | np.ndarray) -> Image.Image:
    """Turn a PIL image, or uint8 or uint16 ``(H, W, 3)`` or ``(H, W)``, into an RGB image.

    Raises:
        ValueError: An array of another type or shape.
    """
    if isinstance(image, Image.Image):
        if not is_deep(image):
            return image if image.mode == "RGB" else image.convert("RGB")  # which copies what is RGB already
        image = np.asarray(image).astype(np.uint16)
    if image.dtype.name not in WHITE or image.ndim not in {2, 3} or (image.ndim == 3 and image.shape[2] not in {1, 3}):
        msg = (
            f"An image array must be uint8 or uint16 of shape (H, W, 3) or (H, W), got {image.dtype} of shape "
            f"{image.shape}. Scale floats to 0..255 and put channels last."
        )
        raise ValueError(msg)
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    return to_rgb(Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image))


def check_values(dtype: str, images: Any, slack: float = ROUNDING) -> None:
    """Refuse an array or tensor whose values are no image.

    Args:
        dtype: Name of their type.
        images: The values.
        slack: How far they may lie outside [0, 1].

    Raises:
        ValueError: They are no floating-point numbers between 0 and 1.
    """
    if not dtype.startswith(("float", "bfloat")):
        msg = f"Expected an image of uint8, uint16, or floating-point values in [0, 1], got {dtype}."
        raise ValueError(msg)
    # amin reads a tensor where it lies, which min copies first
    ends = (images.amin(), images.amax()) if hasattr(images, "amin") else (images.min(), images.max())
    lowest, highest = map(float, ends)  # of NaN, either is NaN, and nothing is above it
    if not (lowest >= -slack and highest <= 1 + slack):
        msg = (
            f"Floating-point values of an image must lie in [0, 1], got {lowest:g} to {highest:g}: divide by the value "
            "of white, replace what is not a number, and do not normalise; or give uint8 or uint16."
        )
        raise ValueError(msg)
