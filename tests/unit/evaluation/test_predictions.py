# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import numpy as np
import pytest
from reference_metrics import make_data, reference_seven

from anomalib_inp.evaluation import predictions
from anomalib_inp.evaluation.predictions import measure


def images(name: str) -> list[tuple]:
    scores, labels, maps, masks = make_data(name)
    return list(zip(scores.tolist(), labels.astype(bool).tolist(), maps, masks.astype(bool), strict=True))


@pytest.mark.parametrize(("exact_images", "tolerance"), [(2500, 1e-4), (1, 1e-3)])
def test_metrics_are_those_of_all_images(exact_images: int, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictions, "EXACT_IMAGES", exact_images)
    given = images("random")
    values, unmasked = measure(iter(given), len(given))
    assert values == pytest.approx(reference_seven("random"), abs=tolerance)
    assert unmasked == 0


def test_one_missing_mask_leaves_pixels_out() -> None:
    given = images("random")
    given[1] = (*given[1][:3], None)
    values, unmasked = measure(given, len(given))
    expected = {name: value for name, value in reference_seven("random").items() if name.startswith("image")}
    assert values == pytest.approx(expected, abs=1e-4)
    assert unmasked == 1


def test_no_images_have_no_metrics() -> None:
    assert measure([], 0) == ({}, 0)


def test_many_images_take_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels are counted as they come: the iterator may give one map again and again."""
    monkeypatch.setattr(predictions, "EXACT_IMAGES", 1)
    scores, labels, maps, masks = make_data("random")
    shared = np.empty_like(maps[0])

    def one_by_one():
        for score, label, anomaly_map, mask in zip(scores, labels, maps, masks, strict=True):
            shared[...] = anomaly_map
            yield float(score), bool(label), shared, mask.astype(bool)

    values, _ = measure(one_by_one(), len(scores))
    assert values == pytest.approx(reference_seven("random"), abs=1e-3)
