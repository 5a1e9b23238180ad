# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""One HTML file about a run: scores, a threshold that moves, images with their heat maps."""

import base64
import io
import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from anomalib_inp.files import replacing
from anomalib_inp.images import read_pixels
from anomalib_inp.pictures.strip import heat_colours, panel_image
from anomalib_inp.results.records import FILE, Record, read_records
from anomalib_inp.results.writer import HEAT_MAPS, picture_path, read_note

SIDES = {200: 640, 800: 360}
"""Pixels of the longer side of images, by how many there are at most."""
SMALLEST_SIDE = 224
HEAT_SIDE = 128
MOST_REGIONS = 30
"""Outlines that are drawn on an image."""


class Report(NamedTuple):
    """What was written.

    Attributes:
        path: The file.
        images: Images with a score.
        missing: Those whose files are not where the run says.
    """

    path: Path
    images: int
    missing: int


def write_report(
    run: Path,
    output: Path | None = None,
    images: Path | None = None,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] | None = None,
) -> Report:
    """Write the report of a run.

    Args:
        run: Folder with ``predictions.jsonl``, and heat maps and ``run.json`` if there are any.
        output: The file; by default ``report.html`` in the folder.
        images: Folder of the images; by default the one that the run names.
        progress: What shows how far it is, given the images and their number.

    Raises:
        ValueError: There is no such run, or it scores no image.
    """
    if not (run / FILE).is_file():
        msg = f"There is no {FILE} in {run}: test and predict write it into the folder of their results."
        raise ValueError(msg)
    records = list({record["path"]: record for record in read_records(run / FILE)}.values())
    scored = [record for record in records if record["error"] is None and record["raw_score"] is not None]
    if not scored:
        msg = f"{run} holds no image with a score; nothing can be shown of it."
        raise ValueError(msg)
    note = read_note(run)
    root = images or Path(note.get("images", run))
    side = next((side for count, side in SIDES.items() if len(scored) <= count), SMALLEST_SIDE)
    with ThreadPoolExecutor() as pool:
        entries = pool.map(partial(_entry, run, root, side), scored)
        shown = list(entries if progress is None else progress(entries, len(scored)))
    missing = sum(entry["photo"] is None for entry in shown)
    data = {
        "title": f"{'/'.join(root.parts[-2:])}: {len(scored)} images",
        "about": ", ".join(
            part for part in (f"images of {root}", note.get("model") and f"model {note['model']}") if part
        ),
        "model": note.get("model", ""),
        "shifts": note.get("shifts", {}),
        "crop_box": note.get("crop_box", [0, 0, 1, 1]),
        "images": shown,
        "errors": [f"{record['path']}: {record['error']}" for record in records if record["error"] is not None],
    }
    page = files("anomalib_inp.reports").joinpath("report.html").read_text(encoding="utf-8")
    # in a script, nothing but this ends it
    page = page.replace("{{data}}", json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"))
    path = output or run / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return Report(path, len(scored), missing)


def _entry(run: Path, root: Path, side: int, record: Record) -> dict[str, Any]:
    entry = {
        "path": record["path"],
        "kind": record["kind"],
        "score": record["raw_score"],
        "threshold": record["thresholds"]["image"],
        "size": record["size"],
        "regions": [region["contour"] for region in record["regions"][:MOST_REGIONS]],
        "photo": None,
        "heat": None,
    }
    try:
        picture = panel_image(read_pixels(root / record["path"]), side)
    except ValueError:  # moved or broken since: its score is shown all the same
        return entry
    picture.thumbnail((side, side))
    entry["photo"] = _encoded(picture, "JPEG", quality=82)
    heat_map = picture_path(run, HEAT_MAPS, record["path"])
    if heat_map.is_file():
        with Image.open(heat_map) as image:
            image.thumbnail((HEAT_SIDE, HEAT_SIDE))
            colours = heat_colours(np.asarray(image.convert("L")) / 255)
        entry["heat"] = _encoded(Image.fromarray(colours), "WEBP", quality=70)
    return entry


def _encoded(image: Image.Image, kind: str, **options: Any) -> str:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return base64.b64encode(file.getvalue()).decode("ascii")
