# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""``scores.csv``: what was said of each image, a row each."""

import csv
import io
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from anomalib_inp.files import replacing

FILE = "scores.csv"
COUNTED = "confusion.csv"
"""The verdicts of a table, counted, beside it."""
COLUMNS = ("image", "score", "raw_score", "anomalous", "error", "kind")
GOOD = "good"
"""The kind of normal images, as folders of MVTec AD are called."""
WRITTEN: dict[str, Any] = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}
"""How tables are opened: the name of a file may be no text."""
VERDICTS = {"": None, "0": False, "1": True}


class Row(NamedTuple):
    """What was said of an image.

    Attributes:
        image: Its name.
        score: As the model gives it, normalised or raw; NaN where there is none.
        raw_score: Before normalisation.
        anomalous: Whether it is above the threshold; ``None`` without one.
        error: Why nothing was said.
        kind: What it really is, ``good`` or a kind of defect, after the category where there are several; empty where
            that is unknown.
    """

    image: str
    score: float = math.nan
    raw_score: float = math.nan
    anomalous: bool | None = None
    error: str = ""
    kind: str = ""

    @property
    def is_normal(self) -> bool | None:
        """Whether it is an image of something good; ``None`` where that is unknown."""
        return self.kind.rpartition("/")[2] == GOOD if self.kind else None

    def cells(self) -> list[str]:
        """Write it as a row of the table."""
        numbers = ["" if math.isnan(value) else f"{value:.6f}" for value in (self.score, self.raw_score)]
        verdict = "" if self.anomalous is None else str(int(self.anomalous))
        return [self.image, *numbers, verdict, self.error, self.kind]


def write_rows(table: Path, rows: Iterable[Row]) -> None:
    """Write a table in one step."""
    with replacing(table) as temporary, temporary.open("w", **WRITTEN) as file:
        csv.writer(file).writerows([COLUMNS, *(row.cells() for row in rows)])


def read_rows(table: Path) -> Iterator[Row]:
    """Read the whole rows of a table: a kill may have left half of one at its end."""
    text = table.read_bytes().decode("utf-8", "surrogateescape")
    whole, end, _ = text.rpartition("\n")
    for cells in csv.reader(io.StringIO(whole + end, newline="")):
        if (row := _row(cells)) is not None:
            yield row


def read_all_rows(folder: Path) -> list[Row]:
    """Read the table in a folder of results, or a table.

    Raises:
        ValueError: There is none, or it has other columns or rows that are no results.
    """
    table = folder / FILE if folder.is_dir() else folder
    if not table.is_file():
        msg = f"There is no {FILE} in {folder}: test, benchmark and predict write it into the folder of their results."
        raise ValueError(msg)
    rows, (header, *lines) = list(read_rows(table)), _lines(table)
    if tuple(header) != COLUMNS or len(rows) != len(lines):
        msg = f"{table} is no table of scores with the columns {', '.join(COLUMNS)}; write it anew."
        raise ValueError(msg)
    return rows


def _lines(table: Path) -> list[list[str]]:
    with table.open(**WRITTEN) as file:
        return list(csv.reader(file)) or [[]]


def _row(cells: list[str]) -> Row | None:
    if len(cells) != len(COLUMNS):
        return None
    image, score, raw_score, verdict, error, kind = cells
    # The names of files are in the system's encoding, which need not be that of the table.
    image, kind = (os.fsdecode(name.encode("utf-8", "surrogateescape")) for name in (image, kind))
    if error and not score + raw_score + verdict:
        return Row(image, error=error, kind=kind)
    try:
        row = Row(image, float(score), float(raw_score), VERDICTS[verdict], error, kind)
    except (ValueError, KeyError):
        return None
    return row if math.isfinite(row.score) and math.isfinite(row.raw_score) and not error else None
