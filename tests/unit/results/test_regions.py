# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Regions: places and sizes in image pixels, worked out by hand and by scikit-image."""

import numpy as np
import pytest
from skimage.draw import polygon2mask
from skimage.measure import label, regionprops

from anomalib_inp.frame import WHOLE_IMAGE, CropBox
from anomalib_inp.results.regions import find_regions


def test_a_rectangle_lies_where_it_lies() -> None:
    """A map of 8 x 10 of the middle half of an image of 80 x 40 pixels: a pixel of it is 4 by 2.5 of the image."""
    mask = np.zeros((8, 10), bool)
    mask[2:4, 5:8] = True
    raw_map = np.arange(80.0).reshape(8, 10)
    (region,), kept = find_regions(mask, raw_map, CropBox(0.25, 0.25, 0.75, 0.75), (80, 40))
    assert region.box == (40, 15, 52, 20)
    assert region.area == 6 * 4 * 2.5
    assert region.area_percent == pytest.approx(100 * 60 / 3200)
    assert (region.peak, region.mean) == (37.0, 31.0)
    np.testing.assert_array_equal(kept, mask)
    xs, ys = zip(*region.contour, strict=True)
    assert (min(xs), max(xs), min(ys), max(ys)) == pytest.approx(region.box[::2] + region.box[1::2], abs=1)


def test_sorted_by_peak_and_small_ones_left_out() -> None:
    mask, raw_map = np.zeros((10, 10), bool), np.zeros((10, 10))
    for row, peak in ((0, 1.0), (4, 3.0), (8, 2.0)):
        mask[row, : row + 1] = True
        raw_map[row, 0] = peak
    regions, kept = find_regions(mask, raw_map, WHOLE_IMAGE, (100, 100), smallest_area=500)
    assert [(region.peak, region.area) for region in regions] == [(3.0, 500), (2.0, 900)]
    assert kept.sum() == 5 + 9
    assert find_regions(mask, raw_map, WHOLE_IMAGE, (100, 100))[0][-1].peak == 1.0
    assert find_regions(mask[1:3], raw_map[1:3], WHOLE_IMAGE, (100, 100)) == ([], pytest.approx(np.zeros((2, 10))))


def test_pixels_that_touch_by_a_corner_are_one_region() -> None:
    (region,), _ = find_regions(np.eye(5, dtype=bool), np.eye(5), WHOLE_IMAGE, (50, 50))
    assert region.box == (0, 0, 50, 50)
    assert region.area == 500


def test_against_scikit_image() -> None:
    """Random blobs: the same boxes, areas, peaks and means; contours enclose nearly the same pixels."""
    rng = np.random.default_rng(0)
    raw_map = rng.normal(size=(40, 60))
    for _ in range(4):
        raw_map = sum(np.roll(raw_map, (y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1)) / 9
    mask = raw_map > np.quantile(raw_map, 0.8)
    regions, _ = find_regions(mask, raw_map, WHOLE_IMAGE, (600, 400))
    found = {
        (part.bbox[1] * 10, part.bbox[0] * 10, part.bbox[3] * 10, part.bbox[2] * 10): part
        for part in regionprops(label(mask, connectivity=2), raw_map)
    }
    assert len(regions) > 5
    assert sorted(found) == sorted(region.box for region in regions)
    for region in regions:
        part = found[region.box]
        assert region.area == part.area * 100
        assert region.peak == pytest.approx(part.intensity_max)
        assert region.mean == pytest.approx(part.intensity_mean)
        drawn = polygon2mask((400, 600), np.array(region.contour)[:, ::-1] - 0.5)
        inside = np.repeat(np.repeat(label(mask, connectivity=2) == part.label, 10, 0), 10, 1)
        if part.euler_number == 1 and part.area > 20:  # holes are left out
            assert (drawn & inside).sum() / (drawn | inside).sum() > 0.85
    assert regions == sorted(regions, key=lambda region: -region.peak)
