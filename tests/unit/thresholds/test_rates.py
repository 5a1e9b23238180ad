# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Bounds beside SciPy's tests of a binomial distribution, beside worked examples, and in draws."""

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from anomalib_inp.thresholds.rates import Rate, images_needed, operating_point


@pytest.mark.parametrize(("count", "total"), [(0, 10), (1, 10), (9, 10), (10, 10), (3, 299), (0, 1)])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_intervals_are_those_of_clopper_and_pearson(count, total, confidence) -> None:
    expected = binomtest(count, total).proportion_ci(confidence, method="exact")
    assert Rate(count, total).interval(confidence) == pytest.approx(tuple(expected), abs=1e-12)
    one_sided = binomtest(count, total, alternative="less").proportion_ci(confidence, method="exact")
    assert Rate(count, total).upper_bound(confidence) == pytest.approx(one_sided.high, abs=1e-12)


@pytest.mark.parametrize(("rate", "confidence", "expected"), [(0.01, 0.95, 299), (0.05, 0.95, 59), (0.5, 0.5, 1)])
def test_images_that_are_needed(rate, confidence, expected) -> None:
    assert images_needed(rate, confidence) == expected
    assert Rate(0, expected).upper_bound(confidence) <= rate
    assert expected == 1 or Rate(0, expected - 1).upper_bound(confidence) > rate


def test_a_rate_is_said() -> None:
    assert str(Rate(2, 100)) == "2 of 100 (2.0 %, 0.2 to 7.0 %)"
    assert str(Rate(0, 0)) == "0 of 0"


@pytest.mark.parametrize(("rate", "above"), [(0.02, 2), (0.29, 29), (0.009, 0), (0.999, 99)])
def test_the_estimate_is_met_by_the_lowest_threshold(rate, above) -> None:
    scores = np.random.default_rng(0).permutation(100) / 100
    point = operating_point(scores, rate)
    assert point.false_alarms == Rate(above, 100)
    highest = (99 - above) / 100
    assert highest < point.threshold <= highest + 1e-3


def test_equal_scores_alarm_together_or_not_at_all() -> None:
    point = operating_point([1.0] * 8 + [2.0, 3.0], 0.5)
    assert point.false_alarms == Rate(2, 10)
    assert 1.0 < point.threshold < 2.0
    assert operating_point([1.0] * 10, 0.5).false_alarms == Rate(0, 10)


def test_the_threshold_lies_nearer_to_its_score_than_to_the_next() -> None:
    assert operating_point([1.0, 1.001], 0.5, span=100.0).threshold == pytest.approx(1.0005)
    assert operating_point([1.0, 2.0], 0.5, span=100.0).threshold == pytest.approx(1.1)


def test_the_bound_is_met_as_often_as_promised() -> None:
    """Of uniform scores, the rate above a threshold is 1 minus that threshold."""
    draws = np.random.default_rng(0).random((2000, 150))
    kept = [operating_point(scores, 0.05, 0.9, span=1e-6).threshold >= 0.95 for scores in draws]
    above = max(count for count in range(150) if binom.cdf(count, 150, 0.05) <= 0.1)
    expected = 1 - binom.cdf(above, 150, 0.05)
    assert expected >= 0.9
    assert np.mean(kept) == pytest.approx(expected, abs=4 * np.sqrt(0.09 / 2000))


@pytest.mark.parametrize(("count", "possible"), [(299, True), (298, False)])
def test_too_few_images_promise_nothing(count, possible) -> None:
    scores = np.arange(count)
    if possible:
        assert operating_point(scores, 0.01, 0.95).false_alarms == Rate(0, count)
        return
    with pytest.raises(ValueError, match=r"298 normal images cannot promise 1\.00% .* 95%: 299 can, .* promise 1\.00%"):
        operating_point(scores, 0.01, 0.95)
    assert operating_point(scores, 0.01).false_alarms == Rate(2, count)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 0.1), "There are no normal images to choose"),
        (([1.0], 0.0), r"rate of false alarms must lie between 0 and 1, such as 0\.02 for 2 %, got 0\.0"),
        (([1.0], 2.0), "rate of false alarms must"),
        (([1.0], float("nan")), "rate of false alarms must"),
        (([1.0], 0.1, 1.0), "confidence must"),
    ],
)
def test_what_is_no_rate_is_refused(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        operating_point(*arguments)
