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
import pytest
from PIL import Image

from anomalib_inp.data.sample import write_sample_data

SCRIPT = """
import json, sys
from pathlib import Path

import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from lightning import Callback, seed_everything
from torch import distributed as dist
from torch.utils.data import DataLoader, DistributedSampler

from anomalib_inp import InpFormer, InpFormerPlusPlus

data, encoder, folder, devices, name = sys.argv[1:4] + [int(sys.argv[4]), sys.argv[5]]
torch.set_num_threads(1)


class InOrder(MVTecAD):
    def train_dataloader(self):
        # Lightning's own sampler would shuffle, and otherwise than one process does.
        sampler = DistributedSampler(self.train_data, shuffle=False) if dist.is_initialized() else None
        collate = self.train_data.collate_fn
        return DataLoader(self.train_data, self.train_batch_size, sampler=sampler, collate_fn=collate)


class Losses(Callback):
    values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.values.append(outputs["loss"].item())

    def on_train_end(self, trainer, pl_module):
        Path(folder, f"losses{trainer.world_size}_{trainer.global_rank}.json").write_text(json.dumps(self.values))


seed_everything(0)
kind, arguments = {
    "InpFormer": (InpFormer, {}),
    "++ losses": (InpFormerPlusPlus, {"head": False}),
    "++ with head": (InpFormerPlusPlus, {}),
}[name]
cache = {"feature_cache": "disk", "feature_cache_dir": folder}
model = kind("test_vit", encoder, image_size=64, map_size=64, warmup_steps=5, **cache, **arguments)
quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
Engine(
    default_root_dir=folder, max_epochs=4, accelerator="cpu", devices=devices,
    strategy="ddp" if devices > 1 else "auto", callbacks=[Losses()], **quiet,
).fit(model, datamodule=InOrder(data, "brick", 8 // devices, num_workers=0, val_split_mode="none"))
"""


def execute(command: list[str], folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program that starts processes of its own."""
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1"}
    environment.pop("PL_GLOBAL_SEED", None)  # left by a test in this process that has seeded
    return subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=300, env=environment, cwd=folder
    )


def train(data: Path, encoder: Path, folder: Path, devices: int, name: str) -> list[list[float]]:
    """Train in so many processes; returns the losses of each."""
    script = folder / "train.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(data), str(encoder), str(folder), str(devices), name]
    result = execute(command)
    assert result.returncode == 0, result.stderr[-3000:]
    losses = [json.loads(path.read_text()) for path in sorted(folder.glob(f"losses{devices}_*.json"))]
    assert len(losses) == devices
    assert all(len(values) == 20 for values in losses)
    return losses


@pytest.mark.parametrize("name", ["InpFormer", "++ losses"])
def test_two_processes_follow_one(tiny_encoder_file: Path, tmp_path: Path, name: str) -> None:
    data = write_sample_data(tmp_path / "sample", categories=("brick",))
    (alone,) = train(data, tiny_encoder_file, tmp_path, 1, name)
    halves = train(data, tiny_encoder_file, tmp_path, 2, name)
    together = [(first + second) / 2 for first, second in zip(*halves, strict=True)]
    assert together == pytest.approx(alone, rel=1e-4)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1  # all three processes shared one cache


def test_the_head_trains_in_two_processes(tiny_encoder_file: Path, tmp_path: Path) -> None:
    # Each process draws pseudo-anomalies of its own, so the losses are not those of one process.
    data = write_sample_data(tmp_path / "sample", categories=("brick",))
    first, second = train(data, tiny_encoder_file, tmp_path, 2, "++ with head")
    assert first != second
    assert sum(first[-5:]) < sum(first[:5])


EVALUATION = """
import json, sys
from pathlib import Path

import torch
from anomalib.engine import Engine
from lightning import Callback, seed_everything

from anomalib_inp import InpFormer, InpPostProcessor, MultiCategory
from anomalib_inp.pictures.extremes import ExtremeResults

data, encoder, folder, devices = *sys.argv[1:4], int(sys.argv[4])
torch.set_num_threads(1)
seed_everything(0)
sheets = ExtremeResults(Path(folder, "sheets"))
thresholds = InpPostProcessor(normal_image_quantile=0.5, normal_pixel_quantile=0.5)
model = InpFormer("test_vit", encoder, image_size=64, map_size=64, visualizer=sheets, post_processor=thresholds)
quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
engine = Engine(
    default_root_dir=folder, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", **quiet
)
arguments = {"root": data, "num_workers": 0, "eval_batch_size": 4}
normal = MultiCategory("MVTecAD", val_split_mode="from_train", val_split_ratio=0.1, **arguments)
engine.validate(model, datamodule=normal)
of_normal = [[list(kind) for kind in kinds] for kinds in model.post_processor.ranges.values()]
names = ("image_threshold", "image_min", "pixel_threshold", "pixel_min")
common = [getattr(model.post_processor, name).item() for name in names]
images = MultiCategory("MVTecAD", val_split_mode="same_as_test", **arguments)
engine.validate(model, datamodule=images)
for name, images_kept in (("exact", 2500), ("binned", 0)):
    model.evaluator.exact_images = images_kept
    engine.test(model, datamodule=images)
    if engine.trainer.is_global_zero:
        (Path(engine.trainer.default_root_dir) / "metrics.json").rename(Path(folder, f"{name}.json"))
ranges = {name: [list(kind) for kind in kinds] for name, kinds in model.post_processor.ranges.items()}
told = {**ranges, "of normal images": [common, *of_normal[0], *of_normal[1]]}
Path(folder, f"ranges{engine.trainer.global_rank}.json").write_text(json.dumps(told))
"""


def test_two_processes_measure_what_one_does(tiny_encoder_file: Path, tmp_path: Path) -> None:
    data = write_sample_data(tmp_path / "sample", categories=("brick", "grass"))
    # An odd number of test images, and of normal validation images: the sampler hands one out twice.
    for image in sorted(data.glob("grass/train/good/*.png"))[:10]:
        image.unlink()
    for image in data.glob("grass/test/*/*.png"):
        if image.stem != "000":
            image.unlink()
            (data / "grass" / "ground_truth" / image.parent.name / f"{image.stem}_mask.png").unlink(missing_ok=True)
    script = tmp_path / "evaluate.py"
    script.write_text(EVALUATION)
    told = []
    for devices in (1, 2):
        folder = tmp_path / str(devices)
        command = [sys.executable, str(script), str(data), str(tiny_encoder_file), str(folder), str(devices)]
        result = execute(command)
        assert result.returncode == 0, result.stderr[-3000:]
        ranges = [json.loads(path.read_text()) for path in sorted(folder.glob("ranges*.json"))]
        assert len(ranges) == devices
        assert all(values == ranges[0] for values in ranges)
        metrics = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("exact", "binned")}
        sheets = {path.stem: np.asarray(Image.open(path), dtype=float) for path in (folder / "sheets").iterdir()}
        told.append((metrics, ranges[0], sheets))
    (one, one_ranges, one_sheets), (two, two_ranges, two_sheets) = told
    assert one_sheets.keys() == two_sheets.keys() == {"brick", "grass"}
    for name, sheet in one_sheets.items():
        assert sheet.shape == two_sheets[name].shape
        assert np.abs(sheet - two_sheets[name]).mean() < 0.1  # the same images in the same places
    for name in ("exact", "binned"):
        assert list(one[name]) == ["brick", "grass", "mean"]
        for category, values in one[name].items():
            assert values == pytest.approx(two[name][category], abs=1e-6)
            assert values == pytest.approx(one["exact"][category], abs=1e-3)
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
    assert "other ones in every run" in result.stderr


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
    assert len(list((tmp_path / "single_class-InpFormer").glob("seed0/*/metrics.json"))) == 2
    # Processes that made folders of their own would now and then make the same one.
    assert len(list((tmp_path / "single_class-InpFormer").glob("seed0/*/InpFormer/MultiCategory/v*"))) == 2
