# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import csv
import json

import pytest
import torch
from rich.console import Console

from anomalib_inp.evaluation.metrics import COLUMNS
from anomalib_inp.evaluation.report import MEAN, markdown, metrics_table, with_mean, write_metrics

ROWS = {"screw": dict.fromkeys(COLUMNS, 0.98765), "nut": {"image_AUROC": 1.0, "image_AP": torch.nan}}


def test_table_shows_per_cent_and_dashes():
    console = Console(width=120)
    with console.capture() as capture:
        console.print(metrics_table(ROWS))
    header, screw, nut = (line for line in capture.get().splitlines() if any(c.isalnum() for c in line))
    cells = [[cell.strip() for cell in line.strip("┃│").replace("┃", "│").split("│")] for line in (header, screw, nut)]
    assert cells[0] == ["category", "I-AUROC", "I-AP", "I-F1max", "P-AUROC", "P-AP", "P-F1max", "AUPRO"]
    assert cells[1] == ["screw", *["98.77"] * 7]
    assert cells[2] == ["nut", "100.00", *["-"] * 6]


def test_long_names_are_whole_on_a_narrow_screen():
    console = Console(width=80)
    with console.capture() as capture:
        console.print(metrics_table({"MVTecAD/magnetic_tile": ROWS["screw"]}))
    first_column = [line.split("│")[1].strip() for line in capture.get().splitlines() if line.startswith("│")]
    assert "".join(first_column) == "MVTecAD/magnetic_tile"


def test_mean_is_of_the_categories_that_have_the_metric():
    mean = with_mean(ROWS)[MEAN]
    assert mean["image_AUROC"] == pytest.approx((0.98765 + 1) / 2)
    assert mean["image_AP"] == pytest.approx(0.98765)
    assert mean["pixel_AUPRO"] == pytest.approx(0.98765)
    assert with_mean({"nut": ROWS["nut"]})[MEAN] == {"image_AUROC": 1.0}


def test_files_say_the_same(tmp_path):
    write_metrics(tmp_path / "new", ROWS)

    with (tmp_path / "new" / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    told = json.loads((tmp_path / "new" / "metrics.json").read_text())
    lines = (tmp_path / "new" / "metrics.md").read_text().splitlines()
    assert [row["category"] for row in table] == list(told) == ["screw", "nut"]
    assert float(table[0]["pixel_AP"]) == told["screw"]["pixel_AP"] == 0.98765
    assert told["nut"] == {"image_AUROC": 1.0, "image_AP": None}
    assert lines[2] == "| screw | " + " | ".join(["98.77"] * 7) + " |"
    assert lines[3] == "| nut | 100.00 | - | - | - | - | - | - |"


def test_names_do_not_break_a_table():
    assert markdown(["a", "b"], [["x|y", "1"]]).splitlines()[-1] == "| x\\|y | 1 |"
