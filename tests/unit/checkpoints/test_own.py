# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import errno
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import timm
import torch
from anomalib.engine import Engine
from checkpoint_content import assert_same, load, outputs
from safetensors.torch import load_file, save_file

from anomalib_inp import InpFormer, InpFormerPlusPlus
from anomalib_inp.checkpoints.edit import set_thresholds
from anomalib_inp.checkpoints.own import read_checkpoint
from anomalib_inp.models.convert import convert_reference


@pytest.mark.parametrize("name", ["finished.ckpt", "model.ckpt"])
def test_a_checkpoint_holds_no_weights_of_the_encoder(name: str, trained: Path) -> None:
    content = (trained / name).read_bytes()
    state = load(trained / name)["state_dict"]
    assert "model.network.extractor.queries" in state
    assert state["model.network.extractor.queries"].numpy().tobytes() in content
    for key, weight in load_file(trained / "encoder.safetensors").items():
        assert not [ours for ours in state if ours.endswith(f"encoder.backbone.{key}")]
        if weight.unique().numel() > 8:  # the others are zeros and ones
            assert weight.numpy().tobytes() not in content, key


def test_a_checkpoint_and_its_encoder_move_together(
    trained: Path, tiny_encoder_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before = outputs(InpFormer.load_from_checkpoint(trained / "finished.ckpt"), images)
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    torch.manual_seed(0)
    encoder = shutil.copy(tiny_encoder_file, old / "encoder.safetensors")
    content = load(trained / "finished.ckpt")
    content["hyper_parameters"]["encoder_weights"] = str(encoder)
    torch.save(content, old / "model.ckpt")
    old.rename(new)
    monkeypatch.chdir(tmp_path)
    assert not encoder.exists()
    for path in (new / "model.ckpt", Path("new/model.ckpt"), "new/model.ckpt"):
        assert_same(outputs(InpFormer.load_from_checkpoint(path), images), before)

    (new / "encoder.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(str(encoder))):
        InpFormer.load_from_checkpoint(new / "model.ckpt")


@pytest.fixture
def other_encoder(tmp_path: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = timm.create_model("test_vit", pretrained=False, num_classes=0)
    save_file(model.state_dict(), tmp_path / "other.safetensors")
    return tmp_path / "other.safetensors"


def test_another_encoder_is_refused(
    trained: Path,
    folder: Path,
    other_encoder: Path,
    tiny_model: Callable[..., InpFormer],
    quiet_engine: Callable[..., Engine],
) -> None:
    message = (
        rf"trained with the encoder 'test_vit', the weights '{re.escape(str(trained / 'encoder.safetensors'))}' "
        r"and the target layers \[1, 2, 3, 4\], but the model has other ones\. Build the model with the same arguments"
    )
    with pytest.raises(ValueError, match=message):
        InpFormer.load_from_checkpoint(folder / "finished.ckpt", encoder_weights=str(other_encoder))
    # The same blocks, of which others are tapped: no shape would tell.
    with pytest.raises(ValueError, match=message):
        InpFormer.load_from_checkpoint(folder / "finished.ckpt", target_layers=[0, 2, 3, 4])
    # The same when the Engine loads it.
    model = tiny_model(encoder_weights=str(other_encoder))
    with pytest.raises(ValueError, match=message):
        quiet_engine().predict(model, data_path=trained / "data/part/test", ckpt_path=folder / "finished.ckpt")


def test_a_checkpoint_of_the_other_model_is_refused(
    folder: Path, trained: Path, tiny_model: Callable[..., InpFormer], quiet_engine: Callable[..., Engine]
) -> None:
    message = "This is a checkpoint of InpFormer, not of InpFormerPlusPlus"
    with pytest.raises(ValueError, match=message):
        InpFormerPlusPlus.load_from_checkpoint(folder / "finished.ckpt")
    encoder = load(folder / "finished.ckpt")["hyper_parameters"]["encoder_weights"]
    model = tiny_model(InpFormerPlusPlus, encoder_weights=encoder, head=False)
    with pytest.raises(ValueError, match=message):
        quiet_engine().predict(model, data_path=trained / "data/part/test", ckpt_path=folder / "finished.ckpt")


# --- nothing in a file is run -----------------------------------------------------------------------------------------


class Runs:
    """Pickled, this writes a file where it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "was run")


READERS: dict[str, Callable[[Path, Path], object]] = {
    "load_from_checkpoint": lambda path, _: InpFormer.load_from_checkpoint(path),
    "load_from_checkpoint with its encoder": lambda path, encoder: InpFormer.load_from_checkpoint(
        path, encoder_weights=str(encoder)
    ),
    "set_thresholds": lambda path, _: set_thresholds(path),
    "from_reference": lambda path, _: InpFormer.from_reference(path),
    "convert_reference": lambda path, _: convert_reference(path, path.with_suffix(".new")),
    "encoder_weights": lambda path, _: InpFormer(encoder="test_vit", encoder_weights=str(path)),
}


@pytest.mark.parametrize("reader", READERS)
def test_loading_runs_nothing(reader: str, folder: Path, tiny_encoder_file: Path) -> None:
    content, harm = load(folder / "finished.ckpt"), folder / "harm.txt"
    torch.save({**content, "extra": Runs(harm)}, folder / "evil.ckpt")
    torch.load(folder / "evil.ckpt", weights_only=False)
    assert harm.read_text() == "was run"  # it would have worked
    harm.unlink()
    with pytest.raises(ValueError, match="refused, because reading it could run code"):
        READERS[reader](folder / "evil.ckpt", tiny_encoder_file)
    assert not harm.exists()


def test_a_file_that_may_not_be_read_is_not_called_another_thing(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a.ckpt"
    path.touch()
    monkeypatch.setattr(torch, "load", Mock(side_effect=PermissionError(errno.EACCES, "Permission denied", str(path))))
    with pytest.raises(PermissionError, match=r"Permission denied: .*a\.ckpt"):
        read_checkpoint(path)
