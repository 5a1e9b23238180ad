# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The report: means, published numbers beside them, notes and pictures."""

import csv
import json
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import anomalib.data
import pytest
from PIL import Image

from anomalib_inp.benchmarks.report import write_report
from anomalib_inp.benchmarks.runs import Benchmark, Rows
from anomalib_inp.benchmarks.settings import SETTINGS
from anomalib_inp.data import Source
from anomalib_inp.data.modules import categories_of
from anomalib_inp.evaluation.metrics import COLUMNS
from anomalib_inp.models.registry import MODELS


def rows(value: float, *categories: str) -> Rows:
    return {name: dict.fromkeys(COLUMNS, value + index / 100) for index, name in enumerate(categories)}


def test_published_numbers_stand_beside_the_measured_ones(make: Callable[..., Benchmark], tmp_path: Path) -> None:
    runs = make("multi_class", tmp_path)  # an empty folder: all categories, to be downloaded
    runs.folder.mkdir()
    (runs.folder / "seed0" / "images").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(runs.folder / "seed0" / "images" / "metal nut.png")
    (runs.folder / "seed2" / "images").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(runs.folder / "seed2" / "images" / "cable.png")
    means = write_report(runs, {0: rows(0.5, "bottle", "cable"), 1: rows(0.6, "bottle", "cable")})
    assert means["bottle"]["image_AP"] == pytest.approx(0.55)
    assert means["mean"]["image_AP"] == pytest.approx(0.555)
    text = (runs.folder / "report.md").read_text()
    assert "| bottle | 55.00 ±5.0 |" in text
    assert "| mean | 55.50 ±5.0 |" in text
    assert "| MVTecAD, published | 99.7 | 99.9 | 99.2 | 98.5 | 71.0 | 69.7 | 94.9 |" in text
    assert "arXiv 2503.02424" in text
    assert "one user measured 65.2" in text
    assert "seed2" not in text
    assert "![seed0/images/metal nut.png](seed0/images/metal%20nut.png)" in text
    with (runs.folder / "report.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(row["category"], row["seed"]) for row in table][:3] == [("bottle", "0"), ("cable", "0"), ("mean", "0")]


def test_leaving_one_out_is_told_from_training_elsewhere(make: Callable[..., Benchmark], tmp_path: Path) -> None:
    runs = make("zero_shot", tmp_path)
    runs.folder.mkdir()
    write_report(runs, {0: rows(0.5, "bottle", "cable")})
    text = (runs.folder / "report.md").read_text()
    assert "(trained on Real-IAD)" in text
    assert "each category is tested by a model of the other categories" in text


def test_published_numbers_belong_to_what_can_be_run() -> None:
    text = files("anomalib_inp.benchmarks").joinpath("published.json").read_text(encoding="utf-8")
    settings = set(SETTINGS) | {f"few_shot_{shots}" for shots in (1, 2, 4)}
    for model, by_setting in json.loads(text).items():
        assert model in MODELS
        assert by_setting.keys() <= settings - {"few_shot"}
        for source, numbers in (of_source for by_source in by_setting.values() for of_source in by_source.items()):
            assert categories_of(getattr(anomalib.data, source))
            assert len(numbers["values"]) == len(COLUMNS)
            assert all(value is None or 30 < value < 100 for value in numbers["values"])
            assert re.search(r"arXiv \d{4}\.\d{5}", numbers["source"])


def test_a_part_of_a_data_set_is_not_compared(make: Callable[..., Benchmark], tmp_path: Path) -> None:
    few = make("multi_class", tmp_path, categories=["bottle"])
    few.folder.mkdir()
    write_report(few, {0: rows(0.5, "bottle")})
    text = (few.folder / "report.md").read_text()
    assert "published" not in text
    assert "Per cent; seed 0." in text
    some = make("multi_class", tmp_path, train_on=["bottle"], test_on=categories_of(anomalib.data.MVTecAD))
    write_report(some, {0: rows(0.5, *some.tested)})
    assert "published" not in (some.folder / "report.md").read_text()
    others = make("multi_class")  # all that is there, which is something else
    write_report(others, {0: rows(0.5, "brick", "grass")})
    assert "published" not in (others.folder / "report.md").read_text()


def test_data_sets_of_a_super_multi_class_model_are_compared_one_by_one(
    make: Callable[..., Benchmark], root: Path, tmp_path: Path
) -> None:
    sources = [Source("MVTecAD", str(tmp_path / "none"), name="mvtec"), Source("MVTecAD", str(root), name="own")]
    runs = make("super_multi_class", sources=sources)
    runs.setting = SETTINGS["multi_class"]  # nothing is published of the real one
    runs.folder.mkdir()
    write_report(runs, {0: rows(0.5, *runs.tested)})
    text = (runs.folder / "report.md").read_text()
    assert text.count("| mvtec, published |") == 1


def test_several_data_sets_have_means_of_their_own(make: Callable[..., Benchmark], root: Path) -> None:
    sources = [Source("MVTecAD", str(root), ["brick"]), Source("MVTecAD", str(root), ["grass"], name="other")]
    runs = make("super_multi_class", sources=sources)
    runs.folder.mkdir()
    means = write_report(runs, {0: rows(0.5, "MVTecAD/brick", "other/grass")})
    assert means["mean"]["image_AP"] == pytest.approx(0.505)
    assert means["MVTecAD, mean"]["image_AP"] == pytest.approx(0.5)
    assert means["other, mean"]["image_AP"] == pytest.approx(0.51)
