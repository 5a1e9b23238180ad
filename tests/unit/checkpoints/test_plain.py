# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Arguments become plain data, which checkpoints are read back with."""

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from omegaconf import OmegaConf

from anomalib_inp import InpFormer
from anomalib_inp.checkpoints.own import read_checkpoint
from anomalib_inp.checkpoints.plain import not_plain, plain
from anomalib_inp.models.encoder_model import EncoderModel


class Colour(str, Enum):
    """An enumeration that is a text as well."""

    RED = "red"


STRANGE: dict[str, tuple[Any, Any]] = {
    "number": (np.float64(0.5), 0.5),
    "whole number": (np.int64(3), 3),
    "truth": (np.bool_(True), True),
    "text": (np.str_("a"), "a"),
    "array": (np.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
    "list of OmegaConf": (OmegaConf.create([1, [2]]), [1, [2]]),
    "mapping of OmegaConf": (OmegaConf.create({"a": {"b": 1}}), {"a": {"b": 1}}),
    "path": (Path("a"), "a"),
    "enumeration": (Colour.RED, "red"),
    "nested": ({"a": (np.float32(1), [np.int8(2)])}, {"a": (1.0, [2])}),
    "range": (range(2), [0, 1]),
}


@pytest.mark.parametrize(("value", "expected"), STRANGE.values(), ids=STRANGE)
def test_plain_data_survive_a_checkpoint(value: Any, expected: Any, tmp_path: Path) -> None:
    found = plain({"value": value})
    assert list(not_plain(found, "")) == []
    torch.save(found, tmp_path / "file")
    assert torch.load(tmp_path / "file", weights_only=True) == {"value": expected}


def test_what_is_not_plain_is_named() -> None:
    found = plain({"a": [1, object()], "b": torch.zeros(1)})
    assert list(not_plain(found, "")) == ["a[1] (builtins.object)"]


def test_numpy_arguments_train_and_load(
    tiny_model: Callable[..., EncoderModel],
    quiet_engine: Callable[..., Engine],
    write_small_sample: Callable[..., Path],
    tmp_path: Path,
) -> None:
    data = MVTecAD(write_small_sample(tmp_path), "brick", 4, num_workers=0, val_split_mode="same_as_test")
    arguments = {
        "learning_rate": np.logspace(-4, -2, 3)[1],
        "gradient_clip": np.float32(0.5),
        "target_layers": OmegaConf.create([1, 2, 3, 4]),
        "image_size": np.int64(64),
    }
    model = tiny_model(**arguments)
    engine = quiet_engine(tmp_path / "results")
    engine.fit(model, datamodule=data)
    for name in ("finished.ckpt", "model.ckpt"):
        (path,) = (tmp_path / "results").glob(f"**/v0/**/{name}")
        assert read_checkpoint(path)["hyper_parameters"]["learning_rate"] == pytest.approx(1e-3)
    loaded = InpFormer.load_from_checkpoint(path)
    assert loaded.recipe.learning_rate == pytest.approx(1e-3)
    quiet_engine(tmp_path / "more", max_epochs=2).fit(tiny_model(**arguments), datamodule=data, ckpt_path=path)


def test_arguments_that_no_checkpoint_can_hold_are_refused(tiny_model: Callable[..., EncoderModel]) -> None:
    with pytest.raises(ValueError, match=r"numbers, texts and lists of them, but not encoder_kwargs\.act_layer"):
        tiny_model(encoder_kwargs={"act_layer": torch.nn.GELU})
