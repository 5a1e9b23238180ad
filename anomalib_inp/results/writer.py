# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The files of a run: ``predictions.jsonl``, ``scores.csv``, heat maps, and what they were made of."""

import csv
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from typing_extensions import Self

from anomalib_inp.files import LONGEST_NAME, disk_error, replacing
from anomalib_inp.frame import WHOLE_IMAGE, CropBox
from anomalib_inp.results import records, score_table
from anomalib_inp.results.records import Record, line
from anomalib_inp.results.score_table import COLUMNS, WRITTEN, Row

NOTE = "run.json"
HEAT_MAPS = "heat_maps"
"""Folder of the heat maps: of each image one of the inspected part, in grey, 128 at the threshold."""


class ResultFiles:
    """Writes what is said of images while it is said: whole lines and rows are there, whatever comes.

    Args:
        folder: Where to; it is made.
        append: Whether to go on behind what is there.
    """

    def __init__(self, folder: Path, append: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._stack = ExitStack()
        mode = "a" if append else "w"
        self._lines = self._stack.enter_context((folder / records.FILE).open(mode, encoding="ascii"))
        self._rows = self._stack.enter_context((folder / score_table.FILE).open(mode, **WRITTEN))
        if not append:
            self._write_row(COLUMNS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def write(self, record: Record) -> None:
        """Write a record.

        Raises:
            DiskError: The disk is full.
            FileNotFoundError: Somebody has taken the file away.
        """
        try:
            self._lines.write(line(record))
            self._lines.flush()
        except OSError as error:
            raise disk_error(self.folder / records.FILE, error) from error
        if os.fstat(self._lines.fileno()).st_nlink == 0:
            msg = f"{self.folder / records.FILE} was removed while it was written: what is said now would be lost."
            raise FileNotFoundError(msg)
        self._write_row(row_of(record).cells())

    def _write_row(self, cells: Sequence[str]) -> None:
        try:
            csv.writer(self._rows).writerow(cells)
            self._rows.flush()
        except OSError as error:
            raise disk_error(self.folder / score_table.FILE, error) from error


def row_of(record: Record) -> Row:
    """Take the row of the table of scores out of a record."""
    if record["error"] is not None or record["score"] is None or record["raw_score"] is None:
        return Row(record["path"], error=record["error"] or "", kind=record["kind"])
    verdict = None if record["verdict"] is None else record["verdict"] == "anomalous"
    return Row(record["path"], record["score"], record["raw_score"], verdict, kind=record["kind"])


def heat_map_image(shown_map: np.ndarray) -> Image.Image:
    """Make a grey image of an anomaly map ``(h, w)``, normalised to [0, 1]."""
    return Image.fromarray((np.clip(shown_map, 0, 1) * 255).round().astype(np.uint8))


def write_heat_map(folder: Path, name: str, shown_map: np.ndarray) -> None:
    """Write the heat map of an image, its anomaly map ``(h, w)`` normalised to [0, 1], among those of a folder."""
    file = picture_path(folder, HEAT_MAPS, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        heat_map_image(shown_map).save(temporary)


def picture_path(folder: Path, kind: str, name: str) -> Path:
    """Name a picture of an image, in the folder of the pictures of that kind.

    It is called as the image, and that it is a PNG; a name that grows too long is made anew.
    """
    path = folder / kind / f"{name}.png"
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        path = path.with_name(f"{hashlib.blake2b(os.fsencode(path.name), digest_size=16).hexdigest()}.png")
    return path


def write_note(
    folder: Path,
    images: Path,
    model: str,
    made_by: str,
    crop_box: CropBox = WHOLE_IMAGE,
    shifts: Mapping[str, float] | None = None,
) -> None:
    """Note what the results of a folder are made of.

    Args:
        folder: The folder.
        images: Folder that the names of the images begin below.
        model: File of the model.
        made_by: What the scores depend on besides the images.
        crop_box: The part of the images that heat maps cover.
        shifts: By category, empty for the common one: how far a sensitivity moves what is in force from the threshold.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "made_by": made_by,
        "images": str(images.resolve()),
        "model": model,
        "crop_box": crop_box,
        "shifts": {name: shift for name, shift in (shifts or {}).items() if shift},
    }
    with replacing(folder / NOTE) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")


def read_note(folder: Path) -> dict[str, Any]:
    """Read what :func:`write_note` has written; empty where there is nothing readable."""
    try:
        content = json.loads((folder / NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def mend_files(folder: Path) -> None:
    """Bring the files of a folder in order after a kill: no half line at the end, and a row for each record."""
    file = folder / records.FILE
    if not file.is_file():
        return
    with file.open("rb+") as journal:
        size = journal.seek(0, os.SEEK_END)
        while size and not _ends_a_line(journal, size):
            size -= 1
        journal.truncate(size)
    score_table.write_rows(folder / score_table.FILE, map(row_of, records.read_records(file)))


def _ends_a_line(file: BinaryIO, size: int) -> bool:
    file.seek(size - 1)
    return file.read(1) == b"\n"


def keep_records(folder: Path, names: Iterable[str]) -> list[Record]:
    """Leave in the files of a folder what was said of some images, each once and without errors.

    Returns:
        The records that are left.
    """
    wanted, found = set(names), dict[str, Record]()
    file = folder / records.FILE
    for record in records.read_records(file) if file.is_file() else ():
        if record["path"] in wanted and record["error"] is None:
            found[record["path"]] = record
    kept = list(found.values())
    records.write_records(file, kept)
    score_table.write_rows(folder / score_table.FILE, map(row_of, kept))
    return kept
