# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Files: written in one step, told apart by their content, listed and named; and where caches live."""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from filelock import FileLock
from platformdirs import user_cache_path

P = ParamSpec("P")
R = TypeVar("R")

DISK_ERRORS = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS)
"""What a system says of a disk that takes no more."""

VARIABLE = "ANOMALIB_INP_CACHE"
"""Environment variable that names another folder, for example on a larger disk."""

LONGEST_NAME = 255
"""Bytes that the name of a file may have."""

PIECE = 2**20
"""Bytes that are read at a time."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Suffixes of images, as torchvision lists them."""


OTHER_SUFFIXES = (".gif", ".jfif", ".jpe", ".jp2", ".j2k", ".avif", ".heic", ".heif", ".tga", ".dng", ".exr", ".jxl")
"""Suffixes of images that are not read: neither here nor by anomalib in a training."""


def cache_folder(kind: str) -> Path:
    """Folder of one kind of cache, ``features`` or ``openvino``."""
    named = os.environ.get(VARIABLE)
    return (Path(named).expanduser() if named else user_cache_path("anomalib-inp")) / kind


class DiskError(OSError):
    """A disk does not take a file; the message names both."""

    def __str__(self) -> str:
        """Say it without the number of the error."""
        return str(self.strerror)


def disk_error(path: Path, error: Exception) -> DiskError:
    """Say that a file cannot be written, why, and how much room there is."""
    code = getattr(error, "errno", None) or errno.EIO
    reason = str(error) if code == errno.EIO else os.strerror(code)
    msg = (
        f"{path} cannot be written: {reason}. The disk of {path.parent} has "
        f"{readable(shutil.disk_usage(path.parent).free)} left. What was written before stays; make room, or write "
        "elsewhere."
    )
    return DiskError(code, msg)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file in one step: it is the old one or the new one, never half of either.

    One process at a time: what a killed one has left behind is written over by the next.

    Yields:
        A path beside it, with the same suffix, for the new content; nothing stays there if writing fails.

    Raises:
        DiskError: The disk is full, or takes no files.
    """
    temporary = partial_of(path)
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if isinstance(error, DiskError) or error.errno not in DISK_ERRORS:  # another file's has been said
            raise
        raise disk_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def partial_of(path: Path) -> Path:
    """Name what a file is called until it is complete; a kill may leave it."""
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    if len(os.fsencode(temporary.name)) > LONGEST_NAME:
        temporary = path.with_name(f".{hashlib.blake2b(os.fsencode(path.name)).hexdigest()[:32]}.partial{path.suffix}")
    return temporary


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes of this computer, and threads, from changing a file meanwhile; they wait.

    Who keeps it already may keep it once more.
    """
    name = hashlib.blake2b(os.fsencode(path.resolve()), digest_size=16).hexdigest()
    with ExitStack() as stack:
        with suppress(OSError):  # a disk that is full, or another user's lock: better unlocked than not at all
            stack.enter_context(
                FileLock(Path(tempfile.gettempdir(), f"anomalib-inp-{name}.lock"), mode=0o666, is_singleton=True)
            )
        yield


def in_place(change: Callable[P, R]) -> Callable[P, R]:
    """Let one process at a time change a file, which is the first argument of the function."""

    @wraps(change)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        with locked(Path(str(args[0]))):
            return change(*args, **kwargs)

    return alone


def file_digest(path: Path) -> str:
    """Size and fingerprint of a file."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
        return f"{file.tell()}-{digest.hexdigest()}"


def image_files(folder: Path) -> list[Path]:
    """List the images below a folder, whatever they are of, in the order of their paths.

    Links are followed, also to a file that is not there; a folder is not entered again inside of itself. Hidden files
    and folders are left out, such as ``.ipynb_checkpoints``.
    """
    return [path for path in files_below(folder) if is_image_name(path.name)]


def files_below(folder: Path) -> list[Path]:
    """List the files below a folder that are not hidden, as :func:`image_files` does, whatever they are."""
    return sorted(_files_below(folder, frozenset()))


def _files_below(folder: Path, outer: frozenset[Path]) -> Iterator[Path]:
    real = folder.resolve()
    if real in outer or not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.is_dir():
            if not path.name.startswith("."):
                yield from _files_below(path, outer | {real})
        elif not path.name.startswith(".") and (path.is_file() or path.is_symlink()):
            yield path


def is_image_name(name: str) -> bool:
    """Whether a file of this name is an image, and not hidden."""
    return not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES


def masks_of(folder: Path) -> dict[str, Path]:
    """Find the masks of a kind of defect by the names of their images without suffix: NNN.png or NNN_mask.png."""
    paths = sorted(path for path in folder.iterdir() if is_image_name(path.name)) if folder.is_dir() else []
    return {stem_of(path): path for path in paths}


def stem_of(mask: Path) -> str:
    """Name of the image that a mask is of, without suffix."""
    return mask.stem.removesuffix("_mask")


def readable(size: int) -> str:
    """Say a number of bytes."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def first_few(names: Sequence[str]) -> str:
    """Join the first five names for a message and count the others."""
    more = len(names) - 5
    return "; ".join(names[:5]) + (f"; and {more} more" if more > 0 else "")
