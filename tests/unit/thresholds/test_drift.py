# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Drift: told when something has changed, and no more often than stated when nothing has."""

import numpy as np
import pytest
from scipy.stats import ks_2samp

from anomalib_inp.results.image_statistics import measure_image
from anomalib_inp.thresholds.drift import LEVEL, SPAN, STEP, WINDOW, DriftMonitor

QUANTITIES = ("score", "brightness", "sharpness")


def test_the_p_value_is_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    reference, seen = rng.normal(size=40), rng.normal(0.3, 1, 130)
    monitor = DriftMonitor({"score": reference.tolist()})
    for value in seen:
        monitor.add({"score": value})
    (found,) = monitor.found
    assert found.p_value == ks_2samp(reference, seen[25:125]).pvalue  # the last comparison was at 125
    assert found.reference == pytest.approx(np.median(reference))
    assert found.current == pytest.approx(np.median(seen[25:125]))


@pytest.mark.parametrize("count", [12, 60, 400])
def test_what_has_not_changed_raises_no_alarm(count: int) -> None:
    """200 times 1,000 images of the same distribution; reference and stream are drawn anew each time."""
    rng, alarms = np.random.default_rng(count), 0
    for _ in range(200):
        monitor = DriftMonitor({name: rng.gamma(3, 1, count) for name in QUANTITIES})
        stream = rng.gamma(3, 1, (SPAN, len(QUANTITIES)))
        alarms += any(monitor.add(dict(zip(QUANTITIES, values, strict=True))) for values in stream)
    assert alarms <= 2 + 200 * LEVEL


def test_what_has_changed_is_told_once_and_so_is_its_end() -> None:
    rng = np.random.default_rng(0)
    monitor = DriftMonitor({"score": rng.normal(0, 1, 60), "brightness": rng.normal(0.5, 0.02, 60)})
    told: list[tuple[int, str]] = []
    for index in range(900):
        brightness = rng.normal(0.4 if 300 <= index < 600 else 0.5, 0.02)
        said = monitor.add({"score": rng.normal(), "brightness": brightness})
        told += [(index, sentence) for sentence in said]
    (begin, first), (end, second) = told
    assert 300 <= begin < 300 + WINDOW
    assert "the light has changed" in first
    assert 600 <= end < 600 + 2 * WINDOW
    assert second == "No more drift of brightness."


def test_too_few_say_nothing() -> None:
    monitor = DriftMonitor({"score": [1.0] * 9, "brightness": []})
    assert not any(monitor.add({"score": 100.0}) for _ in range(200))
    assert monitor.found == []
    short = DriftMonitor({"score": np.linspace(0, 1, 50)})
    assert not any(short.add({"score": 5.0}) for _ in range(STEP - 1))
    assert "Drift" in short.finish()[0]
    assert short.found[0].drifts


def test_light_is_told_from_sharpness() -> None:
    rng = np.random.default_rng(0)
    image = np.kron(rng.integers(60, 200, (40, 40, 1), dtype=np.uint8), np.ones((8, 8, 3), np.uint8))
    plain, dark = measure_image(image), measure_image((image * 0.8).astype(np.uint8))
    blurred = image
    for shift in ((0, 2), (2, 0), (0, -2), (-2, 0)):
        blurred = (blurred / 2 + np.roll(image, shift, (0, 1)) / 2).astype(np.uint8)
    soft = measure_image(blurred)
    assert dark.brightness == pytest.approx(0.8 * plain.brightness, rel=0.01)
    assert dark.sharpness == pytest.approx(plain.sharpness, rel=0.01)
    assert soft.brightness == pytest.approx(plain.brightness, rel=0.02)
    assert soft.sharpness < 0.8 * plain.sharpness
    deep = measure_image(image.astype(np.uint16) * 257)
    assert deep == pytest.approx(plain, rel=1e-3)
    assert measure_image(np.full((5, 300, 3), 255, np.uint8)) == (pytest.approx(1), 0)
