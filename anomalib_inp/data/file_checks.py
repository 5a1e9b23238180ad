# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Looks at the files of a data set, and names the one where something is wrong."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from anomalib.data import AnomalibDataset, Folder
from anomalib.pre_processing.utils.spec import transform_to_spec
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from rich.progress import track
from torchvision.transforms.v2 import Transform

from anomalib_inp.data.quirks import mask_files, suffixes_read
from anomalib_inp.files import first_few, image_files
from anomalib_inp.images import image_fault

MANY = 5000
"""Files from which on looking at their headers takes more than a few seconds."""


class DataError(ValueError):
    """The data cannot be trained or tested on; the message names the file or folder and what to do."""


def check_masks(datamodule: LightningDataModule | None) -> None:
    """Compare images and masks of folders, before anomalib pairs them by position.

    Raises:
        DataError: In the layout of MVTec AD, a mask has no image or an image has no mask, or all images are of a format
            that is not read; in folders of any name, there are more of one than of the other.
    """
    if isinstance(datamodule, Folder):
        _count_masks(datamodule)
    suffixes = suffixes_read(datamodule)
    if datamodule is None or not suffixes:
        return
    folder = Path(datamodule.root, datamodule.category)
    if not (folder / "test").is_dir():
        return
    there = image_files(folder)
    if ignored := [path for path in there if path.suffix not in suffixes]:
        kinds = ", ".join(sorted({path.suffix for path in ignored}))
        left_out = (
            f"{type(datamodule).__name__} reads only {' and '.join(suffixes)}: {len(ignored)} files ({kinds}) "
            f"of {folder} are left out. Convert them, or name the folders of images to the data module Folder."
        )
        if len(ignored) == len(there):
            raise DataError(left_out)
        rank_zero_warn(left_out)
    faults = []
    found = 0
    for defect in sorted({path.name for part in ("test", "ground_truth") for path in (folder / part).glob("*")}):
        if defect == "good" or defect.startswith("."):
            continue
        tested, marked = (
            [path for path in (folder / part / defect).glob("*") if path.suffix in suffixes]
            for part in ("test", "ground_truth")
        )
        images = {path.stem: path for path in tested}
        masks = {path.stem.removesuffix("_mask"): path for path in marked}
        found += len(masks)
        faults += [f"{images[stem]} has no mask" for stem in sorted(images.keys() - masks.keys())]
        faults += [f"the mask {masks[stem]} has no image" for stem in sorted(masks.keys() - images.keys())]
    if faults:
        msg = (
            f"Every image in test/<defect> needs its mask in ground_truth/<defect>, NNN.png and NNN_mask.png: "
            f"{first_few(faults)}. Add what is missing or remove what is left over."
        )
        if ignored:
            msg += f" {left_out}"
        if not found:
            msg += " Images without any masks are read by the data module Folder, and have image metrics alone."
        raise DataError(msg)


def _count_masks(datamodule: Folder) -> None:
    """Count the images and masks of a data module that names its folders."""

    def found(names: str | Path | Sequence[str | Path] | None) -> list[Path]:
        several = [] if names is None else [names] if isinstance(names, str | Path) else names
        return [path for name in several for path in image_files(Path(datamodule.root or ".", name))]

    images, masks = found(datamodule.abnormal_dir), found(datamodule.mask_dir)
    if datamodule.mask_dir is not None and len(images) != len(masks):
        msg = (
            f"Every anomalous image needs one mask, but {datamodule.abnormal_dir} have {len(images)} images and "
            f"{datamodule.mask_dir} have {len(masks)} masks, below {datamodule.root}."
        )
        raise DataError(msg)


def is_repeatable(transform: Transform | None) -> bool:
    """Whether a transform surely does the same to an image every time."""
    try:
        transform_to_spec(transform)
    except ValueError:
        return False
    return True


def files_of(dataset: AnomalibDataset) -> list[str]:
    """List the files that are read, images and masks."""
    samples = dataset.samples
    return [*samples.image_path, *(mask for row in samples.itertuples() for mask in mask_files(row))]


def check_headers(is_mask: Mapping[str, bool]) -> None:
    """Look at the headers of files, and whether each is a mask.

    Raises:
        DataError: A file is no image that can be used.
    """
    paths: Iterable[str] = track(list(is_mask), "Looking at the images") if len(is_mask) > MANY else is_mask
    broken = [fault for path in paths if (fault := image_fault(path, is_mask[path]))]
    if broken:
        msg = f"Files are no images that can be used: {first_few(broken)}. Replace, convert or remove them."
        raise DataError(msg)


def decode_fault(path: str) -> str | None:
    """Say what is wrong with a file by decoding it; ``None`` if nothing is."""
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError) as error:
        return f"{path} ({error})"
    return None
