# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

from pathlib import Path

import numpy as np
import pytest
from anomalib.data import MVTecAD
from PIL import Image

from anomalib_inp.data import large_sample, sample
from anomalib_inp.data.large_sample import AREAS, SHAPES, write_large_sample_data
from anomalib_inp.data.sample import CATEGORIES, write_sample_data


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the side."""
    monkeypatch.setattr(large_sample, "SIZE", (384, 512))


def test_layout_and_areas(tmp_path: Path) -> None:
    root = write_large_sample_data(tmp_path / "data")
    data = MVTecAD(root=root, category="grass", num_workers=0)
    data.prepare_data()
    data.setup()
    assert len(data.train_data) == 12
    assert len(data.test_data) == 16 + 4 * 8
    for area in AREAS:
        for path in sorted((root / "grass" / "ground_truth" / f"{area:g}").iterdir()):
            mask = np.asarray(Image.open(path))
            assert np.unique(mask).tolist() == [0, 255]
            assert (mask > 0).sum() == round(area / 100 * 384 * 512)
    assert "skimage" not in (root / "README.txt").read_text()
    assert write_large_sample_data(root) == root  # it is there
    with pytest.raises(FileExistsError, match="Nothing was written"):
        write_sample_data(root)


@pytest.mark.parametrize("area", AREAS)
@pytest.mark.parametrize("index", range(8))
def test_mask_is_exactly_what_the_defect_changed(area: float, index: int) -> None:
    category = CATEGORIES[index % 3]
    clean, defective, mask = large_sample._defect_sample(category, area, index, seed=3)
    change = np.abs(defective.astype(int) - clean.astype(int))
    np.testing.assert_array_equal(change >= sample.MIN_CHANGE, mask)
    np.testing.assert_array_equal(change > 0, mask)
    rows, columns = np.nonzero(mask)
    extent = max(np.ptp(rows), np.ptp(columns)) + 1
    long = SHAPES[index % 4] == "scratch"
    assert extent > 2.2 * np.sqrt(mask.sum()) if long else extent < 2.2 * np.sqrt(mask.sum())


def test_training_and_test_pixels_are_disjoint(monkeypatch: pytest.MonkeyPatch) -> None:
    photograph = np.full((512, 512), 200, dtype=np.uint8)
    photograph[sample.TRAIN_ROWS] = 50
    monkeypatch.setattr(large_sample, "photograph", lambda category: photograph)
    files = dict(large_sample._files("gravel", seed=0))
    assert max(image.max() for path, image in files.items() if path.startswith("train/")) < 100
    assert min(image.min() for path, image in files.items() if path.startswith("test/good/")) > 150


def test_a_surface_is_mirrored_on_without_a_seam() -> None:
    """Neighbouring pixels differ no more than in the photograph."""
    photograph = sample.photograph("brick")[sample.TEST_ROWS].astype(int)
    surface = large_sample._surface("brick", sample.TEST_ROWS, np.random.default_rng(0)).astype(int)
    for axis in (0, 1):
        assert np.abs(np.diff(surface, axis=axis)).max() <= np.abs(np.diff(photograph, axis=axis)).max() * 1.04 + 1
