# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Looks at one image after the other, several at a time, and changes the model's settings in its file."""

import base64
import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from anomalib_inp.images import decode_pixels
from anomalib_inp.pictures.strip import draw_overlay
from anomalib_inp.results.inspection import Inspection
from anomalib_inp.results.records import Record
from anomalib_inp.results.writer import heat_map_image
from anomalib_inp.runtime import edit
from anomalib_inp.runtime.metadata import Metadata
from anomalib_inp.runtime.model import ExportedModel
from anomalib_inp.runtime.predict import Prediction, fault_of, interpret, record_of
from anomalib_inp.service.settings import Settings
from anomalib_inp.thresholds.scale import Thresholds

HEAT, OVERLAY = "heat_map", "overlay"
CHECKPOINT = ".ckpt"


class Loaded(NamedTuple):
    """A model as its file was at a moment.

    Attributes:
        model: An export, or a checkpoint that is asked like one.
        digest: Fingerprint of its files.
        state: What tells its files from later ones.
    """

    model: Any
    digest: str
    state: tuple[int, ...]

    @property
    def metadata(self) -> Metadata:
        """What the model says of itself."""
        return self.model.metadata


class Answer(NamedTuple):
    """What is said of an image.

    Attributes:
        record: The record.
        pixels: The image ``(H, W, 3)``; ``None`` where it cannot be read.
        prediction: What the model gives; ``None`` likewise.
        metadata: What the model said of itself when it was asked.
    """

    record: Record
    pixels: np.ndarray | None
    prediction: Prediction | None
    metadata: Metadata

    def picture(self, kind: str) -> bytes | None:
        """Draw the heat map of the inspected part in grey, or the overlay of the whole image, as PNG."""
        if self.pixels is None or self.prediction is None:
            return None
        found, file = self.prediction, io.BytesIO()
        if kind == HEAT:
            image = heat_map_image(found.shown_map)
        else:
            box, places = self.metadata.crop_box, self.metadata.places(found.shown_map.shape)
            image = draw_overlay(self.pixels, found.shown_map, pred_mask=found.mask, crop_box=box, places=places)
        image.save(file, "PNG")
        return file.getvalue()

    def as_json(self, pictures: Iterable[str] = ()) -> dict[str, object]:
        """Write it as JSON, with pictures as PNG in Base64."""
        drawn = {kind: self.picture(kind) for kind in pictures}
        encoded = {kind: png and base64.b64encode(png).decode("ascii") for kind, png in drawn.items()}
        return {**self.record, **encoded}


class Inspector:
    """A model that several threads ask, and that is loaded anew when its file has changed.

    The file holds all that matters: a service of several processes changes it in one, and the others see it.

    Args:
        settings: The settings of the service.

    Raises:
        ValueError: Not an export of ours, or an unknown category.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._is_checkpoint = settings.path.suffix == CHECKPOINT
        # Of checkpoints by name: what serves exports needs no PyTorch.
        self._edit = import_module("anomalib_inp.checkpoints.edit") if self._is_checkpoint else edit
        self._lock = Lock()
        self._loaded = self._load()

    @property
    def loaded(self) -> Loaded:
        """The model as its file is now; a file that cannot be read now leaves the one that is loaded."""
        try:
            if self._state() != self._loaded.state:
                with self._lock:
                    if self._state() != self._loaded.state:
                        self._loaded = self._load()
        except (OSError, ValueError):
            pass
        return self._loaded

    def look(self, content: bytes, name: str) -> Answer:
        """Look at an image, given as the content of its file; one that cannot be read gives a record that says so."""
        loaded = self.loaded
        metadata, digest = loaded.metadata, loaded.digest
        try:
            pixels = decode_pixels(content, name or "The image", self.settings.max_pixels)
            size = (pixels.shape[1], pixels.shape[0])
            prediction = interpret(loaded.model(pixels), metadata, size)
        except ValueError as error:
            return Answer(fault_of(name, error, metadata, digest), None, None, metadata)
        return Answer(record_of(name, prediction, metadata, digest), pixels, prediction, metadata)

    def set_thresholds(self, image: float | None, pixel: float | None) -> Thresholds:
        """Move thresholds, in the file.

        Raises:
            ValueError: One is no finite number, or the model has none.
        """
        with self._changing():
            return self._edit.set_thresholds(self.settings.path, image, pixel, category=self.settings.category)

    def set_inspection(self, mask: bytes | str | None, smallest_area: float | None) -> Inspection:
        """Change what is inspected, in the file.

        Raises:
            ValueError: The mask leaves nothing, is no image, or the export is of an earlier version.
        """
        with self._changing():
            return self._edit.set_inspection(self.settings.path, mask, smallest_area)[1]

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with self._lock:
            yield
            self._loaded = self._load()

    def _load(self) -> Loaded:
        chosen, state = self.settings, self._state()
        if self._is_checkpoint:
            served = import_module("anomalib_inp.models.served").CheckpointModel(chosen.path, chosen.category)
            return Loaded(served, served.digest, state)
        model = ExportedModel(chosen.path, chosen.device, chosen.precision, "throughput", category=chosen.category)
        return Loaded(model, model.digest, state)

    def _state(self) -> tuple[int, ...]:
        files = [path for path in (self.settings.path, self.settings.path.with_suffix(".bin")) if path.exists()]
        return tuple(value for file in map(os.stat, files) for value in (file.st_mtime_ns, file.st_size, file.st_ino))
