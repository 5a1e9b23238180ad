# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What a service counts, for Prometheus."""

import os
from collections.abc import Callable, Iterable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess

from anomalib_inp.results.records import Record
from anomalib_inp.thresholds.drift import Drift

PREFIX = "anomalib_inp"
MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable of the folder that several processes count in."""
SCORES = [index / 20 for index in range(1, 20)]
SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class ServiceMetrics:
    """Counts of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.images = Counter(f"{PREFIX}_images", "Images by verdict.", ["verdict"], registry=self.registry)
        self.refused = Counter(f"{PREFIX}_refused", "Refused requests by reason.", ["reason"], registry=self.registry)
        self.seconds = Histogram(
            f"{PREFIX}_image_seconds", "Seconds from an image's request to its answer.", registry=self.registry,
            buckets=SECONDS,
        )  # fmt: skip
        self.scores = Histogram(
            f"{PREFIX}_score", "Scores, normalised where the model does so.", registry=self.registry, buckets=SCORES
        )
        self.queue = Gauge(
            f"{PREFIX}_queue_length", "Images that wait or are worked on.", registry=self.registry,
            multiprocess_mode="livesum",
        )  # fmt: skip

        gauge = partial(Gauge, labelnames=["quantity"], registry=self.registry, multiprocess_mode="livemax")
        self.drifts = gauge(f"{PREFIX}_drift", "Whether it is unlike that of the validation images.")
        self.p_value = gauge(f"{PREFIX}_drift_p_value", "Of the test that says so.")

    def drift(self, found: Iterable[Drift]) -> None:
        """Note what drifts."""
        for one in found:
            self.drifts.labels(one.quantity).set(one.drifts)
            self.p_value.labels(one.quantity).set(one.p_value)

    def count(self, record: Record, seconds: float) -> None:
        """Count an answer."""
        verdict = "error" if record["error"] is not None else record["verdict"] or "none"
        self.images.labels(verdict).inc()
        self.seconds.observe(seconds)
        if record["score"] is not None:
            self.scores.observe(record["score"])

    def refuse(self, reason: str) -> None:
        """Count a refusal."""
        self.refused.labels(reason).inc()

    def watch(self, length: Callable[[], float]) -> None:
        """Ask for the length of the queue when somebody looks."""
        if MULTIPROCESS not in os.environ:
            self.queue.set_function(length)

    def text(self) -> bytes:
        """Write the counts, of all processes, as Prometheus reads them."""
        if MULTIPROCESS in os.environ:
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)
            return generate_latest(registry)
        return generate_latest(self.registry)
