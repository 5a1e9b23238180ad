# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""``predictions.jsonl``: all that was said of each image, a JSON object each."""

import json
import math
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from typing_extensions import TypedDict

from anomalib_inp.files import replacing
from anomalib_inp.results.regions import Region

FILE = "predictions.jsonl"


class RegionRecord(TypedDict):
    """A connected region above the pixel threshold; places are pixels of the whole image, from its upper left corner.

    box: left, top, right, bottom. contour: points [x, y] around it. area: pixels. area_percent: per cent of the image.
    peak, mean: raw values of the anomaly map in it.
    """

    box: list[int]
    contour: list[list[int]]
    area: float
    area_percent: float
    peak: float
    mean: float


class ThresholdsRecord(TypedDict):
    """The raw thresholds in force; null without one."""

    image: float | None
    pixel: float | None


class Record(TypedDict):
    """What was said of an image.

    path: its name below the folder of the images. kind: what it really is, good or a kind of defect; empty where that
    is unknown. verdict: null without a threshold, or with an error. score: as the model gives it, normalised or raw;
    raw_score: before normalisation; both null with an error. size: width and height in pixels; null with an error.
    regions: the highest peak first. time: when, UTC. model: fingerprint of the model's files. error: why nothing was
    said; null where something was.
    """

    path: str
    kind: str
    verdict: Literal["normal", "anomalous"] | None
    score: float | None
    raw_score: float | None
    thresholds: ThresholdsRecord
    size: list[int] | None
    regions: list[RegionRecord]
    time: str
    model: str
    error: str | None


def make_record(
    path: str,
    model: str,
    thresholds: tuple[float, float],
    *,
    kind: str = "",
    anomalous: bool | None = None,
    scores: tuple[float, float] | None = None,
    size: tuple[int, int] | None = None,
    error: str | None = None,
) -> Record:
    """Write down what was said of an image, now.

    Args:
        path: Its name.
        model: Fingerprint of the model.
        thresholds: Raw image and pixel thresholds; NaN for none.
        kind: What it really is, if that is known.
        anomalous: The verdict.
        scores: Score and raw score.
        size: Width and height.
        error: Why nothing was said.
    """
    image, pixel = (None if math.isnan(value) else float(value) for value in thresholds)
    score, raw_score = (None, None) if scores is None else scores
    return {
        "path": path,
        "kind": kind,
        "verdict": None if anomalous is None else "anomalous" if anomalous else "normal",
        "score": score,
        "raw_score": raw_score,
        "thresholds": {"image": image, "pixel": pixel},
        "size": None if size is None else list(size),
        "regions": [],
        "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        "model": model,
        "error": error,
    }


def with_regions(record: Record, regions: Iterable[Region]) -> Record:
    """Add the regions of an image to its record."""
    return {**record, "regions": [_region_record(region) for region in regions]}


def line(record: Record) -> str:
    """Write a record as a line; a name that is no text is written as its bytes escaped, as Python does."""
    return json.dumps(record) + "\n"


def read_records(file: Path) -> Iterator[Record]:
    """Read the whole records of a file: a kill may have left half of one at its end."""
    with file.open("rb") as lines:
        for text in lines:
            try:
                record: Any = json.loads(text)
            except ValueError:
                continue
            if isinstance(record, dict) and record.keys() >= Record.__annotations__.keys():
                yield record  # type: ignore[misc]


def write_records(file: Path, records: Iterable[Record]) -> None:
    """Write records in one step."""
    with replacing(file) as temporary, temporary.open("w", encoding="ascii") as written:
        written.writelines(map(line, records))


def _region_record(region: Region) -> RegionRecord:
    values = region._asdict()
    return {**values, "box": list(region.box), "contour": [list(point) for point in region.contour]}  # type: ignore[typeddict-item]
