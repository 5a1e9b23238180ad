# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What is inspected: the same places in the Engine, in checkpoints, and in exports, whenever they were chosen."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.data import MVTecAD
from lightning import Trainer
from part import SIZE as SIDE
from part import write_part
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from anomalib_inp import InpFormer, InpFormerPlusPlus
from anomalib_inp.checkpoints import edit as checkpoint_edit
from anomalib_inp.outputs import Reconstruction
from anomalib_inp.results.inspection import EVERYTHING, Inspection
from anomalib_inp.results.records import read_records
from anomalib_inp.runtime import edit
from anomalib_inp.runtime.metadata import read_metadata
from anomalib_inp.runtime.model import ExportedModel
from anomalib_inp.runtime.predict import predict

Make = Callable[..., Any]
SIZE, MAP = (90, 120), 48
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def mask(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inspected are the left two thirds, without a window in them."""
    pixels = np.zeros(SIZE, np.uint8)
    pixels[:, :80] = 255
    pixels[20:50, 10:40] = 0
    path = tmp_path_factory.mktemp("mask") / "roi.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    pixels[:, 80:] //= 8
    path = tmp_path_factory.mktemp("image") / "image.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module", params=["reconstruction", "head", "two maps", "raw", "cropped"])
def model(request: pytest.FixtureRequest, tiny_model: Make, image: Path) -> InpFormer:
    torch.manual_seed(0)
    arguments = {"target_layers": [1, 2], "map_size": MAP, "evaluator": False, "image_size": 64}
    if request.param == "cropped":
        arguments |= {"image_size": (80, 96), "crop_size": 64}
    if request.param == "raw":
        arguments["post_processor"] = False
    kind = InpFormerPlusPlus if request.param == "head" else InpFormer
    model = tiny_model(kind, spread=8, **arguments)
    if request.param == "two maps":  # the picture is of one, the score of another, as where memories are fused

        def both(reconstruction: Reconstruction) -> torch.Tensor:
            error = reconstruction.features.fused.square().mean(-1).unflatten(1, reconstruction.features.grid)
            return torch.stack([error, error.flip(-1).pow(2)])

        model.model.maps = {"reconstruction": [both]}
    if model.post_processor is not None:
        outputs = model.model(model.pre_processor.transform(_tensor(image)))
        model.post_processor.set_thresholds(outputs.pred_score.item() * 0.9, outputs.anomaly_map.median().item())
    return model.eval()


def _tensor(image: Path) -> torch.Tensor:
    return torch.from_numpy(np.asarray(Image.open(image)).copy()).permute(2, 0, 1)[None] / 255


@torch.no_grad()
def _expected(model: InpFormer, image: Path, mask: Path | None) -> tuple[float, np.ndarray]:
    """Score and map of what is inspected, worked out from the whole map."""
    model.inspect(EVERYTHING)
    readings = model.model.readings_of(model.pre_processor.transform(_tensor(image)))
    shown = torch.stack([model.model.smoothing(reading[:, 0], (64, 64)) for reading in readings]).mean(0)[:, 0]
    places = torch.ones(MAP, MAP, dtype=torch.bool)
    if mask is not None:
        whole = np.asarray(Image.open(mask)) > 0
        box = model.pre_processor.crop_box
        rows = (box.top + (np.arange(MAP) + 0.5) / MAP * (box.bottom - box.top)) * SIZE[0]
        columns = (box.left + (np.arange(MAP) + 0.5) / MAP * (box.right - box.left)) * SIZE[1]
        places = torch.from_numpy(whole[rows.astype(int)][:, columns.astype(int)])
    counted = shown[-1][places].sort(descending=True).values
    score = counted[: max(1, len(counted) // 100)].mean().item()
    return score, torch.where(places, shown[0], shown[0].min()).numpy()


def _check(exported: ExportedModel, image: Path, expected: tuple[float, np.ndarray]) -> None:
    found = predict(exported, image)
    assert found.raw_score == pytest.approx(expected[0], rel=TOLERANCE)
    np.testing.assert_allclose(found.raw_map, expected[1], rtol=TOLERANCE, atol=TOLERANCE)
    if found.mask is not None:
        threshold = exported.metadata.pixel.threshold
        sure = np.abs(expected[1] - threshold) > TOLERANCE
        np.testing.assert_array_equal(found.mask[sure], expected[1][sure] > threshold)


@pytest.mark.parametrize("kind", ["openvino", "onnx"])
def test_exports_and_module_inspect_the_same(
    model: InpFormer, image: Path, mask: Path, kind: str, tmp_path: Path
) -> None:
    """Chosen before the export, in it, taken out of it, put in again: scores are worked out by hand each time."""
    looked_at = EVERYTHING.changed(mask)
    some, all_of_it = _expected(model, image, mask), _expected(model, image, None)
    assert abs(some[0] - all_of_it[0]) > 10 * TOLERANCE  # otherwise nothing is shown
    model.inspect(looked_at)
    with torch.no_grad():
        outputs = model.model(model.pre_processor.transform(_tensor(image)))
    assert outputs.pred_score.item() == pytest.approx(some[0], rel=1e-5)
    np.testing.assert_allclose(outputs.anomaly_map[0, 0], some[1], rtol=1e-5, atol=1e-6)

    before = getattr(model, f"to_{kind}")(tmp_path / "before")
    assert read_metadata(before).inspection == looked_at
    _check(ExportedModel(before), image, some)
    model.inspect(EVERYTHING)
    path = getattr(model, f"to_{kind}")(tmp_path / "after")
    _check(ExportedModel(path), image, all_of_it)
    for chosen, expected in ((mask, some), ("", all_of_it), (mask, some), (mask, some)):
        edit.set_inspection(path, chosen, smallest_area=7)
        _check(ExportedModel(path), image, expected)
        assert read_metadata(path).inspection.smallest_area == 7


def test_a_threshold_moves_where_places_are_hidden(tiny_model: Make, image: Path, mask: Path, tmp_path: Path) -> None:
    """What edits the graph for one setting leaves the other."""
    torch.manual_seed(0)
    model = tiny_model(InpFormer, spread=8, target_layers=[1, 2], map_size=MAP, evaluator=False, image_size=64).eval()
    expected = _expected(model, image, mask)
    model.post_processor.set_thresholds(expected[0] - 0.1, float(np.median(expected[1])))
    for kind in ("openvino", "onnx"):
        path = getattr(model, f"to_{kind}")(tmp_path)
        edit.set_inspection(path, mask)
        assert predict(ExportedModel(path), image).label
        edit.set_thresholds(path, image=expected[0] + 0.01)
        _check(ExportedModel(path), image, expected)
        assert not predict(ExportedModel(path), image).label


def test_checkpoints_keep_what_is_inspected(tiny_model: Make, mask: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(mask, tmp_path / "roi.png"))
    arguments = {"target_layers": [1, 2], "map_size": MAP, "evaluator": False, "image_size": 64}
    model = tiny_model(InpFormer, region_of_interest=str(copy), smallest_area=12, **arguments)
    copy.unlink()
    trainer = Trainer(logger=False, accelerator="cpu", enable_checkpointing=False)
    trainer.strategy.connect(model)
    path = tmp_path / "model.ckpt"
    trainer.save_checkpoint(path)
    again = InpFormer.load_from_checkpoint(path)
    assert again.inspection == model.inspection == EVERYTHING.changed(mask, 12)
    maps = torch.zeros(1, MAP, MAP)
    torch.testing.assert_close(again.model.inspected.at(maps), model.model.inspected.at(maps))
    assert checkpoint_edit.set_inspection(path, "", 3) == (model.inspection, Inspection(3, ""))
    again = InpFormer.load_from_checkpoint(path)
    assert again.inspection == Inspection(3, "")
    assert again.model.inspected.at(maps) is None


def test_a_mask_that_leaves_nothing(tiny_model: Make, tmp_path: Path) -> None:
    """All that is white lies outside the crop; or nothing is white; or it is no image."""
    pixels = np.zeros((100, 100), np.uint8)
    pixels[:5] = 255
    path = tmp_path / "roi.png"
    Image.fromarray(pixels).save(path)
    with pytest.raises(ValueError, match="nothing to inspect"):
        tiny_model(InpFormer, region_of_interest=str(path), image_size=(80, 96), crop_size=64)
    Image.fromarray(pixels * 0).save(path)
    with pytest.raises(ValueError, match="black everywhere"):
        tiny_model(InpFormer, region_of_interest=str(path))
    path.write_text("no image")
    with pytest.raises(ValueError, match=r"roi\.png cannot be used as a mask"):
        tiny_model(InpFormer, region_of_interest=str(path))
    with pytest.raises(ValueError, match="from 0 on, got -1"):
        tiny_model(InpFormer, smallest_area=-1)


def test_what_is_ignored_counts_in_no_metric(tiny_model: Make, quiet_engine: Make, tmp_path: Path) -> None:
    """A test with a region of interest gives the metrics of what is left of maps and masks, by scikit-learn."""
    root = write_part(tmp_path)
    pixels = np.zeros((SIDE, SIDE), np.uint8)
    pixels[:, : SIDE // 2] = 255  # one of the dents lies outside
    Image.fromarray(pixels).save(tmp_path / "roi.png")
    torch.manual_seed(0)
    model = tiny_model(
        InpFormer, spread=8, map_size=MAP, image_size=SIDE, evaluator=True, region_of_interest=str(tmp_path / "roi.png")
    )
    data = MVTecAD(root, "part", 2, 2, num_workers=0)
    engine = quiet_engine()
    engine.fit(model, datamodule=data)
    (found,) = engine.test(model, datamodule=data, verbose=False)
    maps, truth, scores, labels = [], [], [], []
    for batch in engine.predict(model, dataloaders=data.test_dataloader()):
        places = batch.inspected
        assert places.sum() == MAP * MAP / 2
        maps.append(batch.raw_map.reshape(-1, MAP, MAP)[:, places])
        truth.append(batch.gt_mask.reshape(-1, MAP, MAP)[:, places])
        scores.append(batch.raw_score)
        labels.append(batch.gt_label)
        highest = batch.raw_map.reshape(-1, MAP, MAP)[:, places].sort(dim=1, descending=True).values
        torch.testing.assert_close(batch.raw_score, highest[:, : MAP * MAP // 2 // 100].mean(1))
    values, mask = torch.cat(maps).flatten().numpy(), torch.cat(truth).flatten().numpy()
    assert found["pixel_AUROC"] == pytest.approx(roc_auc_score(mask, values), abs=1e-3)
    assert found["pixel_AP"] == pytest.approx(average_precision_score(mask, values), abs=2e-3)
    assert found["image_AUROC"] == pytest.approx(roc_auc_score(torch.cat(labels), torch.cat(scores)), abs=1e-6)
    (file,) = Path(engine.trainer.default_root_dir).rglob("predictions.jsonl")
    regions = [region for record in read_records(file) for region in record["regions"]]
    assert regions
    assert max(region["box"][2] for region in regions) <= SIDE / 2 + 1


KILL = """
import os, sys
from pathlib import Path
from anomalib_inp.runtime import edit

replace = Path.replace
def and_die(self, target):
    replace(self, target)
    os._exit(9)
Path.replace = and_die
edit.set_thresholds(sys.argv[1], image=float(sys.argv[2]))
"""


@pytest.fixture
def exported(tiny_model: Make, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = tiny_model(InpFormer, spread=8, target_layers=[1, 2], map_size=MAP, image_size=64, evaluator=False).eval()
    model.post_processor.set_thresholds(0.5, 0.5)
    return model.to_openvino(tmp_path)


def test_a_kill_between_two_files(exported: Path, image: Path, tmp_path: Path) -> None:
    """The first of two files is new, the second is not: the next to look at it puts the second in its place."""
    before = predict(ExportedModel(exported), image).raw_score
    ended = subprocess.run([sys.executable, "-c", KILL, str(exported), "1.5"], check=False)
    assert ended.returncode == 9
    assert edit.set_thresholds(exported).image == 1.5
    assert predict(ExportedModel(exported), image).raw_score == pytest.approx(before, rel=TOLERANCE)


def test_files_of_two_models(exported: Path, image: Path, tmp_path: Path) -> None:
    kept = exported.with_suffix(".bin").read_bytes()
    edit.set_thresholds(exported, image=0.7)
    exported.with_suffix(".bin").write_bytes(kept)
    for use in (ExportedModel, edit.set_thresholds):
        with pytest.raises(ValueError, match="were not written together"):
            use(exported)


def test_reading_while_another_process_changes(exported: Path) -> None:
    """Between one file and the other, a reader waits; it moves no file under the hands of the writer."""
    changes = "[time.sleep(0.1) or edit.set_thresholds(path, image=0.5 + 0.01 * index) for index in range(1, 41)]"
    command = f"import time; from anomalib_inp.runtime import edit; path = {str(exported)!r}; {changes}"
    with subprocess.Popen([sys.executable, "-c", command]) as process:
        seen = {read_metadata(exported).image.threshold}
        while process.poll() is None:
            seen.add(read_metadata(exported).image.threshold)
    assert process.returncode == 0
    assert len(seen) > 10
    assert read_metadata(exported).image.threshold == pytest.approx(0.9)


def test_changes_at_once_are_all_made(exported: Path, mask: Path) -> None:
    """Thresholds and masks, by six processes at a time."""
    changes = [f"edit.set_thresholds({str(exported)!r}, image={0.5 + 0.01 * index})" for index in range(3)]
    changes += [f"edit.set_inspection({str(exported)!r}, {str(mask)!r}, {index})" for index in range(1, 4)]
    processes = [
        subprocess.Popen([sys.executable, "-c", f"from anomalib_inp.runtime import edit; {change}"])
        for change in changes
    ]
    assert [process.wait(120) for process in processes] == [0] * 6
    metadata = read_metadata(exported)
    assert metadata.inspection.mask == EVERYTHING.changed(mask).mask
    assert metadata.inspection.smallest_area in {1, 2, 3}
    assert metadata.image.threshold in {0.5, 0.51, 0.52}
