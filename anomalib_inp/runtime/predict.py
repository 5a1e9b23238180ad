# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What an exported model says of one image."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from anomalib_inp.images import as_batch, read_pixels
from anomalib_inp.runtime.metadata import Metadata
from anomalib_inp.runtime.model import ExportedModel, Predictions


class Prediction(NamedTuple):
    """What an exported model says of an image.

    Attributes:
        score: Image score as the model gives it, normalised or raw.
        label: Whether the score is above the threshold; ``None`` without one.
        mask: Pixels above the threshold ``(h, w)``; ``None`` without one.
        raw_score: Image score before normalisation.
        raw_map: Anomaly map before normalisation ``(h, w)``.
        shown_map: Anomaly map as pictures show it: normalised where there is a threshold.
    """

    score: float
    label: bool | None
    mask: np.ndarray | None
    raw_score: float
    raw_map: np.ndarray
    shown_map: np.ndarray


def predict(exported: ExportedModel, path: Path) -> Prediction:
    """Predict one image.

    Raises:
        ValueError: The file is no readable image, or the model gives no number for it.
    """
    return interpret(exported(read(path)), exported.metadata)


def raw_scores(model: Path, images: Iterable[Path]) -> Iterator[float]:
    """Raw scores of images, by an exported model.

    Raises:
        ValueError: A file is no readable image, or no export of ours, or the model gives no number for an image.
    """
    exported = ExportedModel(model, performance="throughput")
    for outputs in exported.stream(exported.prepare(read_pixels(image)) for image in images):
        yield interpret(outputs, exported.metadata).raw_score


def read(path: str | Path) -> np.ndarray:
    """Read an image as a batch of one ``(1, 3, H, W)``, float32 in [0, 1].

    Raises:
        ValueError: The file is no readable image.
    """
    return as_batch(read_pixels(path))


def interpret(result: Predictions, metadata: Metadata) -> Prediction:
    """Take the only image out of a batch of one, raw and as pictures show it.

    Raises:
        ValueError: The score is no number.
    """
    if math.isnan(result.pred_score[0]):
        msg = (
            "the model gives no number for it (NaN): its weights are damaged, or too large for the precision that it "
            "computes in. Use f32, or export it anew."
        )
        raise ValueError(msg)
    score, shown_map = float(result.pred_score[0]), result.anomaly_map[0, 0]
    raw_score, raw_map = score, shown_map
    decides = not math.isnan(metadata.image.threshold)
    if metadata.normalized:
        raw_score, raw_map = float(metadata.to_raw(score)), metadata.to_raw(shown_map, "pixel")
    elif decides:
        shown_map = metadata.to_normalized(raw_map, "pixel")
    label = bool(result.pred_label[0]) if decides and result.pred_label is not None else None
    mask = result.pred_mask[0, 0] if decides and result.pred_mask is not None else None
    return Prediction(score, label, mask, raw_score, raw_map, shown_map)
