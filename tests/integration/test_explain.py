# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Prototypes as pictures, in the command, in the log of a training, and in the station of a checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anomalib.data import MVTecAD
from browser import needs_browser, open_page
from part import write_part
from PIL import Image
from server import serving

from anomalib_inp import InpFormer, TokenMemory
from anomalib_inp.commands.mistakes import explain
from anomalib_inp.models.served import CheckpointModel

Make = Callable[..., Any]


def train(tiny_model: Make, quiet_engine: Make, root: Path) -> Path:
    model = tiny_model(InpFormer, image_size=64, map_size=32, num_prototypes=3)
    engine = quiet_engine()
    engine.fit(model, datamodule=MVTecAD(root, "part", 2, 2, num_workers=0))
    (checkpoint,) = Path(engine.trainer.default_root_dir).rglob("finished.ckpt")
    return checkpoint


@pytest.fixture(scope="module")
def trained(tiny_model: Make, quiet_engine: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint, and the images that it was trained on."""
    root = write_part(tmp_path_factory.mktemp("data"))
    return train(tiny_model, quiet_engine, root), root


def test_a_training_says_how_many_are_in_use(
    tiny_model: Make, quiet_engine: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        train(tiny_model, quiet_engine, write_part(tmp_path))
    assert "Prototypes in use: " in caplog.text
    assert " of 3 (nearest to at least 1% of the patches" in caplog.text


def test_the_command(trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = trained[1] / "part/test/dent/000.png"
    explain(trained[0], image, tmp_path / "below/explained.png")
    said = capsys.readouterr().out
    shares = [float(line.split()[2].rstrip("%")) for line in said.splitlines() if line.startswith("Prototype ")]
    assert len(shares) == 3
    assert sum(shares) == pytest.approx(100, abs=0.2)
    with Image.open(tmp_path / "below/explained.png") as picture:
        assert min(picture.size) > 300


def test_other_models_have_none(tiny_model: Make, trained: tuple[Path, Path]) -> None:
    served = CheckpointModel(trained[0])
    assert served.has_prototypes
    served.module = tiny_model(TokenMemory, image_size=64)
    assert not served.has_prototypes
    with pytest.raises(ValueError, match="TokenMemory has no prototypes"):
        served.explain(np.zeros((64, 64, 3), np.uint8))


@needs_browser
def test_a_checkpoint_is_served_with_its_prototypes(trained: tuple[Path, Path], tmp_path: Path) -> None:
    """The same verdicts as those of an export, thresholds that move in the file, and a tab for the prototypes."""
    checkpoint = tmp_path / "model.ckpt"
    checkpoint.write_bytes(trained[0].read_bytes())
    image = trained[1] / "part/test/dent/000.png"
    with serving(checkpoint, tmp_path) as server, open_page() as page:
        (one,) = server.client.post("/predict", content=image.read_bytes()).json()["predictions"]
        assert one["error"] is None
        moved = server.client.put("/thresholds", json={"image": one["raw_score"] + 0.5})
        assert moved.json()["thresholds"]["image"] == pytest.approx(one["raw_score"] + 0.5)
        (one,) = server.client.post("/predict", content=image.read_bytes()).json()["predictions"]
        assert one["verdict"] == "normal"
        page.goto(server.url)
        page.locator("#files input[type=file]").set_input_files(image)
        page.locator("#verdict .verdict").wait_for()
        page.get_by_role("tab", name="Prototypes").click()
        page.locator("#explained img").wait_for()
        page.get_by_role("tab", name="Drift").click()
        page.locator("#drift p").wait_for()
