# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What a photograph is like, whatever is on it: how bright and how sharp."""

from typing import NamedTuple

import cv2
import numpy as np

from anomalib_inp.images import WHITE

SIDE = 256
"""Pixels of the longer side that images are looked at with."""


class ImageStatistics(NamedTuple):
    """What a photograph is like.

    Attributes:
        brightness: Mean grey value, from 0 to 1.
        sharpness: Standard deviation of the Laplacian over that of the grey values: how much of the contrast is
            between neighbours. More or less light leaves it as it is.
    """

    brightness: float
    sharpness: float


def measure_image(pixels: np.ndarray) -> ImageStatistics:
    """Measure an image ``(H, W, 3)``, uint8 or uint16."""
    height, width = pixels.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).astype(np.float32) / WHITE[pixels.dtype.name]
    grey = small @ np.array([0.299, 0.587, 0.114], np.float32)
    contrast, edges = float(grey.std()), float(cv2.Laplacian(grey, cv2.CV_32F).std())
    return ImageStatistics(float(grey.mean()), edges / contrast if contrast > 1e-4 else 0.0)
