# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import csv
from pathlib import Path

import pytest
from rich.console import Console
from scipy.stats import binomtest

from anomalib_inp.results.score_table import Row
from anomalib_inp.thresholds.rates import Rate
from anomalib_inp.thresholds.verdicts import count_verdicts, verdict_table, write_verdicts

ROWS = [
    *(Row(f"hole/{place}.png", 1.0, 1.0, place > 0, kind="hole") for place in range(4)),
    *(Row(f"good/{place}.png", 0.0, 0.0, place == 7, kind="good") for place in range(10)),
    Row("dent/0.png", 1.0, 1.0, True, kind="dent"),
    Row("dent/1.png", error="broken", kind="dent"),
    Row("unknown.png", 1.0, 1.0, True),
    Row("raw.png", 1.0, 1.0, kind="dent"),
]


def test_verdicts_are_counted_normal_images_first() -> None:
    rates = count_verdicts(ROWS)
    assert list(rates.items()) == [("good", Rate(1, 10)), ("dent", Rate(1, 1)), ("hole", Rate(3, 4))]


def test_kinds_stay_with_their_category() -> None:
    kinds = ["b/good", "a/cut", "b/bent", "a/good"]
    rates = count_verdicts(Row(f"{kind}.png", 0.0, 0.0, False, kind=kind) for kind in kinds)
    assert list(rates) == ["a/good", "a/cut", "b/good", "b/bent"]


def test_verdicts_are_written_with_their_intervals(tmp_path: Path) -> None:
    write_verdicts(tmp_path, count_verdicts(ROWS))
    with (tmp_path / "confusion.csv").open(newline="") as file:
        found = {row["kind"]: row for row in csv.DictReader(file)}
    assert [found["hole"][name] for name in ("images", "above", "share")] == ["4", "3", "0.750000"]
    expected = binomtest(3, 4).proportion_ci(method="exact")
    assert [float(found["hole"][name]) for name in ("low", "high")] == pytest.approx(list(expected), abs=1e-6)


def test_verdicts_are_printed_as_what_they_mean(capsys) -> None:
    Console(width=120).print(verdict_table(count_verdicts(ROWS)))
    lines = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    assert ["good", "10", "1", "10.0", "0.3", "to", "44.5"] in lines
    assert ["hole", "4", "3", "1", "75.0", "19.4", "to", "99.4"] in lines
