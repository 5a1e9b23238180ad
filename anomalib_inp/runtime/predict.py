# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What an exported model says of one image."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from anomalib_inp.images import as_batch, read_pixels
from anomalib_inp.results.records import Record, make_record, with_regions
from anomalib_inp.results.regions import Region, find_regions
from anomalib_inp.runtime.metadata import Metadata
from anomalib_inp.runtime.model import ExportedModel, Predictions


class Prediction(NamedTuple):
    """What an exported model says of an image.

    Attributes:
        score: Image score as the model gives it, normalised or raw.
        label: Whether the score is above the threshold; ``None`` without one.
        mask: Pixels above the threshold ``(h, w)``, those of regions that are too small left out; ``None`` without one.
        raw_score: Image score before normalisation.
        raw_map: Anomaly map before normalisation ``(h, w)``.
        shown_map: Anomaly map as pictures show it: normalised where there is a threshold.
        size: Width and height of the image in pixels.
        regions: Connected regions above the threshold, the highest peak first.
    """

    score: float
    label: bool | None
    mask: np.ndarray | None
    raw_score: float
    raw_map: np.ndarray
    shown_map: np.ndarray
    size: tuple[int, int]
    regions: list[Region]


def predict(exported: ExportedModel, path: Path) -> Prediction:
    """Predict one image.

    Raises:
        ValueError: The file is no readable image, or the model gives no number for it.
    """
    image = read(path)
    return interpret(exported(image), exported.metadata, (image.shape[3], image.shape[2]))


def raw_scores(model: Path, images: Iterable[Path]) -> Iterator[float]:
    """Raw scores of images, by an exported model.

    Raises:
        ValueError: A file is no readable image, or no export of ours, or the model gives no number for an image.
    """
    exported = ExportedModel(model, performance="throughput")
    for outputs in exported.stream(exported.prepare(read_pixels(image)) for image in images):
        yield raw_score(outputs, exported.metadata)


def read(path: str | Path) -> np.ndarray:
    """Read an image as a batch of one ``(1, 3, H, W)``, float32 in [0, 1].

    Raises:
        ValueError: The file is no readable image.
    """
    return as_batch(read_pixels(path))


def record_of(name: str, prediction: Prediction, metadata: Metadata, digest: str, kind: str = "") -> Record:
    """Write down what an exported model says of an image, now.

    Args:
        name: What the image is called.
        prediction: What is said.
        metadata: What the model says of itself.
        digest: Fingerprint of its files.
        kind: What the image really is, if that is known.
    """
    scores = (prediction.score, prediction.raw_score)
    known = make_record(
        name, digest, metadata.in_force, kind=kind, anomalous=prediction.label, scores=scores, size=prediction.size
    )
    return with_regions(known, prediction.regions)


def fault_of(name: str, error: Exception, metadata: Metadata, digest: str, kind: str = "") -> Record:
    """Write down why nothing can be said of an image."""
    return make_record(name, digest, metadata.in_force, kind=kind, error=" ".join(str(error).split()))


def raw_score(result: Predictions, metadata: Metadata) -> float:
    """Score of the only image of a batch of one, before normalisation.

    Raises:
        ValueError: The score is no number.
    """
    if math.isnan(result.pred_score[0]):
        msg = (
            "the model gives no number for it (NaN): its weights are damaged, or too large for the precision that it "
            "computes in. Use f32, or export it anew."
        )
        raise ValueError(msg)
    score = float(result.pred_score[0])
    return float(metadata.to_raw(score)) if metadata.normalized else score


def interpret(result: Predictions, metadata: Metadata, size: tuple[int, int]) -> Prediction:
    """Take the only image out of a batch of one, raw and as pictures show it, with its regions.

    Args:
        result: What the model gives.
        metadata: What it says of itself.
        size: Width and height of the image in pixels.

    Raises:
        ValueError: The score is no number.
    """
    raw, raw_map = raw_score(result, metadata), result.anomaly_map[0, 0]
    decides = not math.isnan(metadata.image.threshold)
    shown_map = raw_map
    if metadata.normalized:
        raw_map = metadata.to_raw(shown_map, "pixel")
    elif decides:
        shown_map = metadata.to_normalized(raw_map, "pixel")
    label = bool(result.pred_label[0]) if decides and result.pred_label is not None else None
    mask = result.pred_mask[0, 0] if decides and result.pred_mask is not None else None
    regions: list[Region] = []
    if mask is not None:
        regions, mask = find_regions(mask, raw_map, metadata.crop_box, size, metadata.inspection.smallest_area)
    return Prediction(float(result.pred_score[0]), label, mask, raw, raw_map, shown_map, size, regions)
