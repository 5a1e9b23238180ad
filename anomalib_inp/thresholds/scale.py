# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Thresholds and the normalised scores around them: for NumPy and torch alike, and without importing torch."""

import math
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

EDGE = 0.5e-7
"""In 32 bits, a normalised score is 0 or 1 from here on; read as these, its raw score stays finite."""
FARTHEST = 100
"""Spans that a threshold is moved by at most: from there, a normalised score in 32 bits is so close to 0 or 1 that the
raw one that is had back from it is off by a fifth of a span."""
LARGEST = 1e6
"""The largest threshold where there was none."""
APART = 1e-3
"""Spans between an image threshold and the score that it comes from: exports round, and no verdict hangs on that."""


class Scale(NamedTuple):
    """What raw values are normalised by.

    A normalised value lies between 0 and 1, and 0.5 is the threshold. It is ``(1 + m / sqrt(1 + m^2)) / 2`` of the
    margin ``m = (raw - threshold) / span``: never clamped, so that order is kept and raw values can be had back.

    The three are numbers, NumPy arrays or tensors of one shape; numbers fit values of every kind.

    Attributes:
        threshold: The raw value above which something is anomalous; NaN where there is none.
        low: The lowest raw value of the validation images; NaN where it is unknown.
        high: The highest.
    """

    threshold: Any
    low: Any
    high: Any

    @classmethod
    def of_span(cls, threshold: float, span: float) -> "Scale":
        """Make the scale of this span, whose ends are as far above the threshold as below."""
        return cls(threshold, threshold - 2 * span, threshold + 2 * span)

    @property
    def span(self) -> Any:
        """Raw values that a margin of 1 stands for: half the distance from the threshold to the farther end.

        The validation values lie within margins of -2 (0.05) and 2 (0.95). Where the span is unknown or 0, it is 1.
        """
        xp = _namespace(self.threshold)
        reach = xp.maximum(self.high - self.threshold, self.threshold - self.low) / 2
        return xp.where(reach > 0, reach, xp.ones_like(reach))

    def normalise_and_label(self, raw: Any, limit: float = 0.5) -> tuple[Any, Any]:
        """Normalise raw values, and say which of the normalised ones exceed a limit.

        Without a threshold, values stay raw and nothing is exceeded.
        """
        xp, raw, threshold, span = self._beside(raw)
        missing = xp.isnan(threshold)
        # Nothing exceeds infinity; whether something exceeds NaN is not the same in all runtimes.
        margin = (raw - xp.where(missing, xp.full_like(threshold, math.inf), threshold)) / span
        exceeds = margin > margin_of(limit)
        with np.errstate(invalid="ignore"):  # what an infinite margin gives is not used
            return xp.where(missing, raw, (1 + margin / xp.sqrt(1 + margin**2)) / 2), exceeds

    def normalise(self, raw: Any) -> Any:
        """Normalise raw values; without a threshold they stay raw."""
        return self.normalise_and_label(raw)[0]

    def to_raw(self, normalised: Any) -> Any:
        """Turn normalised values into raw ones; without a threshold they are raw already."""
        xp, normalised, threshold, span = self._beside(normalised)
        raw = margin_of(xp.clip(normalised, EDGE, 1 - EDGE)) * span + threshold
        return xp.where(xp.isnan(threshold), normalised, raw)

    def in_force(self, limit: float = 0.5) -> float:
        """Raw value above which something is anomalous where a limit, a sensitivity, moves it from the threshold.

        Those are numbers; NaN without a threshold.
        """
        return math.nan if math.isnan(self.threshold) else float(self.to_raw(limit))

    def shift(self, limit: float) -> float:
        """How far a limit, a sensitivity, moves what is in force from the threshold; 0 where there is none."""
        threshold = float(self.threshold)
        return 0.0 if math.isnan(threshold) else self.in_force(limit) - threshold

    def moved(self, threshold: float) -> "Scale":
        """Move a threshold that is a number, and the ends by the same amount: the span, so the steepness, stays."""
        shift = 0 if math.isnan(self.threshold) else threshold - self.threshold
        return Scale(float(threshold), self.low + shift, self.high + shift)

    def _beside(self, values: Any) -> tuple[Any, Any, Any, Any]:
        """The module that reckons with values, these values, and threshold and span as values of their kind."""
        xp, threshold, span = _namespace(values), self.threshold, self.span
        if xp is np:
            values, threshold, span = (np.asarray(value, dtype=np.float64) for value in (values, threshold, span))
        elif not isinstance(threshold, xp.Tensor):
            threshold, span = values.new_tensor(float(threshold)), values.new_tensor(float(span))
        return xp, values, threshold, span


NO_SCALE = Scale(math.nan, math.nan, math.nan)
"""Where there is no threshold."""


class ValidationScores(NamedTuple):
    """Raw scores of validation images, from which an image threshold can be chosen again."""

    normal: list[float]
    anomalous: list[float]


NO_SCORES = ValidationScores([], [])


class Thresholds(NamedTuple):
    """What a file says of its thresholds.

    Attributes:
        image: Threshold of raw scores; NaN where there is none.
        pixel: Threshold of raw map values; NaN where there is none.
        normalized: Whether scores come out normalised, or raw.
        categories: The categories that have thresholds of their own.
    """

    image: float
    pixel: float
    normalized: bool
    categories: list[str]


def step_beside(span: float, gaps: Iterable[float]) -> float:
    """How far a threshold is moved from the score that it comes from, towards others that are these distances away."""
    return float(min([APART * span, *(gap / 2 for gap in gaps)]))


def margin_of(normalised: Any) -> Any:
    """Margin of a normalised value: the inverse of ``(1 + m / sqrt(1 + m^2)) / 2``, infinite at 0 and 1."""
    t = 2 * normalised - 1
    with np.errstate(divide="ignore"):
        return t / _namespace(t).sqrt(1 - t * t)


def move(scales: tuple[Scale, Scale], image: float | None, pixel: float | None) -> tuple[Scale, Scale]:
    """Move thresholds by hand; this is the rule for models, checkpoints and exports.

    Args:
        scales: Scales of scores and of pixels, of single values.
        image: New image threshold, a raw score; ``None`` leaves it, or takes the pixel threshold where it is missing.
        pixel: New pixel threshold, a raw map value; ``None`` likewise.

    Returns:
        The scales of numbers, those that are moved with their ends.

    Raises:
        ValueError: A threshold is not a finite number, or too far from the present one.
    """
    given = {"image": image, "pixel": pixel}
    for kind, value in given.items():
        if value is not None and not math.isfinite(value):
            msg = f"The {kind} threshold must be a finite raw score, got {value}."
            raise ValueError(msg)
    first, second = (Scale(*map(float, scale)) for scale in scales)
    for (kind, value), scale in zip(given.items(), (first, second), strict=True):
        reach = LARGEST if math.isnan(scale.threshold) else FARTHEST * float(scale.span)
        before = 0.0 if math.isnan(scale.threshold) else scale.threshold
        if value is not None and abs(value - before) > reach:
            msg = (
                f"The {kind} threshold {value:g} is too far from the present one, {before:g}: raw scores could not be "
                f"had back from normalised ones. It may lie between {before - reach:.6g} and {before + reach:.6g}."
            )
            raise ValueError(msg)
    image, pixel = (
        pixel if image is None and math.isnan(first.threshold) else image,
        image if pixel is None and math.isnan(second.threshold) else pixel,
    )
    return first if image is None else first.moved(image), second if pixel is None else second.moved(pixel)


def buffer_names(kind: str) -> tuple[str, str, str]:
    """Names of the buffers of anomalib's post-processor that hold a scale, of ``"image"`` or ``"pixel"``."""
    return f"_{kind}_threshold", f"{kind}_min", f"{kind}_max"


def _namespace(values: Any) -> Any:
    """Module that reckons with these values: torch for tensors, NumPy for all else."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and isinstance(values, torch.Tensor) else np
