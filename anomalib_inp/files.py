# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Files: written in one step, told apart by their content, listed and named; and where caches live."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from platformdirs import user_cache_path

VARIABLE = "ANOMALIB_INP_CACHE"
"""Environment variable that names another folder, for example on a larger disk."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Suffixes of images, as torchvision lists them."""

DEEP_MODES = {"I;16", "I;16B", "I;16L", "I;16N", "I", "F"}
"""Pillow's modes that anomalib's reader clips to 8 bits instead of scaling."""


def cache_folder(kind: str) -> Path:
    """Folder of one kind of cache, ``features`` or ``openvino``."""
    named = os.environ.get(VARIABLE)
    return (Path(named).expanduser() if named else user_cache_path("anomalib-inp")) / kind


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file in one step: it is the old one or the new one, never half of either.

    One process at a time: what a killed one has left behind is written over by the next.

    Yields:
        A path beside it, with the same suffix, for the new content; nothing stays there if writing fails.
    """
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def file_digest(path: Path) -> str:
    """Size and fingerprint of a file."""
    content = path.read_bytes()
    return f"{len(content)}-{hashlib.blake2b(content, digest_size=16).hexdigest()}"


def image_files(folder: Path) -> list[Path]:
    """List the images below a folder, whatever they are of."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def header_fault(path: str | Path, is_mask: bool = False) -> str | None:
    """Say what is wrong with a file by its header alone; ``None`` if nothing is."""
    try:
        with Image.open(path) as image:
            deep = image.mode in DEEP_MODES and not is_mask
            return f"{path} (mode {image.mode}; expected 8 bits per channel)" if deep else None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        return f"{path} ({type(error).__name__})"


def first_few(names: Sequence[str]) -> str:
    """Join the first five names for a message and count the others."""
    more = len(names) - 5
    return "; ".join(names[:5]) + (f"; and {more} more" if more > 0 else "")
