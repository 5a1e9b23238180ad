# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import numpy as np
import pytest
from PIL import Image

from anomalib_inp.frame import WHOLE_IMAGE, CropBox, resolve_sizes

CROPS = [WHOLE_IMAGE, CropBox(0.25, 0.0, 0.75, 0.5), CropBox.centre((40, 80), (20, 60))]


@pytest.mark.parametrize(
    ("image_size", "crop_size", "patch_size", "expected"),
    [
        (None, None, 14, ((392, 392), None)),
        (None, None, 16, ((384, 384), None)),
        (None, None, 8, ((392, 392), None)),
        (None, 392, 14, ((448, 448), (392, 392))),
        (None, 384, 16, ((448, 448), (384, 384))),
        (None, [280, 392], 14, ((448, 448), (280, 392))),
        # Only what the model sees consists of patches.
        (500, 392, 14, ((500, 500), (392, 392))),
        ((280, 392), None, 14, ((280, 392), None)),
        ([256, 512], (128, 256), 16, ((256, 512), (128, 256))),
    ],
)
def test_sizes(image_size: object, crop_size: object, patch_size: int, expected: object) -> None:
    assert resolve_sizes(image_size, crop_size, patch_size) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((400, None, 14), r"image_size must be a multiple .* patch size 14 .* got \(400, 400\).*size is \(392, 392\)"),
        ((448, 400, 14), r"crop_size must be a multiple .* patch size 14 .* got \(400, 400\).*size is \(392, 392\)"),
        (((384, 390), None, 16), r"image_size .* got \(384, 390\).*size is \(384, 384\)"),
        ((10, None, 16), r"got \(10, 10\).*size is \(16, 16\)"),
    ],
)
def test_sizes_that_are_no_whole_patches(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_sizes(*arguments)


@pytest.mark.parametrize("box", CROPS)
def test_what_is_inside_is_what_is_cut(box: CropBox) -> None:
    """At the size that the inspected part has in the image, cutting out is slicing."""
    plane = np.arange(40 * 80).reshape(40, 80)
    inside = box.inside((40, 80))
    rows, columns = inside.any(axis=1), inside.any(axis=0)
    assert rows.sum() == round((box.bottom - box.top) * 40)
    assert columns.sum() == round((box.right - box.left) * 80)
    np.testing.assert_array_equal(inside, np.outer(rows, columns))
    np.testing.assert_array_equal(box.cut(plane, (rows.sum(), columns.sum())), plane[np.ix_(rows, columns)])


def test_cutting_takes_the_nearest_pixel() -> None:
    plane = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    np.testing.assert_array_equal(WHOLE_IMAGE.cut(plane, (1, 2)), [[6, 8]])
    np.testing.assert_array_equal(CropBox(0.5, 0, 1, 0.5).cut(plane, (2, 4)), [[3, 3, 4, 4]] * 2)


@pytest.mark.parametrize("box", CROPS)
def test_a_map_lies_in_the_image_where_it_was_cut_out(box: CropBox) -> None:
    rng = np.random.default_rng(0)
    plane = rng.integers(1, 256, (10, 30), dtype=np.uint8)
    affine = box.from_image(plane.shape, (40, 80))
    placed = np.asarray(Image.fromarray(plane).transform((80, 40), Image.Transform.AFFINE, affine))
    np.testing.assert_array_equal(placed > 0, box.inside((40, 80)))
    np.testing.assert_array_equal(box.cut(placed, plane.shape), plane)
