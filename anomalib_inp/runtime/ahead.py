# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Many images: read ahead in threads beside the model, predicted in order."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from anomalib_inp.runtime.model import ExportedModel, Predictions, Prepared
from anomalib_inp.runtime.predict import Prediction, interpret

THREADS = min(8, os.cpu_count() or 1)
"""Images that are read at a time, and pictures that are drawn at a time."""

T = TypeVar("T")
R = TypeVar("R")


class Read(NamedTuple):
    """An image that was read.

    Attributes:
        prepared: What the model is given.
        size: Width and height of the image in pixels.
        kept: What whoever reads keeps of it.
    """

    prepared: Prepared
    size: tuple[int, int]
    kept: Any = None


def predict_ahead(
    exported: ExportedModel, items: Iterable[T], read: Callable[[T], Read]
) -> Iterator[tuple[T, Any, Prediction | ValueError]]:
    """Predict images one after the other, however many there are.

    Args:
        exported: The model.
        items: The images.
        read: Reads and prepares one; called in threads. A ``ValueError`` is what is wrong with it.

    Yields:
        Each image in order: what was kept of it, and what is said of it, or why nothing is.
    """
    waiting: deque[tuple[T, Any, tuple[int, int] | ValueError]] = deque()

    def attempt(item: T) -> tuple[T, Read | ValueError]:
        try:
            return item, read(item)
        except ValueError as error:
            return item, error

    def batches() -> Iterator[Prepared]:
        for item, found in in_order(readers, attempt, items):
            if isinstance(found, ValueError):
                waiting.append((item, None, found))
            else:
                waiting.append((item, found.kept, found.size))
                yield found.prepared

    def faults() -> Iterator[tuple[T, Any, ValueError]]:
        while waiting and isinstance(error := waiting[0][2], ValueError):
            item, kept, _ = waiting.popleft()
            yield item, kept, error

    with ThreadPoolExecutor(THREADS) as readers:
        for outputs in exported.stream(batches()):
            yield from faults()  # of the images before this one
            item, kept, size = waiting.popleft()
            yield item, kept, _interpret(outputs, exported, size)
        yield from faults()


def _interpret(outputs: Predictions, exported: ExportedModel, size: Any) -> Prediction | ValueError:
    try:
        return interpret(outputs, exported.metadata, size)
    except ValueError as error:
        return error


def in_order(pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Call a function for each item in the threads of a pool, a few ahead of what is used; results come in order."""
    running: deque[Future[R]] = deque()
    for item in items:
        running.append(pool.submit(function, item))
        if len(running) > 2 * THREADS:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()
