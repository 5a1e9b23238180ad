# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Two runs on the same images: whether one is better, or chance has it so."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from rich.table import Table
from scipy.stats import binomtest, bootstrap, rankdata

from anomalib_inp.results.score_table import Row
from anomalib_inp.thresholds.rates import CONFIDENCE, ROUNDING


class Difference(NamedTuple):
    """A measure of both runs, and what the second has more of it.

    Attributes:
        first: Of the first run.
        second: Of the second.
        low: Lower end of the interval of 95 % of the difference, second minus first; NaN where there is none.
        high: Its upper end.
    """

    first: float
    second: float
    low: float
    high: float


class Decisions(NamedTuple):
    """Verdicts at the thresholds in force.

    Attributes:
        first_only: Images that the first run alone says the right thing of.
        second_only: Images that the second alone does.
        p_value: How likely so unequal a pair is where both runs are alike (McNemar's exact test, two-sided).
    """

    first_only: int
    second_only: int
    p_value: float


class Comparison(NamedTuple):
    """Two runs on the same images.

    Attributes:
        normal: Normal images that both have scored.
        anomalous: Anomalous ones.
        left_out: Images that one of them has not, or whose kind is unknown.
        auroc: Image AUROC; ``None`` of images of one kind.
        caught: Share of the anomalous images above the threshold that each run needs for the same false alarms;
            likewise.
        false_alarms: How many normal images these are.
        of_normal: Verdicts on normal images; ``None`` where there are none, or a run has no threshold.
        of_anomalous: Verdicts on anomalous ones; likewise.
    """

    normal: int
    anomalous: int
    left_out: int
    auroc: Difference | None
    caught: Difference | None
    false_alarms: int
    of_normal: Decisions | None
    of_anomalous: Decisions | None


def compare(
    first: Sequence[Row], second: Sequence[Row], false_alarms: float, resamples: int = 2000, seed: int = 0
) -> Comparison:
    """Compare two runs on the images that both have scored.

    Intervals come from a bootstrap: normal and anomalous images are drawn again, each kind from its own, and the same
    ones for both runs (:func:`scipy.stats.bootstrap`, percentiles). Of images of one kind, verdicts alone are compared.

    Args:
        first: Scores of the first run.
        second: Scores of the second.
        false_alarms: Share of the normal images that may alarm where caught ones are counted.
        resamples: How often images are drawn.
        seed: Seed of the draws.

    Raises:
        ValueError: No image of a known kind in both, images of one kind without verdicts, images that the runs say
            different kinds of, or a share outside [0, 1).
    """
    if not 0 <= false_alarms < 1:
        msg = f"The share of false alarms must lie between 0 and 1, such as 0.02 for 2 %, got {false_alarms}."
        raise ValueError(msg)
    pairs, left_out = _pairs(first, second)
    kinds = [[pair for pair in pairs if pair[0].is_normal is normal] for normal in (True, False)]
    if not pairs:
        msg = (
            f"Two runs are compared on images of known kinds that both have scored, got none of {len(first)} and "
            f"{len(second)} images. Are they of the same test folder?"
        )
        raise ValueError(msg)
    verdicts = [_decisions(of_kind) for of_kind in kinds]
    if not all(kinds) and verdicts == [None, None]:
        msg = "Images of one kind are compared by their verdicts, and one of the runs has no threshold to give any."
        raise ValueError(msg)
    # (2, images) of each kind
    normal, anomalous = (np.array([[row.raw_score for row in pair] for pair in of_kind]).T for of_kind in kinds)
    allowed = math.floor(false_alarms * len(kinds[0]) + ROUNDING)

    def caught(good: np.ndarray, bad: np.ndarray) -> np.ndarray:
        threshold = np.sort(good, axis=-1)[..., -1 - allowed]
        return (bad > threshold[..., None]).mean(axis=-1)

    def difference(measure: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Difference:
        def second_minus_first(good: np.ndarray, bad: np.ndarray, axis: int = -1) -> np.ndarray:
            del axis
            places = good.astype(int), bad.astype(int)
            one, other = (
                measure(of_good[places[0]], of_bad[places[1]])
                for of_good, of_bad in zip(normal, anomalous, strict=True)
            )
            return other - one

        places = tuple(np.arange(len(of_kind)) for of_kind in kinds)
        interval = [math.nan, math.nan]
        if min(map(len, kinds)) > 1:
            drawn = bootstrap(
                places,
                second_minus_first,
                n_resamples=resamples,
                batch=200,
                vectorized=True,
                confidence_level=CONFIDENCE,
                method="percentile",
                rng=np.random.default_rng(seed),
            )
            interval = list(map(float, drawn.confidence_interval))
        one, other = (float(measure(good, bad)) for good, bad in zip(normal, anomalous, strict=True))
        return Difference(one, other, *interval)

    return Comparison(
        normal=len(kinds[0]),
        anomalous=len(kinds[1]),
        left_out=left_out,
        auroc=difference(_auroc) if all(kinds) else None,
        caught=difference(caught) if all(kinds) else None,
        false_alarms=allowed,
        of_normal=verdicts[0],
        of_anomalous=verdicts[1],
    )


def _pairs(first: Sequence[Row], second: Sequence[Row]) -> tuple[list[tuple[Row, Row]], int]:
    """Pair the rows of images that both runs have scored, and count the others."""
    others = {row.image: row for row in second}
    both = [(row, others[row.image]) for row in first if row.image in others]
    if changed := [row.image for row, other in both if row.kind != other.kind]:
        msg = f"The runs say different kinds of the same images, {changed[0]} for one: they are not of the same folder."
        raise ValueError(msg)
    pairs = [pair for pair in both if pair[0].kind and not any(row.error for row in pair)]
    return pairs, len({row.image for row in first} | others.keys()) - len(pairs)


def _auroc(good: np.ndarray, bad: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of scores ``(..., n)`` and ``(..., m)``, from ranks: Mann and Whitney's statistic."""
    ranks = rankdata(np.concatenate([good, bad], axis=-1), axis=-1)[..., good.shape[-1] :]
    count = bad.shape[-1]
    return (ranks.sum(axis=-1) - count * (count + 1) / 2) / (good.shape[-1] * count)


def _decisions(pairs: Sequence[tuple[Row, Row]]) -> Decisions | None:
    if not pairs or any(row.anomalous is None for pair in pairs for row in pair):
        return None
    right = [tuple(row.anomalous != row.is_normal for row in pair) for pair in pairs]
    first_only, second_only = right.count((True, False)), right.count((False, True))
    unequal = first_only + second_only
    return Decisions(first_only, second_only, float(binomtest(first_only, unequal).pvalue) if unequal else 1.0)


def table(found: Comparison) -> Table:
    """Set a comparison out as a table to print."""
    made = Table()
    for header, justify in (("", "left"), ("first", "right"), ("second", "right"), ("second - first", "left")):
        made.add_column(header, justify=justify)  # type: ignore[arg-type]
    rates = {"image AUROC": found.auroc, f"caught at {found.false_alarms} false alarms, %": found.caught}
    for name, value in rates.items():
        if value is None:
            continue
        first, second, low, high = (f"{100 * number:.1f}" for number in value)
        chance = "" if math.isnan(value.low) else f" ({low} to {high})"
        made.add_row(name, first, second, f"{100 * (value.second - value.first):+.1f}{chance}")
    for name, decisions in (("normal", found.of_normal), ("anomalous", found.of_anomalous)):
        if decisions is not None:
            alone = (str(decisions.first_only), str(decisions.second_only))
            made.add_row(f"{name} images, right alone", *alone, f"p = {decisions.p_value:.3g}")
    return made
