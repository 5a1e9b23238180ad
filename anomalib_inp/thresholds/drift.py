# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Whether what passes is still like the normal images of the training: scores, light, sharpness."""

from collections import deque
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import NamedTuple

from scipy.stats import ks_2samp

WINDOW = 100
"""Images that are compared with those of the training."""
STEP = 25
"""Images between two comparisons."""
LEVEL = 0.01
"""Probability of an alarm among ``SPAN`` images of which nothing has changed, at most."""
SPAN = 1000
FEWEST = 10
"""Images of the training, and images that have passed, without which nothing can be said."""
SCORE = "score"
WHAT = {
    SCORE: "the scores are not those of the normal validation images",
    "brightness": "the light has changed",
    "sharpness": "the sharpness has changed",
}


class Drift(NamedTuple):
    """What a comparison has found.

    Attributes:
        quantity: ``score``, ``brightness`` or ``sharpness``.
        p_value: Of the two-sample Kolmogorov-Smirnov test.
        drifts: Whether that is less than the level allows.
        reference: Median of the normal images of the training: of scores, those of the validation.
        current: Median of the last images.
    """

    quantity: str
    p_value: float
    drifts: bool
    reference: float
    current: float


class DriftMonitor:
    """Compares a sliding window of images with the normal images of the training.

    Each quantity by a two-sample Kolmogorov-Smirnov test, every ``STEP`` images; the level is shared among all
    comparisons of ``SPAN`` images (Bonferroni), so that looking again and again raises no alarm by itself.

    Args:
        reference: Values of these images by quantity; of fewer than ``FEWEST``, nothing is said.
        window: Images that are compared.
        level: Probability of an alarm among ``SPAN`` images of which nothing has changed, at most.
    """

    def __init__(self, reference: Mapping[str, Sequence[float]], window: int = WINDOW, level: float = LEVEL) -> None:
        self.reference = {name: list(values) for name, values in reference.items() if len(values) >= FEWEST}
        self.window = window
        comparisons = max(1, len(self.reference)) * SPAN / STEP
        self.limit = level / comparisons
        self._values = {name: deque[float](maxlen=window) for name in self.reference}
        self._count = 0
        self._found: dict[str, Drift] = {}
        self._lock = Lock()

    @property
    def found(self) -> list[Drift]:
        """What the last comparison has found, by quantity; nothing before the first."""
        return list(self._found.values())

    def add(self, values: Mapping[str, float]) -> list[str]:
        """Add an image.

        Returns:
            Sentences to tell: that something drifts since this image, or does no longer.
        """
        with self._lock:
            for name, seen in self._values.items():
                if name in values:
                    seen.append(float(values[name]))
            self._count += 1
            if self._count % STEP or not self.reference:
                return []
            return self._compare()

    def finish(self) -> list[str]:
        """Compare what there is, at the end of a run that does not go on."""
        with self._lock:
            return self._compare() if self._count % STEP else []

    def _compare(self) -> list[str]:
        told = []
        for name, seen in self._values.items():
            if len(seen) < FEWEST:
                continue
            reference = self.reference[name]
            p_value = float(ks_2samp(reference, list(seen)).pvalue)
            found = Drift(name, p_value, p_value < self.limit, _median(reference), _median(seen))
            before = self._found.get(name)
            self._found[name] = found
            if found.drifts and not (before and before.drifts):
                told.append(
                    f"Drift: {WHAT[name]}: {name} {found.current:.4g} in the last {len(seen)} images, "
                    f"{found.reference:.4g} in those of the training (medians; p = {p_value:.1g})."
                )
            elif before and before.drifts and not found.drifts:
                told.append(f"No more drift of {name}.")
        return told


def _median(values: Sequence[float] | deque[float]) -> float:
    ordered = sorted(values)
    return (ordered[len(ordered) // 2] + ordered[(len(ordered) - 1) // 2]) / 2
