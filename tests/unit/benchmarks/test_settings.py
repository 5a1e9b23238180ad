# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The settings: what each trains, and what it refuses."""

from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import get_args

import pytest

from anomalib_inp.benchmarks.runs import Benchmark
from anomalib_inp.benchmarks.settings import SETTINGS, SettingName, choose_setting
from anomalib_inp.data import Source
from anomalib_inp.models.registry import MODELS


def names(runs: Benchmark, *seeds: int) -> list[tuple[str, list[str] | None, list[str] | None]]:
    return [(run.name, run.data.get("train_on"), run.data.get("test_on")) for run in runs.runs(seeds or (0,))]


def test_what_each_setting_trains(make: Callable[..., Benchmark]) -> None:
    assert names(make("multi_class"), 0, 3) == [("seed0", None, None), ("seed3", None, None)]
    assert names(make("single_class")) == [
        ("seed0/brick", ["brick"], ["brick"]),
        ("seed0/grass", ["grass"], ["grass"]),
    ]
    assert names(make("zero_shot")) == [
        ("seed0/brick", ["grass"], ["brick"]),
        ("seed0/grass", ["brick"], ["grass"]),
    ]
    elsewhere = make("zero_shot", train_on=["brick"], test_on=["grass"])
    assert names(elsewhere) == [("seed0", None, None)]
    assert elsewhere.model_args["map"] == "self_distance"
    papers = make("zero_shot", model_args={"map": "prototype_distance"})
    assert papers.model_args["map"] == "prototype_distance"
    assert make("few_shot").data["shots"] == 4
    few = make("few_shot", count={"shots": 2})
    assert few.data["shots"] == 2
    assert few.folder.name == "few_shot_2-InpFormer"
    semi = make("semi_supervised", model="InpFormerPlusPlus", count={"labelled_anomalies": 3})
    assert semi.model_args["labelled_anomalies"] == 3
    assert [run.model for run in semi.runs((0, 1))] == [{"labelled_seed": 0}, {"labelled_seed": 1}]
    assert few.model_args == {"image_size": 448, "crop_size": 392}  # the paper's protocol


def test_settings_that_make_no_sense_are_refused(make: Callable[..., Benchmark], root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a segmentation head to teach: --model InpFormerPlusPlus"):
        make("semi_supervised")
    with pytest.raises(ValueError, match="needs several data sets: --sources"):
        make("super_multi_class")
    with pytest.raises(ValueError, match=r"needs two at least, got \['brick'\]"):
        make("zero_shot", categories=["brick"])
    with pytest.raises(ValueError, match="not trained on, but grass would be both: give"):
        make("zero_shot", train_on=["brick", "grass"], test_on=["grass"])
    twice = [Source("MVTecAD", str(root), name=name) for name in ("one", "other")]
    with pytest.raises(ValueError, match="not trained on, but other/brick, other/grass would be both"):
        make("zero_shot", sources=twice, train_on=["one"], test_on=["other"])
    with pytest.raises(ValueError, match="not trained on, but 2 of them are there under two names"):
        make("zero_shot", sources=twice)
    with pytest.raises(ValueError, match="single_class trains on each category that it tests on"):
        make("single_class", train_on=["brick"], test_on=["grass"])
    with pytest.raises(ValueError, match="shots is for few_shot, not for multi_class"):
        make("multi_class", count={"shots": 2})
    with pytest.raises(ValueError, match="labelled_anomalies is for semi_supervised, not for few_shot"):
        make("few_shot", count={"shots": 2, "labelled_anomalies": 3})
    with pytest.raises(ValueError, match="shots is for few_shot, not for multi_class"):
        make("multi_class", shots=2)
    with pytest.raises(ValueError, match="needs several data sets"):
        make("super_multi_class", sources=(Source("MVTecAD", str(root)),))
    for arguments, message in (
        ({"default_root_dir": "."}, "a folder of its own: leave default_root_dir out"),
        ({"step": 2, "max_steps": 2}, "The trainer has no arguments step"),
        ({"limit_test_batches": 2}, "tests on all images: leave limit_test_batches out"),
        ({"fast_dev_run": True}, "tests on all images: leave fast_dev_run out"),
    ):
        with pytest.raises(ValueError, match=message):
            Benchmark("multi_class", {"root": str(root)}, "InpFormer", tmp_path, {}, arguments)
    with pytest.raises(ValueError, match="few_shot sets shots=2 itself"):
        make("few_shot", count={"shots": 2}, shots=4)
    with pytest.raises(ValueError, match="unexpected keyword argument 'colour'"):
        make("multi_class", colour="red")
    for seeds in ([], [0, -1]):
        with pytest.raises(ValueError, match="seeds must be at least one number, none of them negative"):
            list(make("multi_class").runs(seeds))


def test_the_command_line_offers_every_setting() -> None:
    assert get_args(SettingName) == tuple(SETTINGS)
    assert {setting.only_model for setting in SETTINGS.values()} - {""} <= set(MODELS)


def test_a_number_of_images_changes_no_other_benchmark() -> None:
    two = choose_setting("few_shot", "InpFormer", {"shots": 2}, {}, {})
    assert (two.data, two.title) == ({"shots": 2}, "few_shot_2")
    usual = choose_setting("few_shot", "InpFormer", {"shots": None}, {}, {})
    assert (usual.data, usual.title) == ({"shots": 4}, "few_shot_4")
    with pytest.raises(FrozenInstanceError):
        usual.count = "labelled_anomalies"
