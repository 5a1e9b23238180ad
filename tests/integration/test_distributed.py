# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Training in two processes, each with half of every batch, follows training in one."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import process_jobs
import pytest
from PIL import Image

from anomalib_inp.data.sample import write_sample_data
from anomalib_inp.results.score_table import read_all_rows


def execute(command: list[str], folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program that starts processes of its own."""
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1"}
    environment.pop("PL_GLOBAL_SEED", None)  # left by a test in this process that has seeded
    return subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=300, env=environment, cwd=folder
    )


@pytest.fixture(scope="module")
def measured(tiny_encoder_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of what one process (this one) and two have done."""
    folder = tmp_path_factory.mktemp("processes")
    data = write_sample_data(folder / "sample", categories=("brick", "grass"))
    # An odd number of test images, and of normal validation images: the sampler hands one out twice.
    for image in sorted(data.glob("grass/train/good/*.png"))[:10]:
        image.unlink()
    for image in data.glob("grass/test/*/*.png"):
        if image.stem != "000":
            image.unlink()
            (data / "grass" / "ground_truth" / image.parent.name / f"{image.stem}_mask.png").unlink(missing_ok=True)
    arguments = [str(data), str(tiny_encoder_file), str(folder)]
    process_jobs.main(*arguments, devices=1)
    result = execute([sys.executable, process_jobs.__file__, *arguments, "2"])
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


def losses(folder: Path, processes: int) -> list[list[float]]:
    """The losses of each process."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob(f"losses{processes}_*.json"))]
    assert len(found) == processes
    assert all(len(values) == 20 for values in found)
    return found


@pytest.mark.parametrize("name", ["InpFormer", "++ losses"])
def test_two_processes_follow_one(measured: Path, name: str) -> None:
    (alone,) = losses(measured / name, 1)
    halves = losses(measured / name, 2)
    together = [(first + second) / 2 for first, second in zip(*halves, strict=True)]
    assert together == pytest.approx(alone, rel=1e-5)
    assert len(list((measured / name).glob("*.safetensors"))) == 1  # all three processes shared one cache


def test_the_head_trains_in_two_processes(measured: Path) -> None:
    # Each process draws pseudo-anomalies of its own, so the losses are not those of one process.
    first, second = losses(measured / "++ with head", 2)
    assert first != second
    assert sum(first[-5:]) < sum(first[:5])


def test_two_processes_measure_what_one_does(measured: Path) -> None:
    found = []
    for devices in (1, 2):
        folder = measured / str(devices)
        ranges = [json.loads(path.read_text()) for path in sorted(folder.glob("ranges*.json"))]
        assert len(ranges) == devices
        assert all(values == ranges[0] for values in ranges)
        metrics = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("exact", "binned")}
        sheets = {path.stem: np.asarray(Image.open(path), dtype=float) for path in (folder / "sheets").iterdir()}
        found.append((metrics, ranges[0], sheets))
    (one, one_ranges, one_sheets), (two, two_ranges, two_sheets) = found
    assert one_sheets.keys() == two_sheets.keys() == {"brick", "grass"}
    for name, sheet in one_sheets.items():
        assert sheet.shape == two_sheets[name].shape
        assert np.abs(sheet - two_sheets[name]).mean() < 0.1  # the same images in the same places
    for name in ("exact", "binned"):
        assert list(one[name]) == ["brick", "grass", "mean"]
        for category, values in one[name].items():
            assert values == pytest.approx(two[name][category], abs=1e-6)
            assert values == pytest.approx(one["exact"][category], abs=1e-3)
    mine, other = (read_all_rows(measured / str(devices) / "exact.csv") for devices in (1, 2))
    assert [(row.image, row.kind) for row in mine] == [(row.image, row.kind) for row in other]
    assert len({row.image for row in mine}) == len(mine)
    assert [row.raw_score for row in mine] == pytest.approx([row.raw_score for row in other], abs=1e-5)
    assert list(one_ranges) == list(two_ranges) == ["brick", "grass", "of normal images"]
    for name, kinds in one_ranges.items():
        for mine, other in zip(kinds, two_ranges[name], strict=True):
            assert mine == pytest.approx(other, rel=1e-5), name


def test_two_processes_share_one_folder(
    tiny_encoder_file: Path, write_small_sample: Callable[..., Path], tmp_path: Path
) -> None:
    data = write_small_sample(tmp_path / "sample", categories=("brick", "grass"))
    command = [str(Path(sys.executable).with_name("anomalib")), "train", "--model", "InpFormer"]
    command += ["--model.encoder", "test_vit", "--model.image_size", "64"]
    command += ["--model.encoder_weights", str(tiny_encoder_file), "--data", "MultiCategory", "--data.root", str(data)]
    command += ["--data.num_workers", "0", "--data.train_batch_size", "2", "--trainer.accelerator", "cpu"]
    command += ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.max_steps", "1"]
    result = execute(command, tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    home = tmp_path / "results/InpFormer/MultiCategory"
    assert sorted(path.name for path in home.iterdir()) == ["latest", "v0"]
    latest = home / "latest"
    assert latest.resolve() == home / "v0"
    assert (latest / "weights/lightning/finished.ckpt").is_file()
    assert (latest / "metrics.json").is_file()
    tested = [path for category in ("brick", "grass") for path in data.glob(f"{category}/test/*/*.png")]
    assert len(list(latest.glob("images/**/*.png"))) == len(tested)


def test_processes_that_split_the_images_differently_are_refused(tiny_encoder_file: Path, tmp_path: Path) -> None:
    data = write_sample_data(tmp_path / "sample", categories=("brick",))
    command = [str(Path(sys.executable).with_name("anomalib")), "fit", "--model", "InpFormer"]
    command += ["--model.encoder", "test_vit", "--model.encoder_weights", str(tiny_encoder_file)]
    command += ["--data", "MVTecAD", "--data.root", str(data), "--data.category", "brick"]
    command += ["--data.val_split_mode", "from_test", "--trainer.accelerator", "cpu", "--trainer.max_steps", "1"]
    command += ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    result = execute(command, tmp_path)
    assert result.returncode != 0
    assert "Each process drew a different split of the images" in result.stderr
    assert "different ones in every run" in result.stderr


def test_a_benchmark_runs_in_two_processes(
    tiny_encoder_file: Path, write_small_sample: Callable[..., Path], tmp_path: Path
) -> None:
    data = write_small_sample(tmp_path / "sample", categories=("brick", "grass"))
    model = {"encoder": "test_vit", "encoder_weights": str(tiny_encoder_file), "image_size": 64, "crop_size": None}
    trainer = {"max_steps": 1, "accelerator": "cpu", "devices": 2, "strategy": "ddp", "enable_progress_bar": False}
    arguments = {
        "root": data,
        "output": tmp_path,
        "model_args": json.dumps(model),
        "data_args": json.dumps({"num_workers": 0, "train_batch_size": 2}),
        "trainer_args": json.dumps(trainer),
    }
    command = [sys.executable, "-m", "anomalib_inp.cli", "benchmark", "single_class"]
    command += [f"--{name}={value}" for name, value in arguments.items()]
    result = execute(command)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("Report: ") == 1
    for file in ("metrics.json", "scores.csv"):
        assert len(list((tmp_path / "single_class-InpFormer").glob(f"seed0/*/{file}"))) == 2
    # Processes that made folders of their own would now and then make the same one.
    assert len(list((tmp_path / "single_class-InpFormer").glob("seed0/*/InpFormer/MultiCategory/v*"))) == 2
