# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Resizes images with antialiasing, number for number as OpenVINO does on a CPU.

OpenVINO writes a program of its own for each size of an image, of 90 MB and more, and takes a second to write it.
"""

from functools import lru_cache

import numpy as np

LINES = 16
"""Rows or columns that are worked on at a time, so that they stay in the processor's cache."""


def resize(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize images ``(B, C, H, W)``, float32, to another height and width: bilinear, antialiased where they shrink."""
    narrow = _resize_last(images, size[1])
    return _resize_last(narrow.swapaxes(2, 3), size[0]).swapaxes(2, 3)


def _resize_last(images: np.ndarray, length: int) -> np.ndarray:
    """Resize images ``(B, C, lines, pixels)`` to another number of pixels in each line."""
    if images.shape[3] == length:
        return images
    first, weights = _weights(images.shape[3], length)
    result = np.zeros((*images.shape[:3], length), dtype=np.float32)
    for start in range(0, images.shape[2], LINES):
        pixels = np.ascontiguousarray(images[:, :, start : start + LINES].transpose(3, 0, 1, 2), dtype=np.float64)
        total = np.zeros((length, *pixels.shape[1:]))
        for step, weight in enumerate(weights.T):
            term = pixels[np.minimum(first + step, len(pixels) - 1)]
            # The product of two float32 is exact in float64: rounded after the sum, it is their fused multiply-add.
            term *= weight[:, None, None, None]
            term += total
            total[...] = term.astype(np.float32)
        result[:, :, start : start + LINES] = total.transpose(1, 2, 3, 0)
    return result


@lru_cache(maxsize=64)
def _weights(length: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """First pixel ``(new,)`` that each new pixel is made of, and the weights ``(new, steps)`` of it and those after it.

    Every step is rounded to float32, in OpenVINO's order.
    """
    one, half = np.float32(1), np.float32(0.5)
    scale = np.float32(new) / np.float32(length)
    radius = max(one / scale, one)
    centre = (np.arange(new, dtype=np.float32) + half) / scale
    first = np.maximum((centre - radius + half).astype(int), 0)
    counts = np.minimum((centre + radius + half).astype(int), length) - first
    steps = np.arange(counts.max())
    distance = (first[:, None] + steps).astype(np.float32) - centre[:, None] + half
    weights = np.maximum(one - np.abs(distance * (one / radius)), np.float32(0))
    weights[steps >= counts[:, None]] = 0
    total = np.zeros(new, dtype=np.float32)
    for column in weights.T:
        total += column
    return first, weights / total[:, None]
