# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Checkpoints and exports that earlier code has written give the scores that they gave then."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anomalib.engine import Engine
from PIL import Image

from anomalib_inp import InpFormer
from anomalib_inp.checkpoints import edit as checkpoint_edit
from anomalib_inp.runtime.edit import set_thresholds
from anomalib_inp.runtime.model import ExportedModel

WRITTEN = Path(__file__).parents[1] / "golden" / "written_before"
EXPECTED: dict[str, Any] = json.loads((WRITTEN / "expected.json").read_text())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy, because some of what is tested changes the files."""
    return Path(shutil.copytree(WRITTEN, tmp_path / "written"))


def test_a_checkpoint_gives_its_scores(folder: Path, quiet_engine: Callable[..., Engine]) -> None:
    model = InpFormer.load_from_checkpoint(folder / "finished.ckpt")
    (batch,) = quiet_engine().predict(model, data_path=folder / "image.png")
    expected = EXPECTED["checkpoint"]
    for name in ("raw_score", "pred_score"):
        assert getattr(batch, name).item() == pytest.approx(expected[name], abs=1e-6)
    assert batch.pred_label.item() == expected["pred_label"]
    assert int(batch.pred_mask.sum()) == expected["masked"]
    np.testing.assert_allclose(batch.raw_map.squeeze()[::8, ::8], expected["map"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["model.xml", "model.onnx"])
@pytest.mark.parametrize("category", [None, "grass"])
def test_an_export_gives_its_scores(name: str, category: str | None, folder: Path) -> None:
    pixels = np.asarray(Image.open(folder / "image.png").convert("RGB"), dtype=np.float32) / 255
    result = ExportedModel(folder / name, category=category)(pixels.transpose(2, 0, 1)[None])
    expected = EXPECTED["export"][f"{name} {category or 'common'}"]
    assert float(result.pred_score[0]) == pytest.approx(expected["pred_score"], abs=1e-6)
    assert bool(result.pred_label[0]) == expected["pred_label"]
    assert int(result.pred_mask.sum()) == expected["masked"]


@pytest.mark.parametrize("name", ["model.xml", "model.onnx"])
def test_thresholds_of_an_export_move(name: str, folder: Path) -> None:
    """The image is anomalous by its own thresholds."""
    pixels = np.asarray(Image.open(folder / "image.png").convert("RGB"), dtype=np.float32) / 255
    assert ExportedModel(folder / name)(pixels.transpose(2, 0, 1)[None]).pred_label[0]
    set_thresholds(folder / name, image=EXPECTED["checkpoint"]["raw_score"] + 0.01)
    assert not ExportedModel(folder / name)(pixels.transpose(2, 0, 1)[None]).pred_label[0]


def test_thresholds_of_a_checkpoint_are_read(folder: Path) -> None:
    for category, image, pixel in (
        (None, EXPECTED["common"]["image"][0], EXPECTED["common"]["pixel"][0]),
        ("grass", EXPECTED["ranges"]["grass"][0][0], EXPECTED["ranges"]["grass"][1][0]),
    ):
        shown = checkpoint_edit.set_thresholds(folder / "finished.ckpt", category=category)
        assert (shown.image, shown.pixel) == pytest.approx((image, pixel), abs=1e-7)
