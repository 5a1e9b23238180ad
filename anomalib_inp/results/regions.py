# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Defects with their places and sizes: the connected regions of a mask, in pixels of the image."""

from typing import NamedTuple

import cv2
import numpy as np

from anomalib_inp.frame import CropBox

FINER = 4
"""A contour is traced on pixels that are so many times finer than those of the map, so that it encloses all of them."""
STRAIGHT = 0.5
"""How far a contour may leave the steps of the map's pixels, in such pixels."""


class Region(NamedTuple):
    """A connected region above the pixel threshold; places are pixels of the whole image, from its upper left corner.

    Attributes:
        box: Left, top, right and bottom.
        contour: Points ``(x, y)`` around it; holes are left out.
        area: Pixels.
        area_percent: Per cent of the whole image.
        peak: Highest raw value of the anomaly map in it.
        mean: Mean raw value in it.
    """

    box: tuple[int, int, int, int]
    contour: list[tuple[int, int]]
    area: float
    area_percent: float
    peak: float
    mean: float


def find_regions(
    mask: np.ndarray, raw_map: np.ndarray, crop_box: CropBox, size: tuple[int, int], smallest_area: float = 0.0
) -> tuple[list[Region], np.ndarray]:
    """Find the regions of a mask: pixels that touch, also by a corner, belong together.

    Args:
        mask: Places above the pixel threshold, bool ``(h, w)``.
        raw_map: Raw values there ``(h, w)``.
        crop_box: The part of the image that both cover.
        size: Width and height of the image in pixels.
        smallest_area: Smaller regions are left out; pixels of the image.

    Returns:
        The regions, the highest peak first, and the mask with nothing else in it.
    """
    columns = (crop_box.right - crop_box.left) * size[0] / mask.shape[1]  # pixels of the image to one of the map
    rows = (crop_box.bottom - crop_box.top) * size[1] / mask.shape[0]
    corner = np.array([crop_box.left * size[0], crop_box.top * size[1]])
    step = np.array([columns, rows])
    count, numbers, stats, _ = cv2.connectedComponentsWithStats(np.ascontiguousarray(mask, np.uint8), connectivity=8)
    regions, kept = [], np.zeros(mask.shape, bool)
    for number in range(1, count):
        left, top, width, height, pixels = map(int, stats[number])
        area = pixels * columns * rows
        if area < smallest_area:
            continue
        part = np.s_[top : top + height, left : left + width]
        inside = numbers[part] == number
        kept[part] |= inside
        values = raw_map[part][inside]
        ends = np.array([[left, top], [left + width, top + height]]) * step + corner
        outline = _contour(inside) + np.array([left, top])
        regions.append(
            Region(
                tuple(int(value) for value in ends.round().ravel()),  # type: ignore[arg-type]
                _whole(outline * step + corner),
                round(area, 1),
                100 * area / (size[0] * size[1]),
                float(values.max()),
                float(values.mean(dtype=np.float64)),
            )
        )
    return sorted(regions, key=lambda region: -region.peak), kept


def _whole(points: np.ndarray) -> list[tuple[int, int]]:
    """Round points ``(N, 2)`` to pixels; of those that become the same, one is kept."""
    return list(dict.fromkeys((int(x), int(y)) for x, y in points.round()))


def _contour(inside: np.ndarray) -> np.ndarray:
    """Trace the outer contour of a connected mask ``(h, w)``: points ``(N, 2)`` in its pixels, from its corner."""
    fine = np.repeat(np.repeat(inside.astype(np.uint8), FINER, axis=0), FINER, axis=1)
    found, _ = cv2.findContours(fine, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    longest = max(found, key=len)  # parts that touch by a corner touch here as well
    points = cv2.approxPolyDP(longest, STRAIGHT * FINER, closed=True).reshape(-1, 2)
    return (points + 0.5) / FINER
