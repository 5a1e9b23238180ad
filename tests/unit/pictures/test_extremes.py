# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from anomalib.data import ImageBatch
from lightning import Trainer
from PIL import Image

from anomalib_inp.frame import CropBox
from anomalib_inp.pictures import extremes
from anomalib_inp.pictures.extremes import ExtremeResults

NORMAL, ANOMALOUS = [0.5, 0.1, 0.3, 0.2], [0.4, 0.9, 0.7, 0.2]


@pytest.fixture
def batches(tmp_path: Path) -> list[ImageBatch]:
    """Two batches of four images; the map of each is its score everywhere."""
    scores = torch.tensor([NORMAL, ANOMALOUS])
    for row in range(2):
        for column in range(4):
            Image.new("RGB", (24, 16)).save(tmp_path / f"{row}{column}.png")
    return [
        ImageBatch(
            image=torch.zeros(4, 3, 16, 16),
            image_path=[str(tmp_path / f"{row}{column}.png") for column in range(4)],
            gt_label=torch.full((4,), row),
            pred_score=scores[row],
            anomaly_map=scores[row].view(4, 1, 1).expand(4, 8, 8).clone(),
        )
        for row in range(2)
    ]


def test_the_best_and_the_worst_are_drawn_on_one_scale(
    batches: list[ImageBatch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[float, str, tuple[float, float]]] = []
    draw = extremes.InpVisualizer._draw

    def watched(self, item, crop_box, name, vmin, vmax):
        drawn.append((round(float(item.pred_score), 2), name, (round(vmin, 2), round(vmax, 2))))
        return draw(self, item, crop_box, name, vmin, vmax)

    monkeypatch.setattr(extremes.InpVisualizer, "_draw", watched)
    sheets = ExtremeResults(tmp_path / "sheets")
    model = SimpleNamespace(pre_processor=SimpleNamespace(crop_box=CropBox(0, 0, 1, 1)))
    trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    sheets.on_test_start(trainer, model)
    for batch in batches:
        batch.raw_score, batch.raw_map = batch.pred_score, batch.anomaly_map
        sheets.on_test_batch_end(trainer, model, None, batch, 0)
        batch.raw_map.zero_()  # what is shown later must not depend on the batch
    sheets.on_test_end(trainer, model)

    by_hand = [0.2, 0.4, 0.9, 0.7, 0.5, 0.3, 0.1, 0.2]  # missed, found, false alarms, quiet
    assert [score for score, _, _ in drawn] == by_hand
    assert [name for _, name, _ in drawn][:3] == [f"{tmp_path.name}/{file}" for file in ("13.png", "10.png", "11.png")]
    assert {scale for _, _, scale in drawn} == {(0.1, 0.9)}
    with Image.open(tmp_path / "sheets" / "images.png") as sheet:
        assert sheet.height > 4 * 192


def test_equal_maps_can_be_drawn(batches: list[ImageBatch], tmp_path: Path) -> None:
    sheets = ExtremeResults(keep=1)
    model = SimpleNamespace(pre_processor=SimpleNamespace())
    batch = batches[0]
    batch.raw_score, batch.raw_map = batch.pred_score, torch.ones(4, 8, 8)
    sheets.on_test_batch_end(SimpleNamespace(), model, None, batch, 0)
    sheets.on_test_end(Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path), model)
    assert (tmp_path / "images" / "images.png").is_file()
