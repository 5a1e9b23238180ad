# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Thresholds and the normalised scores around them."""

import math


def check_thresholds(image: float | None, pixel: float | None) -> None:
    """Refuse thresholds that are given but are no finite numbers.

    Raises:
        ValueError: The message names it.
    """
    for name, value in (("image", image), ("pixel", pixel)):
        if value is not None and not math.isfinite(value):
            msg = f"The {name} threshold must be a finite raw score, got {value}."
            raise ValueError(msg)


def margin_of(normalized: float) -> float:
    """Margin of a normalised score: the inverse of ``(1 + m / sqrt(1 + m^2)) / 2``."""
    t = 2 * normalized - 1
    return t / math.sqrt(1 - t * t) if abs(t) < 1 else math.copysign(math.inf, t)
