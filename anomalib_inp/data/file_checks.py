# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Looks at the files of a data set, and names the one where something is wrong."""

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from anomalib.data import AnomalibDataset
from anomalib.pre_processing.utils.spec import transform_to_spec
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from rich.progress import track
from torchvision.transforms.v2 import Transform

from anomalib_inp.data.quirks import mask_files
from anomalib_inp.files import first_few
from anomalib_inp.images import Header, read_header

MANY = 5000
"""Files from which on looking at their headers takes more than a few seconds."""


MOST_MASKS = 2000
"""Masks that are decoded before a run."""
FEW_VALUES = 16
"""Values that a mask may have which numbers its defects; a smoothed or compressed one has more."""
NOTHING, EVERYTHING = "marks nothing", "marks the whole image"


class DataError(ValueError):
    """The data cannot be trained or tested on; the message names the file or folder and what to do."""


def is_repeatable(transform: Transform | None) -> bool:
    """Whether a transform surely does the same to an image every time."""
    try:
        transform_to_spec(transform)
    except ValueError:
        return False
    return True


def files_of(dataset: AnomalibDataset) -> list[str]:
    """List the files that are read, images and masks."""
    return [*dataset.samples.image_path, *(mask for _, mask in pairs_of(dataset))]


def pairs_of(dataset: AnomalibDataset) -> list[tuple[str, str]]:
    """List images with their masks; one with several masks comes several times."""
    return [(row.image_path, mask) for row in dataset.samples.itertuples() for mask in mask_files(row)]


def check_headers(is_mask: Mapping[str, bool]) -> dict[str, Header]:
    """Look at the headers of files, and whether each is a mask.

    Returns:
        The headers.

    Raises:
        DataError: A file is no image that can be used.
    """
    paths: Iterable[str] = track(list(is_mask), "Looking at the images") if len(is_mask) > MANY else is_mask
    headers, broken = {}, []
    for path in paths:
        header = read_header(path)
        fault = header if isinstance(header, str) else None if is_mask[path] else header.fault
        if fault:
            broken.append(f"{path} ({fault})")
        elif isinstance(header, Header):
            headers[path] = header
    if broken:
        msg = f"Files are no images that can be used: {first_few(broken)}. Replace, convert or remove them."
        raise DataError(msg)
    return headers


def check_mask_sizes(pairs: Iterable[tuple[str, str]], headers: Mapping[str, Header]) -> None:
    """Compare masks with their images, by their headers.

    Raises:
        DataError: A mask has another size than its image; where only a viewer turns the image upright, that is said.
    """
    turned, other = [], []
    for path, mask in pairs:
        image, size = headers[path], headers[mask].size
        sizes = f"{mask} has {size[0]} x {size[1]} pixels, its image {path} {image.size[0]} x {image.size[1]}"
        if size == image.size:
            if image.orientation > 1:
                turned.append(f"{path} (orientation {image.orientation})")
        elif size == image.upright:
            sizes += f", turned by EXIF orientation {image.orientation} in a viewer only"
            other.append(sizes)
        else:
            other.append(sizes)
    if other:
        msg = (
            f"A mask must be as large as its image: {first_few(other)}. Draw masks on the pixels as they lie in the "
            "file, or turn the pixels themselves (ImageOps.exif_transpose) and save the image again."
        )
        raise DataError(msg)
    if turned:
        rank_zero_warn(
            f"A viewer turns {len(turned)} images with masks by their EXIF orientation, training and tests do not: "
            f"{first_few(turned)}. See that the masks lie on the pixels as they are in the file."
        )


def check_mask_values(masks: Sequence[str]) -> None:
    """Look at what masks mark, of many at some of them, evenly spread.

    Raises:
        DataError: None of them marks a part of its image.
    """
    chosen = masks[:: len(masks) // MOST_MASKS + 1]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        faults = list(zip(chosen, pool.map(mask_fault, chosen), strict=True))
    named = [f"{mask} {fault}" for mask, fault in faults if fault]
    if not named:
        return
    useless = [fault for _, fault in faults if fault in {NOTHING, EVERYTHING}]
    msg = (
        f"Of {len(chosen)} masks, {len(named)} look wrong: {first_few(named)}. A mask is black, and has any other "
        "value where the defect is; transparency does not count."
    )
    if len(useless) == len(faults):
        raise DataError(msg)
    rank_zero_warn(msg)


def mask_fault(path: str) -> str | None:
    """Say what is suspicious of what a mask marks; ``None`` if nothing is, or it cannot be decoded."""
    try:
        with Image.open(path) as image:
            few = image.mode in {"1", "P"}
            values = np.unique(np.asarray(image.convert("L")))
    except (OSError, SyntaxError, ValueError):
        return None  # named when it is read
    if not values.any():
        return NOTHING
    if values.min() > 0:
        return EVERYTHING
    if len(values) > FEW_VALUES and not few:
        return f"has {len(values)} grey values: all of them but black count as defect"
    return None


def decode_fault(path: str) -> str | None:
    """Say what is wrong with a file by decoding it; ``None`` if nothing is."""
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError) as error:
        return f"{path} ({error})"
    return None
