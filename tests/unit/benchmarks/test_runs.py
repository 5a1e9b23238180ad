# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The benchmark of settings: what is run, what is kept, what is reported."""

import csv
import json
import re
import shutil
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import anomalib.data
import pytest
from lightning import Callback
from PIL import Image

from anomalib_inp import cli
from anomalib_inp.benchmarks import runs as benchmark_runs
from anomalib_inp.benchmarks.runs import Benchmark
from anomalib_inp.data import Source
from anomalib_inp.data.multi_category import categories_of
from anomalib_inp.evaluation.metrics import COLUMNS


@pytest.fixture(scope="module")
def root(write_small_sample: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_sample(tmp_path_factory.mktemp("benchmark"), categories=("brick", "grass"))


def make(
    setting: str,
    root: Path,
    output: Path,
    model: str = "InpFormer",
    count: dict[str, int] | None = None,
    **data: Any,
) -> Benchmark:
    if "sources" not in data:
        data = {"source": "MVTecAD", "root": str(root), **data}
    data = {"categories": "all", "num_workers": 0, **data}
    return Benchmark(setting, data, model, output, {}, {}, **(count or {}))


def names(runs: Benchmark, *seeds: int) -> list[tuple[str, list[str] | None, list[str] | None]]:
    return [(run.name, run.data.get("train_on"), run.data.get("test_on")) for run in runs.runs(seeds or (0,))]


def test_what_each_setting_trains(root: Path, tmp_path: Path) -> None:
    assert names(make("multi_class", root, tmp_path), 0, 3) == [("seed0", None, None), ("seed3", None, None)]
    assert names(make("single_class", root, tmp_path)) == [
        ("seed0/brick", ["brick"], ["brick"]),
        ("seed0/grass", ["grass"], ["grass"]),
    ]
    assert names(make("zero_shot", root, tmp_path)) == [
        ("seed0/brick", ["grass"], ["brick"]),
        ("seed0/grass", ["brick"], ["grass"]),
    ]
    elsewhere = make("zero_shot", root, tmp_path, train_on=["brick"], test_on=["grass"])
    assert names(elsewhere) == [("seed0", None, None)]
    assert elsewhere.model_args["map"] == "prototype_distance"
    assert make("few_shot", root, tmp_path).data["shots"] == 4
    few = make("few_shot", root, tmp_path, count={"shots": 2})
    assert few.data["shots"] == 2
    assert few.folder.name == "few_shot_2-InpFormer"
    semi = make("semi_supervised", root, tmp_path, "InpFormerPlusPlus", {"labelled_anomalies": 3})
    assert semi.model_args["labelled_anomalies"] == 3
    assert [run.model for run in semi.runs((0, 1))] == [{"labelled_seed": 0}, {"labelled_seed": 1}]
    assert few.model_args == {"image_size": 448, "crop_size": 392}  # the paper's protocol


def test_settings_that_make_no_sense_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a segmentation head to teach: --model InpFormerPlusPlus"):
        make("semi_supervised", root, tmp_path)
    with pytest.raises(ValueError, match="needs several data sets: --sources"):
        make("super_multi_class", root, tmp_path)
    with pytest.raises(ValueError, match=r"needs two at least, got \['brick'\]"):
        make("zero_shot", root, tmp_path, categories=["brick"])
    with pytest.raises(ValueError, match="not trained on, but grass would be both: give"):
        make("zero_shot", root, tmp_path, train_on=["brick", "grass"], test_on=["grass"])
    twice = [Source("MVTecAD", str(root), name=name) for name in ("one", "other")]
    with pytest.raises(ValueError, match="not trained on, but other/brick, other/grass would be both"):
        make("zero_shot", root, tmp_path, sources=twice, train_on=["one"], test_on=["other"])
    with pytest.raises(ValueError, match="not trained on, but 2 of them are there under two names"):
        make("zero_shot", root, tmp_path, sources=twice)
    with pytest.raises(ValueError, match="single_class trains on each category that it tests on"):
        make("single_class", root, tmp_path, train_on=["brick"], test_on=["grass"])
    with pytest.raises(ValueError, match="shots is for few_shot, not for multi_class"):
        make("multi_class", root, tmp_path, count={"shots": 2})
    with pytest.raises(ValueError, match="labelled_anomalies is for semi_supervised, not for few_shot"):
        make("few_shot", root, tmp_path, count={"shots": 2, "labelled_anomalies": 3})
    with pytest.raises(ValueError, match="shots is for few_shot, not for multi_class"):
        make("multi_class", root, tmp_path, shots=2)
    with pytest.raises(ValueError, match="needs several data sets"):
        make("super_multi_class", root, tmp_path, sources=(Source("MVTecAD", str(root)),))
    for arguments, message in (
        ({"default_root_dir": "."}, "a folder of its own: leave default_root_dir out"),
        ({"step": 2, "max_steps": 2}, "The trainer has no arguments step"),
        ({"limit_test_batches": 2}, "tests on all images: leave limit_test_batches out"),
        ({"fast_dev_run": True}, "tests on all images: leave fast_dev_run out"),
    ):
        with pytest.raises(ValueError, match=message):
            Benchmark("multi_class", {"root": str(root)}, "InpFormer", tmp_path, {}, arguments)
    with pytest.raises(ValueError, match="few_shot says shots=2 itself"):
        make("few_shot", root, tmp_path, count={"shots": 2}, shots=4)
    with pytest.raises(ValueError, match="unexpected keyword argument 'colour'"):
        make("multi_class", root, tmp_path, colour="red")
    for seeds in ([], [0, -1]):
        with pytest.raises(ValueError, match="seeds must be at least one number, none of them negative"):
            list(make("multi_class", root, tmp_path).runs(seeds))


def rows(value: float, *categories: str) -> benchmark_runs.Rows:
    return {name: dict.fromkeys(COLUMNS, value + index / 100) for index, name in enumerate(categories)}


def test_published_numbers_stand_beside_the_measured_ones(tmp_path: Path) -> None:
    runs = make("multi_class", tmp_path, tmp_path)  # an empty folder: all categories, to be downloaded
    runs.folder.mkdir()
    (runs.folder / "seed0" / "images").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(runs.folder / "seed0" / "images" / "metal nut.png")
    (runs.folder / "seed2" / "images").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(runs.folder / "seed2" / "images" / "cable.png")
    means = runs.report({0: rows(0.5, "bottle", "cable"), 1: rows(0.6, "bottle", "cable")})
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


def test_leaving_one_out_is_told_from_training_elsewhere(tmp_path: Path) -> None:
    runs = make("zero_shot", tmp_path, tmp_path)
    runs.folder.mkdir()
    runs.report({0: rows(0.5, "bottle", "cable")})
    text = (runs.folder / "report.md").read_text()
    assert "(trained on Real-IAD)" in text
    assert "each category is tested by a model of the other categories" in text


def test_published_numbers_belong_to_what_can_be_run() -> None:
    text = files("anomalib_inp.benchmarks").joinpath("published.json").read_text(encoding="utf-8")
    settings = set(get_args(benchmark_runs.Setting)) | {f"few_shot_{shots}" for shots in (1, 2, 4)}
    for model, by_setting in json.loads(text).items():
        assert model in benchmark_runs.MODELS
        assert by_setting.keys() <= settings - {"few_shot"}
        for source, numbers in (known for by_source in by_setting.values() for known in by_source.items()):
            assert categories_of(getattr(anomalib.data, source))
            assert len(numbers["values"]) == len(COLUMNS)
            assert all(value is None or 30 < value < 100 for value in numbers["values"])
            assert re.search(r"arXiv \d{4}\.\d{5}", numbers["source"])


def test_metrics_that_have_no_value_are_left_out(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"brick": {"image_AUROC": None, "pixel_AP": 0.5}, "grass": {"image_AUROC": 0.8, "pixel_AP": None}}

    def measured(model: None, data: None, engine: None, folder: Path) -> None:
        (folder / "metrics.json").write_text(json.dumps({**found, "mean": {"image_AUROC": 0.8, "pixel_AP": 0.5}}))

    monkeypatch.setattr(Benchmark, "_build", lambda *_: (None, None, None))
    monkeypatch.setattr(benchmark_runs, "_train_and_test", measured)
    runs = make("multi_class", root, tmp_path)
    results = {run.seed: runs.result(run) for run in runs.runs((0,))}
    assert results == {0: {"brick": {"pixel_AP": 0.5}, "grass": {"image_AUROC": 0.8}}}
    runs.report(results)
    text = (runs.folder / "report.md").read_text()
    assert "| brick | - | - | - | - | 50.00 | - | - |" in text
    assert "| mean | 80.00 | - | - | - | 50.00 | - | - |" in text


def test_a_part_of_a_data_set_is_not_compared(root: Path, tmp_path: Path) -> None:
    few = make("multi_class", tmp_path, tmp_path, categories=["bottle"])
    few.folder.mkdir()
    few.report({0: rows(0.5, "bottle")})
    text = (few.folder / "report.md").read_text()
    assert "published" not in text
    assert "Per cent; seed 0." in text
    some = make("multi_class", tmp_path, tmp_path, train_on=["bottle"], test_on=categories_of(anomalib.data.MVTecAD))
    some.report({0: rows(0.5, *some.tested)})
    assert "published" not in (some.folder / "report.md").read_text()
    others = make("multi_class", root, tmp_path)  # all that is there, which is something else
    others.report({0: rows(0.5, "brick", "grass")})
    assert "published" not in (others.folder / "report.md").read_text()


def test_data_sets_of_a_super_multi_class_model_are_compared_one_by_one(root: Path, tmp_path: Path) -> None:
    sources = [Source("MVTecAD", str(tmp_path / "none"), name="mvtec"), Source("MVTecAD", str(root), name="own")]
    runs = make("super_multi_class", root, tmp_path, sources=sources)
    runs.setting = runs.title = "multi_class"  # nothing is published of the real one
    runs.folder.mkdir()
    runs.report({0: rows(0.5, *runs.tested)})
    text = (runs.folder / "report.md").read_text()
    assert text.count("| mvtec, published |") == 1


def test_several_data_sets_have_means_of_their_own(root: Path, tmp_path: Path) -> None:
    sources = [Source("MVTecAD", str(root), ["brick"]), Source("MVTecAD", str(root), ["grass"], name="other")]
    runs = make("super_multi_class", root, tmp_path, sources=sources)
    runs.folder.mkdir()
    means = runs.report({0: rows(0.5, "MVTecAD/brick", "other/grass")})
    assert means["mean"]["image_AP"] == pytest.approx(0.505)
    assert means["MVTecAD, mean"]["image_AP"] == pytest.approx(0.5)
    assert means["other, mean"]["image_AP"] == pytest.approx(0.51)


def test_what_was_computed_is_kept_for_the_same_arguments_alone(
    root: Path, write_small_sample: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(model: None, data: None, engine: None, folder: Path) -> None:
        (folder / "metrics.json").write_text(json.dumps({"brick": {"image_AUROC": 0.5}}))

    def run(root: Path, **data: Any) -> benchmark_runs.Rows:
        runs = make("multi_class", root, tmp_path, **data)
        return runs.result(*runs.runs([0]))

    monkeypatch.setattr(Benchmark, "_build", lambda *_: (None, None, None))
    monkeypatch.setattr(benchmark_runs, "_train_and_test", lambda *_: (_ for _ in ()).throw(ValueError("a typo")))
    with pytest.raises(ValueError, match="a typo"):
        run(root, train_batch_size=-1)
    monkeypatch.setattr(benchmark_runs, "_train_and_test", measured)
    assert run(root, train_batch_size=4)  # nothing had been computed, so nothing is refused
    monkeypatch.chdir(root.parent)
    assert run(Path(root.name), train_batch_size=4, categories=["brick", "grass"])  # other words for the same
    assert run(root, train_batch_size=4, num_workers=3, eval_batch_size=2)  # which change no number
    with pytest.raises(ValueError, match=r"data\.train_batch_size was 4 and is 8"):
        run(root, train_batch_size=8)
    told = tmp_path / "multi_class-InpFormer" / "seed0" / "run.json"
    text = told.read_text()
    for broken in (None, text[:20]):
        told.unlink() if broken is None else told.write_text(broken)
        with pytest.raises(ValueError, match=rf"{told} .* is missing or broken\. Choose another output, or remove "):
            run(root, train_batch_size=4)
    told.write_text(text)
    with pytest.raises(ValueError, match=r"data\.root was"):
        run(write_small_sample(tmp_path / "other", categories=("brick", "grass")), train_batch_size=4)
    with pytest.raises(ValueError, match=r"data.train_on was \['brick', 'grass'\] and is \['brick'\]"):
        run(root, train_batch_size=4, categories=["brick"])


class StopOnce(Callback):
    """Notes the epochs, and ends the first training when its second begins."""

    def __init__(self, stops: bool = True) -> None:
        self.stops = stops
        self.epochs: list[int] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1 and self.stops:
            self.stops = False
            sys.exit("killed")
        self.epochs.append(trainer.current_epoch)


def test_a_stopped_run_goes_on(root: Path, tiny_encoder_file: Path, tmp_path: Path) -> None:
    model = {"encoder": "test_vit", "encoder_weights": str(tiny_encoder_file), "image_size": 64, "crop_size": None}
    data = {"source": "MVTecAD", "root": str(root), "train_batch_size": 4, "num_workers": 0}

    def run(output: str, stop: Callback) -> benchmark_runs.Rows:
        trainer = {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False, "callbacks": [stop]}
        runs = Benchmark("multi_class", data, "InpFormer", tmp_path / output, model, trainer)
        return runs.result(*runs.runs([1]))

    whole = run("whole", StopOnce(stops=False))
    stop = StopOnce()
    with pytest.raises(SystemExit, match="killed"):
        run("stopped", stop)
    assert run("stopped", stop) == whole
    assert stop.epochs == [0, 1]

    stop = StopOnce()
    with pytest.raises(SystemExit, match="killed"):
        run("broken", stop)
    (checkpoint,) = (tmp_path / "broken").rglob("model.ckpt")
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(ValueError, match=rf"{checkpoint} is no checkpoint.* begins anew: remove it\."):
        run("broken", stop)
    checkpoint.unlink()
    assert run("broken", stop) == whole
    assert stop.epochs == [0, 0, 1]


def test_a_benchmark_runs_once(
    root: Path,
    tiny_encoder_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["benchmark", "single_class", "--root", str(root), "--output", str(tmp_path / "out"), "--seeds", "[1]"]
    monkeypatch.chdir(tmp_path)
    encoder = Path(shutil.copy(tiny_encoder_file, "encoder.safetensors"))
    words += ["--model_args", json.dumps({"encoder": "test_vit", "encoder_weights": str(encoder)})]
    words += ["--model_args.image_size", "64", "--model_args.crop_size", "null"]
    words += ["--data_args", json.dumps({"num_workers": 0, "train_batch_size": 4})]
    words += ["--trainer_args", json.dumps({"max_steps": 2, "accelerator": "cpu", "enable_progress_bar": False})]

    def run(*more: str) -> str:
        monkeypatch.setattr(sys, "argv", ["anomalib-inp", *words, *more])
        cli.main()
        return capsys.readouterr().out

    shown = run()
    folder = tmp_path / "out" / "single_class-InpFormer"
    assert "brick" in shown
    for category in ("brick", "grass"):
        assert list(json.loads((folder / "seed1" / category / "metrics.json").read_text())) == [category]
        with Image.open(folder / "seed1" / category / "images" / f"{category}.png") as sheet:
            assert sheet.height > 4 * 192  # two of the best and the worst, anomalous and normal
        kept = sorted(path.name for path in (folder / "seed1" / category).rglob("*.ckpt"))
        assert kept == ["finished.ckpt"]  # what was to resume from is large
    told = (folder / "report.md").read_text()
    assert "model: image_size=64, crop_size=None, encoder=test_vit, encoder_weights=" in told
    assert "of the data: num_workers=0, train_batch_size=4; of the trainer: max_steps=2, accel" in told
    monkeypatch.setattr(benchmark_runs, "_train_and_test", lambda *_: pytest.fail("this run is done"))
    assert run().splitlines()[-5:] == shown.splitlines()[-5:]
    with pytest.raises(SystemExit, match=r"with other arguments: model\.num_prototypes was None and is 3. Choose"):
        run("--model_args.num_prototypes", "3")
    with pytest.raises(SystemExit, match="shots is for few_shot, not for single_class"):
        run("--shots", "2")
    encoder.write_bytes(encoder.read_bytes()[:-1] + b"\0")
    with pytest.raises(SystemExit, match=r"other arguments: model\.encoder_weights was /.*/encoder\.safetensors, \d+-"):
        run()


def test_all_images_are_tested_whatever_a_data_module_keeps_for_validation(root: Path, tmp_path: Path) -> None:
    arguments = {
        "normal_dir": "train/good",
        "normal_test_dir": "test/good",
        "abnormal_dir": ["test/hole", "test/stain"],
    }
    there = [
        len(list((root / "brick" / folder).glob("*.png"))) for folder in ("train/good", *arguments["abnormal_dir"])
    ]
    there.append(len(list((root / "brick" / "test" / "good").glob("*.png"))))
    runs = make("multi_class", root, tmp_path, source="Folder", categories=["brick"], arguments=arguments)
    tested = []
    for run in runs.runs((1, 2)):
        data = benchmark_runs._data({**runs.data, **run.data, "seed": run.seed})
        data.setup()
        assert len(data.train_data) == there[0]
        assert len(data.test_data) == sum(there[1:])
        tested.append(sorted(data.test_data.samples.image_path))
    assert tested[0] == tested[1]  # so that seeds compare
    with pytest.raises(ValueError, match="validates on none: leave val_split_mode out"):
        make("multi_class", root, tmp_path, val_split_mode="from_test")


def test_a_benchmark_has_one_encoder_and_its_own_metrics(root: Path, tiny_encoder_file: Path, tmp_path: Path) -> None:
    encoder = Path(shutil.copy(tiny_encoder_file, tmp_path))
    model = {"encoder": "test_vit", "encoder_weights": str(encoder)}
    runs = Benchmark("multi_class", {"root": str(root)}, "InpFormer", tmp_path, model, {})
    encoder.write_bytes(b"another")
    with pytest.raises(ValueError, match=r"A file has changed since the benchmark began: encoder_weights was"):
        runs.result(*runs.runs([0]))
    with pytest.raises(ValueError, match="A benchmark has its own evaluator: leave it out"):
        Benchmark("multi_class", {"root": str(root)}, "InpFormer", tmp_path, {"evaluator": False}, {})


def test_arguments_that_do_not_fit_leave_nothing(root: Path, tmp_path: Path) -> None:
    runs = Benchmark("multi_class", {"root": str(root)}, "InpFormer", tmp_path, {"colour": "red"}, {})
    (run,) = runs.runs([0])
    with pytest.raises(ValueError, match="colour"):
        runs.result(run)
    assert not runs.folder.exists()
