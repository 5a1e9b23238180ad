# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Names of pictures: no two images of a run have the same."""

import os
from collections.abc import Iterable
from pathlib import Path


def picture_names(paths: Iterable[str | Path], root: Path, taken: Iterable[Path] = ()) -> dict[str, Path]:
    """Name a picture for every image by its path below a folder.

    Args:
        paths: The images, below the folder.
        root: The folder.
        taken: Names that are not for pictures.

    Returns:
        By image, the path of its PNG; of images that differ in their suffix alone, all but one keep it.
    """
    names: dict[str, Path] = {}
    images = {path: Path(path).relative_to(root) for path in paths}
    used = set(taken).union(*(below.parents for below in images.values()))  # a folder may be called as a picture is
    for path, below in images.items():
        name = below.with_suffix(".png")
        if name in used:
            name = below.with_name(f"{below.name}.png")
        used.add(name)
        names[str(path)] = name
    return names


def common_root(paths: Iterable[str | Path]) -> Path:
    """Find the innermost folder that all images lie below."""
    return Path(os.path.commonpath([Path(path).parent for path in paths]))
