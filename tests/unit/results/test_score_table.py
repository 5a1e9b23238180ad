# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import csv
import math
import os
from pathlib import Path

import pytest

from anomalib_inp.results.score_table import COLUMNS, WRITTEN, Row, read_all_rows, read_rows, write_rows

ROWS = [
    Row("good/1.png", 0.25, -1.5, False, kind="good"),
    Row("b, c/2.png", 0.75, 3.0, True, kind='grass/a "cut"'),
    Row("3.png", 2.5, 2.5),
    Row("4.png", error="cannot be read", kind="hole"),
    Row(os.fsdecode(b"f\xff.png"), 1.0, 1.0, True, kind="good"),
]


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    write_rows(tmp_path / "scores.csv", ROWS)
    for found in (list(read_rows(tmp_path / "scores.csv")), read_all_rows(tmp_path)):
        assert [repr(row) for row in found] == [repr(row) for row in ROWS]  # NaN is not equal to itself
    with (tmp_path / "scores.csv").open(**WRITTEN) as file:
        assert next(csv.DictReader(file)) == {
            "image": "good/1.png",
            "score": "0.250000",
            "raw_score": "-1.500000",
            "anomalous": "0",
            "error": "",
            "kind": "good",
        }


def test_what_is_normal(tmp_path: Path) -> None:
    assert [row.is_normal for row in ROWS] == [True, False, None, False, True]
    assert Row("1.png", kind="grass/good").is_normal


@pytest.mark.parametrize(
    "line",
    [
        "1.png,0.5,0.5,0,good\n",
        "1.png,a,0.5,0,,good\n",
        "1.png,0.5,nan,0,,good\n",
        "1.png,0.5,0.5,2,,good\n",
        "1.png,,\n",
    ],
)
def test_damaged_rows_are_passed_over_or_refused(line: str, tmp_path: Path) -> None:
    table = tmp_path / "scores.csv"
    write_rows(table, ROWS)
    table.write_bytes(table.read_bytes() + line.encode())
    assert len(list(read_rows(table))) == len(ROWS)
    with pytest.raises(ValueError, match=r"is no table of scores with the columns image, score"):
        read_all_rows(tmp_path)


def test_half_a_row_at_the_end_is_none(tmp_path: Path) -> None:
    table = tmp_path / "scores.csv"
    write_rows(table, ROWS[:2])
    table.write_bytes(table.read_bytes()[:-5])
    assert [row.image for row in read_rows(table)] == ["good/1.png"]


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n"])
def test_other_tables_are_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_text(content)
    with pytest.raises(ValueError, match="is no table of scores"):
        read_all_rows(tmp_path / "scores.csv")
    with pytest.raises(ValueError, match=r"There is no scores\.csv in"):
        read_all_rows(tmp_path / "none")
    assert COLUMNS[0] == "image"
    assert math.isnan(ROWS[3].score)
