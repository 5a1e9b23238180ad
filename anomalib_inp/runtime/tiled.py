# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Runs the graph of a tile on images of any size: cuts them, merges what is said, and scores the map."""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Protocol

import cv2
import numpy as np

from anomalib_inp.maps import KERNEL_SIZE, SIGMA, TOP_FRACTION, num_highest
from anomalib_inp.runtime.metadata import Metadata, Tiling
from anomalib_inp.runtime.resize import resize
from anomalib_inp.tiles import fused

AT_ONCE = 4
"""Tiles in a batch. On a CPU, 1, 2 and 4 are equally fast to within a tenth; of 8, several side by side are slower."""


def reading_names(count: int) -> list[str]:
    """Name what the graph of a tile gives: each reading, ``(tiles, 1 or 2, h, w)``; a second map is for the score."""
    return [f"reading_{number}" for number in range(count)]


class Engine(Protocol):
    """What runs a graph on batches."""

    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        """Run batches, in order."""


class TiledImages:
    """Gives raw maps and scores of whole images.

    Args:
        engine: Runs the graph of a tile.
        metadata: What the model says of itself, of its tiles too.
        tiling: Its tiles.
    """

    def __init__(self, engine: Engine, metadata: Metadata, tiling: Tiling) -> None:
        self._engine = engine
        self._metadata = metadata
        self._tiling = tiling
        column = np.exp(-((np.arange(KERNEL_SIZE) - KERNEL_SIZE // 2) ** 2) / (2 * SIGMA**2))
        self._kernel = np.outer(column, column).astype(np.float32) / np.float32(column.sum() ** 2)

    def prepare(self, images: np.ndarray) -> np.ndarray:
        """Bring images ``(B, 3, H, W)`` to the size that is cut.

        Raises:
            ValueError: They are smaller than a tile.
        """
        size = self._tiling.image_size
        prepared = images if size is None else resize(images, size)
        self._tiling.tiles.starts((prepared.shape[2], prepared.shape[3]))
        return prepared

    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        """Run batches of images one after the other, their tiles as many side by side as the device likes."""
        pending = deque[tuple[tuple[int, ...], int]]()

        def cut() -> Iterator[np.ndarray]:
            for images in batches:
                places = self._tiling.tiles.places(images.shape[2:])
                count = len(images) * (len(places) + self._tiling.tiles.second_scale)
                pending.append((images.shape, math.ceil(count / AT_ONCE)))
                yield from self._cut(images, places)

        results = self._engine.stream(cut())
        for first in results:
            shape, count = pending.popleft()
            yield self._join([first, *islice(results, count - 1)], shape)

    def _cut(self, images: np.ndarray, places: list[tuple[int, int]]) -> Iterator[np.ndarray]:
        """Cut images into batches of tiles: those of one image, row by row, and all of it, then those of the next."""
        height, width = size = self._tiling.tiles.size

        def tiles() -> Iterator[np.ndarray]:
            for image in images:
                for row, column in places:
                    yield image[:, row : row + height, column : column + width]
                if self._tiling.tiles.second_scale:
                    yield resize(image[None], size)[0]

        several = tiles()
        while batch := list(islice(several, AT_ONCE)):
            yield np.stack(batch)

    def _join(self, parts: list[dict[str, np.ndarray]], shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        names = reading_names(len(parts[0]))
        readings = [np.concatenate([part[name] for part in parts]) for name in names]  # (B T, S, h, w)
        count = len(readings[0]) // shape[0]
        maps, scores = [], []
        for image in range(shape[0]):
            own = [reading[image * count : (image + 1) * count] for reading in readings]
            merged = np.mean([self._merge(reading, (shape[2], shape[3])) for reading in own], axis=0)  # (S, P, Q)
            blurred = [cv2.filter2D(plane, -1, self._kernel, borderType=cv2.BORDER_CONSTANT) for plane in merged]
            shown, score = self._score(blurred)
            maps.append(shown)
            scores.append(score)
        return {"pred_score": np.array(scores, np.float32), "anomaly_map": np.stack(maps)[:, None]}

    def _merge(self, reading: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
        """Merge what is said of the tiles of an image ``(T, S, h, w)`` into maps ``(S, P, Q)``."""
        tiles, values = self._tiling.tiles, (reading.shape[2], reading.shape[3])
        rows, columns = tiles.merging(image_size, values)
        count = len(rows) * len(columns)
        strips = reading[:count].reshape(len(rows), len(columns), *reading.shape[1:])  # (R, C, S, h, w)
        merged = np.zeros((reading.shape[1], rows.shape[1], columns.shape[1]), np.float32)
        for strip, row in zip(strips, rows, strict=True):
            across = sum(tile @ column.T for tile, column in zip(strip, columns, strict=True))
            merged += row @ across
        if not tiles.second_scale:
            return merged
        over_rows, over_columns = tiles.spreading(image_size, values)
        return fused(merged, over_rows @ reading[count] @ over_columns.T)

    def _score(self, maps: list[np.ndarray]) -> tuple[np.ndarray, float]:
        """Map to show and score, of one map or of two, of which the second is for the score."""
        places = self._metadata.places(maps[0].shape)
        values = maps[-1].ravel() if places is None else maps[-1][places]
        highest = num_highest(values.size, self._metadata.share or TOP_FRACTION)
        score = float(np.partition(values, -highest)[-highest:].mean(dtype=np.float64))
        shown = maps[0] if places is None else np.where(places, maps[0], maps[0].min())
        return shown, score
