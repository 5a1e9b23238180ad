# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Looks at the folders of a data set before anomalib reads them: it pairs images and masks by position."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from anomalib.data import AnomalibDataModule, Folder
from anomalib.data.utils.path import is_within_directory
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn

from anomalib_inp.data.file_checks import DataError
from anomalib_inp.data.quirks import suffixes_read
from anomalib_inp.files import IMAGE_SUFFIXES, first_few, image_files, stem_of


def check_layout(datamodule: LightningDataModule | None) -> None:
    """Name what a data module would read wrongly, or leave out.

    Raises:
        DataError: The path is one that anomalib does not open. In the layout of MVTec AD, a file is in no place of an
            image, a mask has no image or an image has no mask, or all images are of a format that is not read. Of
            folders of any name, one is not there, has hidden files, or there are more images than masks or the reverse.

    """
    place = Path(getattr(datamodule, "root", None) or ".", str(getattr(datamodule, "category", "") or ""))
    if isinstance(datamodule, AnomalibDataModule) and not str(place).isascii():
        msg = (
            f"anomalib opens no data whose path has letters beyond ASCII, such as {place}. Rename the folder, or give "
            "it by a link with another name."
        )
        raise DataError(msg)
    if isinstance(datamodule, Folder):
        _check_folders(datamodule)
    suffixes = suffixes_read(datamodule)
    if datamodule is None or not suffixes:
        return
    folder = Path(datamodule.root, datamodule.category)
    if (folder / "test").is_dir():
        _check_mvtec(folder, suffixes, type(datamodule).__name__)


def _check_mvtec(folder: Path, suffixes: Sequence[str], name: str) -> None:
    there = image_files(folder)
    left_out = ""
    if ignored := [path for path in there if path.suffix not in suffixes]:
        kinds = ", ".join(sorted({path.suffix for path in ignored}))
        left_out = (
            f"{name} reads only {' and '.join(suffixes)}: {len(ignored)} files ({kinds}) of {folder} are left out. "
            "Convert them, or name the folders of images to the data module Folder."
        )
        if len(ignored) == len(there):
            raise DataError(left_out)
        rank_zero_warn(left_out)
    read = [path for path in folder.rglob("*") if path.suffix in suffixes and is_within_directory(folder, path)]
    _warn_of_links([path for path in there if path.suffix in suffixes], read, name)
    if misplaced := sorted(path for path in read if not _is_in_place(path, folder)):
        msg = (
            f"{name} takes images from train/good and test/<kind>, and masks from ground_truth/<defect>, of {folder}, "
            f"but there are others: {first_few(_below(misplaced, folder))}. Move or remove them."
        )
        raise DataError(msg)
    if faults := list(_unpaired(read, folder)):
        msg = (
            f"Every image in test/<defect> needs its mask in ground_truth/<defect>, NNN.png and NNN_mask.png: "
            f"{first_few(faults)}. Add what is missing or remove what is left over."
        )
        if left_out:
            msg += f" {left_out}"
        if not any("ground_truth" in path.relative_to(folder).parts for path in read):
            msg += " Images without any masks are read by the data module Folder, and have image metrics alone."
        raise DataError(msg)


def _is_in_place(path: Path, folder: Path) -> bool:
    parts = path.relative_to(folder).parts
    if len(parts) != len(("split", "kind", "file")) or any(part.startswith(".") for part in parts) or path.is_dir():
        return False
    split, kind, _ = parts
    return (split == "train" and kind == "good") or split == "test" or (split == "ground_truth" and kind != "good")


def _unpaired(read: Iterable[Path], folder: Path) -> Iterator[str]:
    by_place: dict[tuple[str, str], list[Path]] = {}
    for path in sorted(read, key=str):  # as anomalib sorts them
        split, kind, _ = path.relative_to(folder).parts
        by_place.setdefault((split, kind), []).append(path)
    for kind in sorted({kind for split, kind in by_place if split != "train" and kind != "good"}):
        images, masks = by_place.get(("test", kind), []), by_place.get(("ground_truth", kind), [])
        stems, marked = [path.stem for path in images], [stem_of(path) for path in masks]
        yield from (f"{path} has no mask" for path in images if path.stem not in marked)
        yield from (
            f"the mask {path} has no image" for path, stem in zip(masks, marked, strict=True) if stem not in stems
        )
        yield from (
            f"{path} has two masks, or its name is that of two images"
            for path in images
            if stems.count(path.stem) > 1 or marked.count(path.stem) > 1
        )
        if sorted(stems) == sorted(marked) and stems != marked:
            image, other = next(pair for pair in zip(images, masks, strict=True) if pair[0].stem != stem_of(pair[1]))
            yield (
                f"by the order of the names in {image.parent}, {image.name} would be given the mask {other.name}: fill "
                "numbers up with zeros"
            )


def _check_folders(datamodule: Folder) -> None:
    """Count the images and masks of a data module that names its folders."""

    def found(names: str | Path | Sequence[str | Path] | None) -> list[Path]:
        several = [] if names is None else [names] if isinstance(names, str | Path) else names
        paths: list[Path] = []
        for name in several:
            folder = Path(datamodule.root or ".", name)
            if not folder.is_dir():
                msg = f"There is no folder {folder}. Check root and the names of the folders below it."
                raise DataError(msg)
            read = [path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()]
            hidden = [path for path in read if any(part.startswith(".") for part in path.relative_to(folder).parts)]
            if hidden:
                names = first_few(_below(hidden, folder))
                msg = f"Folder reads hidden files as well: {names} in {folder}. Remove them."
                raise DataError(msg)
            _warn_of_links(image_files(folder), read, "Folder")
            paths += read
        return paths

    found(datamodule.normal_dir)
    found(datamodule.normal_test_dir)
    images, masks = found(datamodule.abnormal_dir), found(datamodule.mask_dir)
    if datamodule.mask_dir is not None and len(images) != len(masks):
        msg = (
            f"Every anomalous image needs one mask, but {datamodule.abnormal_dir} have {len(images)} images and "
            f"{datamodule.mask_dir} have {len(masks)} masks, below {datamodule.root}."
        )
        raise DataError(msg)


def _warn_of_links(there: Iterable[Path], read: Iterable[Path], name: str) -> None:
    """Name images that are there by links alone: anomalib follows none that lead out of the data set."""
    if dropped := sorted(set(there) - set(read)):
        rank_zero_warn(
            f"{len(dropped)} images are links, or in linked folders, which {name} leaves out: "
            f"{first_few([str(path) for path in dropped])}. Copy them, or link the data set's whole folder."
        )


def _below(paths: Iterable[Path], folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in paths]
