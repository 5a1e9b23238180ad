# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""How often images alarm, known from few of them: bounds that can be promised, and the threshold that keeps them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import betaincinv

from anomalib_inp.thresholds.scale import step_beside

CONFIDENCE = 0.95
"""How sure a bound is, where nothing else is asked for."""
ROUNDING = 1e-9
"""0.29 of 100 images are 28.999999999999996 in floating point."""


class Rate(NamedTuple):
    """Of so many images, so many did something; what follows for all that are yet to come.

    The bounds are those of Clopper and Pearson: exact for a binomial distribution, whatever the scores are like.

    Attributes:
        hits: Images that did it.
        total: All images.
    """

    hits: int
    total: int

    def upper_bound(self, confidence: float = CONFIDENCE) -> float:
        """The rate is at most this, with such a confidence."""
        return float(betaincinv(self.hits + 1, self.total - self.hits, confidence)) if self.hits < self.total else 1

    def lower_bound(self, confidence: float = CONFIDENCE) -> float:
        """The rate is at least this, with such a confidence."""
        return 1 - Rate(self.total - self.hits, self.total).upper_bound(confidence)

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """The rate lies between these, with such a confidence."""
        each = (1 + confidence) / 2
        return self.lower_bound(each), self.upper_bound(each)

    def __str__(self) -> str:
        """Say it in per cent, with the interval: ``2 of 100 (2.0 %, 0.2 to 7.0 %)``."""
        if not self.total:
            return "0 of 0"
        low, high = (100 * bound for bound in self.interval())
        return f"{self.hits} of {self.total} ({100 * self.hits / self.total:.1f} %, {low:.1f} to {high:.1f} %)"


class OperatingPoint(NamedTuple):
    """A threshold, and what normal images say of it.

    Attributes:
        threshold: Raw score above which images are anomalous.
        false_alarms: How many of the normal images are above it.
    """

    threshold: float
    false_alarms: Rate


def images_needed(rate: float, confidence: float = CONFIDENCE) -> int:
    """How many normal images can promise a rate of false alarms: that many, none of which is above the threshold."""
    return math.ceil(math.log(1 - confidence) / math.log(1 - rate) - ROUNDING)


def allowed_alarms(total: int, rate: float, confidence: float | None = None) -> int:
    """How many of so many normal images may be above a threshold that keeps a rate of false alarms.

    Args:
        total: Normal images.
        rate: Share of them that may be above it.
        confidence: How sure it must be that this holds for the images to come; by default, for these.

    Raises:
        ValueError: There are none, too few to promise the rate, or a rate or confidence outside (0, 1).
    """
    for name, value in (("rate of false alarms", rate), ("confidence", confidence)):
        if value is not None and not 0 < value < 1:
            msg = f"The {name} must lie between 0 and 1, such as 0.02 for 2 %, got {value}."
            raise ValueError(msg)
    if not total:
        msg = "There are no normal images to choose a threshold from."
        raise ValueError(msg)
    if confidence is None:
        return math.floor(rate * total + ROUNDING)
    kept = [count for count in range(total) if Rate(count, total).upper_bound(confidence) <= rate]
    if not kept:
        msg = (
            f"{total} normal images cannot promise {rate:.2%} false alarms with a confidence of {confidence:.0%}: "
            f"{images_needed(rate, confidence)} can, none of which may be above the threshold. These can promise "
            f"{Rate(0, total).upper_bound(confidence):.2%}. Give more images (--images DIR), allow more false alarms, "
            "or leave --confidence out for a threshold that promises nothing."
        )
        raise ValueError(msg)
    return kept[-1]


def operating_point(
    normal: Sequence[float], rate: float, confidence: float | None = None, span: float = 1.0
) -> OperatingPoint:
    """Choose the lowest threshold that keeps a rate of false alarms.

    Args:
        normal: Raw scores of normal images.
        rate: Share of the normal images that may be above the threshold.
        confidence: How sure it must be that this holds for the images to come: the *bound* of the rate, from the order
            statistics of the scores, meets it then. By default the share of these images does.
        span: Raw scores that a margin of 1 stands for (:class:`~anomalib_inp.thresholds.scale.Scale`): the threshold
            lies a little above the highest score below it, by a part of the span.

    Raises:
        ValueError: As :func:`allowed_alarms` says.
    """
    above = allowed_alarms(len(normal), rate, confidence)
    scores = np.sort(np.asarray(normal, dtype=np.float64))
    highest = scores[-1 - above]
    threshold = float(highest + step_beside(span, scores[scores > highest] - highest))
    return OperatingPoint(threshold, Rate(int((scores > threshold).sum()), len(scores)))
