# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Thresholds belong to the weights of the checkpoint that they are in, however a training ends."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.data import Folder, MVTecAD
from anomalib.engine import Engine
from lightning.pytorch.callbacks import EarlyStopping, Timer
from part import write_part
from torch.utils.data import DataLoader

from anomalib_inp import InpFormer, InpFormerPlusPlus
from anomalib_inp.models.encoder_model import EncoderModel

BATCHES = 2
LENGTHS: dict[str, dict[str, Any]] = {
    "epochs": {"max_epochs": 3, "check_val_every_n_epoch": 2},
    "fewer epochs than the interval": {"max_epochs": 1, "check_val_every_n_epoch": 5},
    "steps, in the middle of an epoch": {"max_epochs": -1, "max_steps": 3, "check_val_every_n_epoch": 5},
    "validation by steps": {"max_epochs": 2, "check_val_every_n_epoch": None, "val_check_interval": 3},
    "validation within epochs": {"max_epochs": 2, "val_check_interval": 0.5},
    "time": {"max_epochs": 1000, "check_val_every_n_epoch": 700, "callbacks": [Timer({"seconds": 1})]},
}


@pytest.fixture
def data(write_small_sample: Callable[..., Path], tmp_path: Path) -> MVTecAD:
    return MVTecAD(write_small_sample(tmp_path), "brick", 4, num_workers=0, val_split_mode="same_as_test")


def finished(engine: Engine) -> Path:
    return Path(engine.trainer.default_root_dir) / "weights/lightning/finished.ckpt"


def thresholds(path: Path) -> list[float]:
    state = torch.load(path, weights_only=True)["state_dict"]
    return [state[f"post_processor._{kind}_threshold"].item() for kind in ("image", "pixel")]


@pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS)
def test_a_training_ends_with_a_validation(
    length: dict[str, Any],
    data: MVTecAD,
    tiny_model: Callable[..., EncoderModel],
    quiet_engine: Callable[..., Engine],
) -> None:
    engine = quiet_engine(**length)
    engine.fit(tiny_model(), datamodule=data)
    assert engine.trainer.check_val_every_n_epoch == length.get("check_val_every_n_epoch", 1)
    path = finished(engine)
    again = InpFormer.load_from_checkpoint(path)
    quiet_engine().validate(again, datamodule=data)
    chosen = [again.post_processor.image_threshold.item(), again.post_processor.pixel_threshold.item()]
    assert thresholds(path) == pytest.approx(chosen, rel=1e-6)
    if "max_epochs" in length and length["max_epochs"] in {1, 2, 3}:
        assert engine.trainer.global_step == BATCHES * length["max_epochs"]


def test_a_resumed_training_ends_with_a_validation(
    data: MVTecAD, tiny_model: Callable[..., EncoderModel], quiet_engine: Callable[..., Engine]
) -> None:
    first = quiet_engine(max_epochs=2, check_val_every_n_epoch=2)
    first.fit(tiny_model(), datamodule=data)
    second = quiet_engine(max_epochs=3, check_val_every_n_epoch=2)
    second.fit(tiny_model(), datamodule=data, ckpt_path=finished(first).with_name("model.ckpt"))
    assert second.trainer.global_step == 3 * BATCHES
    again = InpFormer.load_from_checkpoint(finished(second))
    quiet_engine().validate(again, datamodule=data)
    chosen = [again.post_processor.image_threshold.item(), again.post_processor.pixel_threshold.item()]
    assert thresholds(finished(second)) == pytest.approx(chosen, rel=1e-6)
    assert thresholds(finished(second)) != thresholds(finished(first))


@pytest.mark.parametrize("ending", ["no validation", "stopped after the epoch"])
def test_thresholds_of_other_weights_are_left_out(
    ending: str, data: MVTecAD, tiny_model: Callable[..., EncoderModel], quiet_engine: Callable[..., Engine]
) -> None:
    first = quiet_engine(max_epochs=1)
    first.fit(tiny_model(), datamodule=data)
    arguments: dict[str, Any] = {"limit_val_batches": 0}
    if ending == "stopped after the epoch":
        stop = EarlyStopping("train_loss", stopping_threshold=1e9, check_on_train_epoch_end=True)
        arguments = {"check_val_every_n_epoch": 5, "callbacks": [stop]}
    second = quiet_engine(max_epochs=9 if "callbacks" in arguments else 2, **arguments)
    with pytest.warns(UserWarning, match="those of the weights of step 2, but the training ended at step 4"):
        second.fit(tiny_model(), datamodule=data, ckpt_path=finished(first).with_name("model.ckpt"))
    assert all(value != value for value in thresholds(finished(second)))


# --- an Engine that is used again -------------------------------------------------------------------------------------


def loaders(module: MVTecAD) -> dict[str, Any]:
    module.setup()
    return {
        "train_dataloaders": DataLoader(module.train_data, batch_size=1, collate_fn=module.train_data.collate_fn),
        "val_dataloaders": DataLoader(module.test_data, batch_size=2, collate_fn=module.test_data.collate_fn),
    }


def test_a_run_with_loaders_knows_nothing_of_an_earlier_data_module(
    tiny_model: Callable[..., Any], quiet_engine: Callable[..., Any], tmp_path: Path
) -> None:
    module = MVTecAD(write_part(tmp_path / "data"), "part", num_workers=0, val_split_mode="same_as_test")
    engine = quiet_engine()
    engine.validate(tiny_model(), datamodule=module)
    assert engine.trainer.datamodule is None
    # pseudo-anomalies need a data module: they must not be left out without a word
    with pytest.raises(ValueError, match="Pseudo-anomalies need a data module"):
        engine.fit(tiny_model(InpFormerPlusPlus), **loaders(module))


def test_a_second_training_by_one_engine_is_refused(
    tiny_model: Callable[..., Any], quiet_engine: Callable[..., Any], tmp_path: Path
) -> None:
    module = MVTecAD(
        write_part(tmp_path / "data"), "part", num_workers=0, train_batch_size=1, val_split_mode="same_as_test"
    )
    engine, model = quiet_engine(), tiny_model()
    engine.fit(model, datamodule=module)
    with pytest.raises(RuntimeError, match="this Engine has trained before, and its 1 epochs are over"):
        engine.fit(model, datamodule=module)


def test_no_validation_images_are_said(
    tiny_model: Callable[..., Any], quiet_engine: Callable[..., Any], tmp_path: Path
) -> None:
    root = write_part(tmp_path / "data")
    module = Folder(
        "part", "train/good", root / "part", num_workers=0, val_split_mode="from_train", val_split_ratio=0.1,
        test_split_mode="none", train_batch_size=1,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="There are no validation images, so there will be no thresholds"):
        quiet_engine().fit(tiny_model(), datamodule=module)
