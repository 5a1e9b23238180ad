# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""A picture with one square, and the panels of what is drawn of it."""

import cv2
import numpy as np
from PIL import Image

from anomalib_inp.frame import CropBox
from anomalib_inp.preprocessing import InpPreProcessor

CENTRE = InpPreProcessor((448, 448), (392, 392)).crop_box
HEIGHT, WIDTH = 200, 320
TOP, BOTTOM, LEFT, RIGHT = 60, 90, 200, 230
RED, GREEN = (235, 32, 38), (0, 214, 143)


def square_map(box: CropBox, size: int = 256) -> np.ndarray:
    """The square as a model that inspects only the crop sees it: 1 where the centre of a map pixel lies on it."""
    centres = (np.arange(size) + 0.5) / size
    x = (box.left + centres * (box.right - box.left)) * WIDTH
    y = (box.top + centres * (box.bottom - box.top)) * HEIGHT
    return np.outer((y > TOP) & (y < BOTTOM), (x > LEFT) & (x < RIGHT)).astype(np.float32)


def panels(strip: Image.Image, height: int = 256) -> list[np.ndarray]:
    """Cut the panels out of a strip: whatever stands on the white paper and is a framed panel high."""
    pixels = np.asarray(strip)
    _, _, boxes, _ = cv2.connectedComponentsWithStats((pixels.min(axis=2) < 255).astype(np.uint8), connectivity=8)
    framed = sorted((int(x), int(y), int(w), int(h)) for x, y, w, h, _ in boxes[1:] if h == height + 2)
    return [pixels[y + 1 : y + h - 1, x + 1 : x + w - 1].astype(int) for x, y, w, h in framed]


def centroid(weights: np.ndarray) -> tuple[float, float]:
    """Centre of mass ``(x, y)`` in pixels of the original image."""
    rows, columns = np.indices(weights.shape)
    x = ((columns + 0.5) * weights).sum() / weights.sum() / weights.shape[1] * WIDTH
    y = ((rows + 0.5) * weights).sum() / weights.sum() / weights.shape[0] * HEIGHT
    return x, y


def inside(box: CropBox, shape: tuple[int, ...], margin: int = 2) -> np.ndarray:
    mask = np.zeros(shape[:2], bool)
    mask[
        int(box.top * shape[0]) + margin : int(box.bottom * shape[0]) - margin,
        int(box.left * shape[1]) + margin : int(box.right * shape[1]) - margin,
    ] = True
    return mask
