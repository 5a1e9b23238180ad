# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The runs of a benchmark: what is kept, what goes on, what is refused."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning import Callback

from anomalib_inp.benchmarks import runs as benchmark_runs
from anomalib_inp.benchmarks.report import write_report
from anomalib_inp.benchmarks.runs import Benchmark
from anomalib_inp.data import Source


def test_metrics_that_have_no_value_are_left_out(
    make: Callable[..., Benchmark], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"brick": {"image_AUROC": None, "pixel_AP": 0.5}, "grass": {"image_AUROC": 0.8, "pixel_AP": None}}

    def measured(model: None, data: None, engine: None, folder: Path) -> None:
        (folder / "metrics.json").write_text(json.dumps({**found, "mean": {"image_AUROC": 0.8, "pixel_AP": 0.5}}))

    monkeypatch.setattr(Benchmark, "_build", lambda *_: (None, None, None))
    monkeypatch.setattr(benchmark_runs, "train_and_test", measured)
    runs = make("multi_class")
    results = {run.seed: runs.result(run) for run in runs.runs((0,))}
    assert results == {0: {"brick": {"pixel_AP": 0.5}, "grass": {"image_AUROC": 0.8}}}
    write_report(runs, results)
    text = (runs.folder / "report.md").read_text()
    assert "| brick | - | - | - | - | 50.00 | - | - |" in text
    assert "| mean | 80.00 | - | - | - | 50.00 | - | - |" in text


def test_a_run_that_earlier_code_began_is_recognised(tmp_path: Path, root: Path) -> None:
    one = Source("MVTecAD", str(root), ["brick"])
    other = Source("MVTecAD", str(root), ["grass"], name="other")
    data = {"categories": "all", "sources": (one, other), "train_batch_size": 4}
    model = {"encoder": Path("test_vit")}
    benchmark = Benchmark("semi_supervised", data, "InpFormerPlusPlus", tmp_path, model, {"max_steps": 2})
    (run,) = benchmark.runs([3])
    assert json.dumps(benchmark.describe(run)) == (
        '{"setting": "semi_supervised_5", "class": "InpFormerPlusPlus", "seed": 3, '
        '"model": {"image_size": 448, "crop_size": 392, "encoder": "test_vit", "labelled_anomalies": 5, '
        '"labelled_seed": 3}, "data": {"sources": ['
        f'{{"source": "MVTecAD", "root": "{root}", "categories": ["brick"], "arguments": {{}}, "name": ""}}, '
        f'{{"source": "MVTecAD", "root": "{root}", "categories": ["grass"], "arguments": {{}}, "name": "other"}}], '
        '"train_batch_size": 4, "train_on": ["MVTecAD/brick", "other/grass"], '
        '"test_on": ["MVTecAD/brick", "other/grass"]}, "trainer": {"max_steps": 2}}'
    )


def test_what_was_computed_is_kept_for_the_same_arguments_alone(
    make: Callable[..., Benchmark],
    root: Path,
    write_small_sample: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def measured(model: None, data: None, engine: None, folder: Path) -> None:
        (folder / "metrics.json").write_text(json.dumps({"brick": {"image_AUROC": 0.5}}))

    def run(root: Path, **data: Any) -> benchmark_runs.Rows:
        runs = make("multi_class", root, **data)
        return runs.result(*runs.runs([0]))

    monkeypatch.setattr(Benchmark, "_build", lambda *_: (None, None, None))
    monkeypatch.setattr(benchmark_runs, "train_and_test", lambda *_: (_ for _ in ()).throw(ValueError("a typo")))
    with pytest.raises(ValueError, match="a typo"):
        run(root, train_batch_size=-1)
    monkeypatch.setattr(benchmark_runs, "train_and_test", measured)
    assert run(root, train_batch_size=4)  # nothing had been computed, so nothing is refused
    monkeypatch.chdir(root.parent)
    assert run(Path(root.name), train_batch_size=4, categories=["brick", "grass"])  # other words for the same
    assert run(root, train_batch_size=4, num_workers=3, eval_batch_size=2)  # which change no number
    with pytest.raises(ValueError, match=r"data\.train_batch_size was 4 and is 8"):
        run(root, train_batch_size=8)
    note = tmp_path / "multi_class-InpFormer" / "seed0" / "run.json"
    text = note.read_text()
    for broken in (None, text[:20]):
        note.unlink() if broken is None else note.write_text(broken)
        with pytest.raises(ValueError, match=rf"{note} .* is missing or broken\. Choose another output, or remove "):
            run(root, train_batch_size=4)
    note.write_text(text)
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
    with pytest.raises(ValueError, match=rf"{checkpoint} is no checkpoint.* Remove it to begin the run again\."):
        run("broken", stop)
    checkpoint.unlink()
    assert run("broken", stop) == whole
    assert stop.epochs == [0, 0, 1]


def test_all_images_are_tested_whatever_a_data_module_keeps_for_validation(
    make: Callable[..., Benchmark], root: Path
) -> None:
    arguments = {
        "normal_dir": "train/good",
        "normal_test_dir": "test/good",
        "abnormal_dir": ["test/hole", "test/stain"],
    }
    there = [
        len(list((root / "brick" / folder).glob("*.png"))) for folder in ("train/good", *arguments["abnormal_dir"])
    ]
    there.append(len(list((root / "brick" / "test" / "good").glob("*.png"))))
    runs = make("multi_class", source="Folder", categories=["brick"], arguments=arguments)
    tested = []
    for run in runs.runs((1, 2)):
        data = benchmark_runs.build_data({**runs.data, **run.data, "seed": run.seed})
        data.setup()
        assert len(data.train_data) == there[0]
        assert len(data.test_data) == sum(there[1:])
        tested.append(sorted(data.test_data.samples.image_path))
    assert tested[0] == tested[1]  # so that seeds compare
    with pytest.raises(ValueError, match="validates on none: leave val_split_mode out"):
        make("multi_class", val_split_mode="from_test")


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
