# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""A category of a few small images in the layout of MVTec AD, which tests may damage."""

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 96


def pixels(index: int = 0) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (SIZE, SIZE), dtype=np.uint8)


def write(path: Path, image: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels() if image is None else image).save(path)
    return path


def mask(rows: slice, columns: slice) -> np.ndarray:
    image = np.zeros((SIZE, SIZE), dtype=np.uint8)
    image[rows, columns] = 255
    return image


def write_part(root: Path) -> Path:
    """Write ``root/part``: 2 training, 1 normal and 3 anomalous test images, their masks apart."""
    for index in range(2):
        write(root / "part/train/good" / f"{index:03}.png", pixels(index))
    write(root / "part/test/good/000.png", pixels(2))
    corners = [(slice(0, 12), slice(0, 12)), (slice(0, 40), slice(70, 96)), (slice(40, 60), slice(40, 60))]
    for index, corner in enumerate(corners):
        write(root / "part/test/dent" / f"{index:03}.png", pixels(3 + index))
        write(root / "part/ground_truth/dent" / f"{index:03}_mask.png", mask(*corner))
    return root
