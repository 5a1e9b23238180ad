# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Two runs: ranks beside scikit-learn's, verdicts beside a worked example, intervals by what must be so."""

import math

import numpy as np
import pytest
from rich.console import Console
from sklearn.metrics import roc_auc_score

from anomalib_inp.results.score_table import Row
from anomalib_inp.thresholds.comparison import Comparison, Decisions, compare, table

COUNT = 60


def rows(normal: np.ndarray, anomalous: np.ndarray, threshold: float | None = 1.0) -> list[Row]:
    of_kinds = (("good", normal), ("hole", anomalous))
    return [
        Row(f"{kind}/{place}.png", score, score, None if threshold is None else bool(score > threshold), kind=kind)
        for kind, scores in of_kinds
        for place, score in enumerate(scores.tolist())
    ]


@pytest.fixture
def scores() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(0, 1, COUNT), rng.normal(1.5, 1, COUNT)


def test_a_run_beside_itself_is_no_better(scores) -> None:
    normal, anomalous = scores
    found = compare(rows(*scores), rows(*scores), 0.05)
    expected = roc_auc_score([0] * COUNT + [1] * COUNT, [*normal, *anomalous])
    assert found.auroc == pytest.approx((expected, expected, 0, 0))
    highest = np.sort(normal)[-4]  # three of sixty are above it
    caught = (anomalous > highest).mean()
    assert (found.false_alarms, found.caught) == (3, pytest.approx((caught, caught, 0, 0)))
    assert found.of_normal == found.of_anomalous == Decisions(0, 0, 1.0)
    assert found[:3] == (COUNT, COUNT, 0)


def test_equal_scores_count_half() -> None:
    tied = rows(np.array([0.0, 1.0, 1.0]), np.array([1.0, 2.0]))
    expected = roc_auc_score([0, 0, 0, 1, 1], [0.0, 1.0, 1.0, 1.0, 2.0])
    assert compare(tied, tied, 0.0).auroc.first == pytest.approx(expected)


def test_a_better_run_is_told_from_chance(scores) -> None:
    normal, anomalous = scores
    better = compare(rows(*scores), rows(normal, anomalous + 1), 0.02, resamples=500)
    assert better.auroc.first < better.auroc.second
    assert 0 < better.auroc.low < better.auroc.second - better.auroc.first < better.auroc.high
    assert 0 < better.caught.low < better.caught.high
    worse = compare(rows(normal, anomalous + 1), rows(*scores), 0.02, resamples=500)
    assert worse.auroc.high == pytest.approx(-better.auroc.low, abs=1e-9)
    noise = np.random.default_rng(1).normal(0, 0.3, (2, COUNT))
    alike = compare(rows(*scores), rows(normal + noise[0], anomalous + noise[1]), 0.02, resamples=500)
    assert alike.auroc.low < 0 < alike.auroc.high


def test_the_same_images_are_drawn_for_both(scores) -> None:
    """What both runs share is no difference: a little noise on one gives an interval far narrower than its own."""
    normal, anomalous = scores
    noise = np.random.default_rng(1).normal(0, 0.05, (2, COUNT))
    paired = compare(rows(*scores), rows(normal + noise[0], anomalous + noise[1]), 0.02, resamples=500).auroc
    rng = np.random.default_rng(2)
    apart = compare(rows(*scores), rows(rng.normal(0, 1, COUNT), rng.normal(1.5, 1, COUNT)), 0.02, resamples=500).auroc
    assert paired.high - paired.low < (apart.high - apart.low) / 4


def test_verdicts_are_compared_by_mcnemar() -> None:
    """One image that the first alone is right of and nine of the second: 2 * (1 + 10) / 2**10 = 0.0215."""
    first, second = np.full(10, 0.0), np.full(10, 2.0)
    first[0], second[0] = 2.0, 0.0
    found = compare(rows(np.zeros(3), first), rows(np.zeros(3), second), 0.0)
    assert found.of_anomalous == Decisions(1, 9, pytest.approx(22 / 1024))
    assert found.of_normal == Decisions(0, 0, 1.0)
    assert compare(rows(np.zeros(3), first, None), rows(np.zeros(3), second), 0.0).of_anomalous is None


def test_images_that_one_lacks_are_left_out(scores) -> None:
    first = [*rows(*scores), Row("odd.png", 1.0, 1.0), Row("only.png", 1.0, 1.0, kind="good")]
    second = [*rows(*scores)[1:], Row("good/0.png", error="broken", kind="good"), Row("odd.png", 1.0, 1.0)]
    found = compare(first, second, 0.02, resamples=20)
    assert (found.normal, found.anomalous, found.left_out) == (COUNT - 1, COUNT, 3)


def test_what_cannot_be_compared_is_refused(scores) -> None:
    normal, _ = scores
    with pytest.raises(ValueError, match="got none of 120 and 1 images"):
        compare(rows(*scores), [Row("other.png", 1.0, 1.0, kind="good")], 0.02)
    with pytest.raises(ValueError, match="one of the runs has no threshold"):
        compare(rows(normal, np.zeros(0)), rows(*scores, threshold=None), 0.02)
    other = [row._replace(kind="dent") if row.kind == "hole" else row for row in rows(*scores)]
    with pytest.raises(ValueError, match=r"different kinds of the same images, hole/0\.png for one"):
        compare(rows(*scores), other, 0.02)
    for share in (1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match="share of false alarms must lie between 0 and 1"):
            compare(rows(*scores), rows(*scores), share)


def test_of_normal_images_alone_verdicts_are_compared(capsys) -> None:
    """Of five images that the second alone is right of: 2 / 2**5."""
    first, second, none = np.arange(8.0), np.zeros(8), np.zeros(0)
    found = compare(rows(first, none, 2.0), rows(second, none, 2.0), 0.02)
    assert (found.normal, found.anomalous, found.auroc, found.caught) == (8, 0, None, None)
    assert found.of_normal == Decisions(0, 5, pytest.approx(2 / 32))
    assert found.of_anomalous is None
    Console(width=120).print(table(found))
    said = capsys.readouterr().out
    assert "normal images, right alone" in said
    assert "AUROC" not in said
    assert "anomalous" not in said


def test_a_single_image_of_a_kind_has_no_interval() -> None:
    found = compare(rows(np.zeros(1), np.ones(3)), rows(np.zeros(1), np.ones(3)), 0.0)
    assert found.auroc[:2] == (1.0, 1.0)
    assert math.isnan(found.auroc.low)


def test_it_is_set_out_to_read(scores, capsys) -> None:
    normal, anomalous = scores
    found: Comparison = compare(rows(*scores), rows(normal, anomalous + 1), 0.05, resamples=50)
    Console(width=120).print(table(found))
    said = capsys.readouterr().out
    difference = 100 * (found.auroc.second - found.auroc.first)
    assert f"{difference:+.1f} ({100 * found.auroc.low:.1f} to {100 * found.auroc.high:.1f})" in said
    assert "caught at 3 false alarms, %" in said
    assert "anomalous images, right alone" in said
