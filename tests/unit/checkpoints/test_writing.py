# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Checkpoints of a training whose disk fills up."""

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from anomalib.data import MVTecAD
from lightning.pytorch import Callback
from part import write_part
from small_disk import small_disk

from anomalib_inp.checkpoints import writing
from anomalib_inp.cli import main
from anomalib_inp.files import DiskError

Make = Callable[..., Any]


@pytest.fixture
def datamodule(tmp_path: Path) -> MVTecAD:
    root = write_part(tmp_path / "data")
    return MVTecAD(root=root, category="part", num_workers=0, train_batch_size=1, val_split_mode="same_as_test")


class DiskFillsUp(Callback):
    """The disk takes no checkpoint in some of the epochs."""

    def __init__(self, *epochs: int) -> None:
        self.epochs = epochs
        self.full = ExitStack()

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        del pl_module
        self.full.close()
        if trainer.current_epoch in self.epochs:
            self.full.enter_context(small_disk(2000))


def checkpoints(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in folder.rglob("*.*") if "weights" in path.parts}


@pytest.mark.filterwarnings("ignore:.*cannot be written")
def test_a_full_disk_costs_the_checkpoint_that_is_written(
    tiny_model: Make, quiet_engine: Make, datamodule: MVTecAD, tmp_path: Path
) -> None:
    disk = DiskFillsUp(1)
    with disk.full:
        quiet_engine(tmp_path / "out", max_epochs=3, callbacks=[disk]).fit(tiny_model(), datamodule=datamodule)
    assert checkpoints(tmp_path / "out").keys() == {"model.ckpt", "finished.ckpt"}
    assert torch.load(checkpoints(tmp_path / "out")["model.ckpt"])["epoch"] == 2


def test_the_last_good_checkpoint_stays_and_resumes(
    tiny_model: Make, quiet_engine: Make, datamodule: MVTecAD, tmp_path: Path
) -> None:
    disk = DiskFillsUp(1, 2)
    engine = quiet_engine(tmp_path / "out", max_epochs=3, callbacks=[disk])
    message = r"finished\.ckpt cannot be written: File too large\. The disk of .* has .* left"
    with (
        disk.full,
        pytest.warns(UserWarning, match=r"model\.ckpt cannot be written.*The training goes on"),
        pytest.raises(DiskError, match=message),
    ):
        engine.fit(tiny_model(), datamodule=datamodule)
    there = checkpoints(tmp_path / "out")
    assert there.keys() == {"model.ckpt"}  # nothing half written beside it
    assert torch.load(there["model.ckpt"])["epoch"] == 0
    quiet_engine(tmp_path / "again", max_epochs=2).fit(
        tiny_model(), datamodule=datamodule, ckpt_path=there["model.ckpt"]
    )
    assert checkpoints(tmp_path / "again").keys() == {"model.ckpt", "finished.ckpt"}


def test_a_disk_without_room_is_named_before_training(
    tiny_model: Make, quiet_engine: Make, datamodule: MVTecAD, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, steps = tiny_model(), []
    monkeypatch.setattr(model, "training_step", lambda *_: steps.append(1))
    free = SimpleNamespace(free=10_000)
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda _: free)
    with pytest.raises(DiskError, match=r"The checkpoints of this training take .* MB, but the disk of .* has 0\.0 MB"):
        quiet_engine(tmp_path / "out").fit(model, datamodule=datamodule)
    assert not steps
    quiet_engine(tmp_path / "out", fast_dev_run=True).fit(tiny_model(), datamodule=datamodule)  # writes none


def test_the_room_that_is_asked_for_is_the_room_that_is_taken(
    tiny_model: Make, quiet_engine: Make, datamodule: MVTecAD, tmp_path: Path
) -> None:
    model = tiny_model()
    quiet_engine(tmp_path / "out").fit(model, datamodule=datamodule)
    trained = sum(weight.nbytes for weight in model.parameters() if weight.requires_grad)
    sizes = {name: path.stat().st_size for name, path in checkpoints(tmp_path / "out").items()}
    taken = 2 * sizes["model.ckpt"] + sizes["finished.ckpt"]  # the next one is written before the last one goes
    assert 0.9 * taken < trained * writing.COPIES < 1.1 * taken


def test_a_threshold_on_a_full_disk(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = folder / "finished.ckpt"
    before = path.read_bytes()
    monkeypatch.setattr("sys.argv", ["anomalib-inp", "threshold", str(path), "--image", "0.5"])
    with small_disk(2000), pytest.raises(SystemExit) as ended:
        main()
    assert str(ended.value.code).startswith(
        f"anomalib-inp: {path} cannot be written: File too large. The disk of {folder}"
    )
    assert path.read_bytes() == before
    assert {name.name for name in folder.iterdir()} == {"finished.ckpt", "model.ckpt"}


@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_weights_of_16_bits_are_refused_with_what_to_use(
    tiny_model: Make, quiet_engine: Make, datamodule: MVTecAD, precision: str
) -> None:
    instead = precision.replace("true", "mixed")
    for stage in ("fit", "test", "predict"):
        with pytest.raises(ValueError, match=rf"Use {instead}, .*--trainer\.precision {instead}$"):
            getattr(quiet_engine(precision=precision), stage)(tiny_model(), datamodule=datamodule)


@pytest.mark.parametrize("origin", ["C:\\models\\encoder.safetensors", "D:/models/encoder.safetensors"])
def test_an_encoder_of_windows_is_found(folder: Path, tiny_encoder_file: Path, origin: str) -> None:
    from anomalib_inp import InpFormer

    content = torch.load(folder / "finished.ckpt")
    content["hyper_parameters"]["encoder_weights"] = origin
    torch.save(content, folder / "finished.ckpt")
    with pytest.raises(FileNotFoundError):
        InpFormer.load_from_checkpoint(folder / "finished.ckpt")
    shutil.copy(tiny_encoder_file, folder / "encoder.safetensors")
    InpFormer.load_from_checkpoint(folder / "finished.ckpt")
