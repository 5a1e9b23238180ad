# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Masks of what is inspected: kept as text, laid over maps."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalib_inp.frame import WHOLE_IMAGE, CropBox
from anomalib_inp.results.inspection import EVERYTHING, Inspection


def draw(path: Path, pixels: np.ndarray, mode: str = "L") -> Path:
    Image.fromarray(pixels.astype(np.uint8) * 255).convert(mode).save(path)
    return path


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "1", "P"])
def test_a_mask_is_kept(mode: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).random((30, 50)) > 0.5
    inspection = EVERYTHING.changed(draw(tmp_path / "mask.png", pixels, mode), smallest_area=3)
    again = Inspection(*inspection)
    np.testing.assert_array_equal(again.pixels, pixels)
    assert again.smallest_area == 3
    assert again.changed() == again
    assert again.changed(mask="") == Inspection(3, "")


def test_a_large_mask_is_made_smaller(tmp_path: Path) -> None:
    """Shapes stay; and so do sides of very different length."""
    pixels = np.zeros((2000, 4000), bool)
    pixels[:1000, :2000] = True
    kept = EVERYTHING.changed(draw(tmp_path / "mask.png", pixels)).pixels
    assert kept.shape == (512, 1024)
    assert kept[:256, :512].all()
    assert kept.sum() == 256 * 512
    long = np.arange(5000) > np.array([[10], [10]])
    assert EVERYTHING.changed(draw(tmp_path / "long.png", long)).pixels.shape == (1, 1024)


def test_places_of_a_map(tmp_path: Path) -> None:
    pixels = np.zeros((40, 80), bool)
    pixels[:, 40:] = True
    inspection = EVERYTHING.changed(draw(tmp_path / "mask.png", pixels))
    places = inspection.places(WHOLE_IMAGE, (4, 8))
    np.testing.assert_array_equal(places, np.repeat([[False] * 4 + [True] * 4], 4, axis=0))
    assert inspection.places(CropBox(0.5, 0, 1, 1), (4, 8)) is None  # all that is seen is inspected
    assert EVERYTHING.places(WHOLE_IMAGE, (4, 8)) is None
    with pytest.raises(ValueError, match="nothing to inspect"):
        inspection.places(CropBox(0, 0, 0.5, 1), (4, 8))


def test_what_is_no_mask(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.png cannot be used"):
        EVERYTHING.changed(tmp_path / "none.png")
    (tmp_path / "text.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    with pytest.raises(ValueError, match="no readable image"):
        EVERYTHING.changed(tmp_path / "text.png")
    Image.new("1", (9000, 9000), 1).save(tmp_path / "huge.png")
    with pytest.raises(ValueError, match="too many for a mask"):
        EVERYTHING.changed(tmp_path / "huge.png")
    for area in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="number of pixels"):
            EVERYTHING.changed(smallest_area=area)


def test_masks_of_other_kinds(tmp_path: Path) -> None:
    """16 bits by their range, white everywhere as none, and what is transparent is neither black nor white."""
    pixels = np.full((40, 40), 65535, np.uint16)
    pixels[:20] = 400
    Image.fromarray(pixels).save(tmp_path / "deep.png")
    assert EVERYTHING.changed(tmp_path / "deep.png").pixels.mean() == 0.5
    assert EVERYTHING.changed(draw(tmp_path / "white.png", np.ones((3, 3)), "RGBA")) == EVERYTHING
    strokes = np.zeros((40, 40, 4), np.uint8)
    strokes[:10, :, 3] = 255
    Image.fromarray(strokes).save(tmp_path / "strokes.png")
    with pytest.raises(ValueError, match="save it without transparency"):
        EVERYTHING.changed(tmp_path / "strokes.png")
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no readable image\.$"):
        EVERYTHING.changed(tmp_path / "empty.png")
