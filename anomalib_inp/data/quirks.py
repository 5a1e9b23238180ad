# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Whatever is special of a data set or of anomalib's reading of it; everywhere else all data sets are alike."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from anomalib.data import MPDD, VAD, AnomalibDataModule, AnomalibDataset, MVTecAD, MVTecAD2
from anomalib.data.datasets.image.mvtecad import IMG_EXTENSIONS
from anomalib.data.utils import LabelName
from lightning import LightningDataModule


def mask_files(row: Any) -> list[str]:
    """List the masks of an image, a row of a data set's table.

    MVTec LOCO has a list of them. What has none may hold None, NaN or an empty text. A normal image has none: BTech
    names masks of normal images that are not there.
    """
    mask = getattr(row, "mask_path", None)
    if row.label_index != LabelName.ABNORMAL:
        return []
    several = mask if isinstance(mask, list) else [mask]
    return [path for path in several if isinstance(path, str) and path]


def suffixes_read(datamodule: LightningDataModule | None) -> tuple[str, ...]:
    """List the suffixes of what a data module reads in the layout of MVTec AD, as they are written.

    Empty for all others: folders of the same names have other things in them. BTech calls normal images ``ok``, MVTec
    LOCO and AutoVI have a folder of masks per image.
    """
    return tuple(IMG_EXTENSIONS) if isinstance(datamodule, MVTecAD | MPDD | VAD) else ()


def test_images(module: AnomalibDataModule) -> AnomalibDataset:
    """Find all test images of a data module that is set up: those of MVTec AD 2 lose the normal ones on the way."""
    return module.test_public_data if isinstance(module, MVTecAD2) else module.test_data


def category_folders(root: Path, names: Collection[str]) -> list[str]:
    """List the categories that lie in the folder of a data set.

    Args:
        root: The folder, which may be missing.
        names: Categories of the published data set; none where any folder is one. Some data sets have them one folder
            further down: VisA in ``visa_pytorch``, Real-IAD in ``realiad_256``.
    """
    there = [path for path in root.iterdir() if _is_folder(path)] if root.is_dir() else []
    if names:
        below = [path for folder in there for path in (folder / name for name in names) if _is_folder(path)]
        split = [path for path in there if any(_is_folder(path / part) for part in ("train", "test"))]
        there = [path for path in there if path.name in names] + below + split
    return sorted({path.name for path in there})


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")
