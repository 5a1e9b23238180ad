# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Feedback, and a training that is done again with it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.data import MVTecAD

from anomalib_inp import InpFormer, TokenMemory
from anomalib_inp.checkpoints.own import read_checkpoint, write_checkpoint
from anomalib_inp.data import MultiCategory
from anomalib_inp.data.file_checks import DataError
from anomalib_inp.data.noted import NotedData, note_images
from anomalib_inp.data.sample import write_sample_data
from anomalib_inp.models.retraining import ALARMS, MISSED, TEST, VALIDATION, retrain
from anomalib_inp.results.feedback import keep_feedback, read_feedback
from anomalib_inp.results.score_table import read_all_rows
from anomalib_inp.thresholds.rates import Rate

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample_data(tmp_path_factory.mktemp("sample") / "data")


@pytest.fixture(scope="module", params=[InpFormer, TokenMemory])
def finished(request: pytest.FixtureRequest, tiny_model: Make, quiet_engine: Make, root: Path) -> Path:
    """A finished training on bricks, whose validation images are a part of the training images."""
    torch.manual_seed(0)
    model = tiny_model(request.param, image_size=64, map_size=32, visualizer=False, evaluator=False)
    data = MVTecAD(root, "brick", 8, 8, num_workers=0, val_split_mode="from_train", val_split_ratio=0.2, seed=3)
    engine = quiet_engine()
    engine.fit(model, datamodule=data)
    (checkpoint,) = Path(engine.trainer.default_root_dir).rglob("finished.ckpt")
    return checkpoint


def keep(folder: Path, mistake: str, *images: Path) -> None:
    for image in images:
        keep_feedback(folder, mistake, image.read_bytes(), str(image))


def test_the_images_of_a_training_are_noted(finished: Path, root: Path) -> None:
    noted = NotedData(read_checkpoint(finished)["images"])
    assert len(noted.images("val")) == 8
    assert len(noted.images("train")) == 32
    assert sorted(path for path, _ in noted.images("train") + noted.images("val")) == sorted(
        (root / "brick/train/good").iterdir()
    )
    assert {kind for _, kind in noted.images("test")} == {"good", "hole", "patch", "scratch", "stain"}
    noted.setup()
    item = noted.test_data[len(noted.test_data) - 1]
    assert item.gt_mask.any()
    assert sorted(noted.val_data.samples.image_path) == sorted(str(path) for path, _ in noted.images("val"))


def test_old_and_new_are_put_beside_each_other(finished: Path, root: Path, tmp_path: Path) -> None:
    """Validation images stay, false alarms train, what is trained on is tested no more; the old file stays as it is."""
    alarms, missed = sorted((root / "brick/test/good").iterdir())[:2], root / "brick/test/stain/000.png"
    foreign = root / "grass/test/good/000.png"
    keep(tmp_path / "feedback", "false_alarm", *alarms, foreign)
    keep(tmp_path / "feedback", "missed", missed)
    before = finished.read_bytes()
    found = retrain(finished, tmp_path / "feedback", tmp_path / "new", accelerator="cpu")
    assert finished.read_bytes() == before
    assert (found.added, found.left_out) == (3, [])
    old, new = (NotedData(read_checkpoint(path)["images"]) for path in (finished, found.checkpoint))
    assert sorted(new.images("val")) == sorted(old.images("val"))
    assert len(new.images("train")) == len(old.images("train")) + 3
    totals = {kind: rates[0].total for kind, rates in found.rates.items()}
    assert totals == {
        f"{VALIDATION}/good": 8,
        f"{TEST}/good": 10,
        **{f"{TEST}/{kind}": 6 for kind in ("hole", "patch", "scratch", "stain")},
        f"{ALARMS}/good": 3,
    }
    for rows, place in zip(map(read_all_rows, found.tables), (0, 1), strict=True):
        for kind, rates in found.rates.items():
            chosen = [row.raw_score > found.thresholds[place] for row in rows if row.kind == kind]
            assert rates[place] == Rate(sum(chosen), len(chosen))
    again = retrain(finished, tmp_path / "feedback", tmp_path / "again", accelerator="cpu")
    assert again.rates == found.rates


def test_a_memory_is_extended(finished: Path, root: Path, tmp_path: Path) -> None:
    keep(tmp_path / "feedback", "false_alarm", root / "grass/test/good/000.png")
    keep(tmp_path / "feedback", "missed", root / "grass/test/hole/000.png")
    if read_checkpoint(finished)["model"] != "TokenMemory":
        with pytest.raises(ValueError, match="remembers nothing"):
            retrain(finished, tmp_path / "feedback", tmp_path / "new", extend=True)
        return
    found = retrain(finished, tmp_path / "feedback", tmp_path / "new", extend=True)
    assert read_checkpoint(found.checkpoint)["learnt"][0]["digest"]
    assert found.rates[f"{MISSED}/defect"][0].total == 1
    old, new = (
        next(row.raw_score for row in read_all_rows(table) if row.kind.startswith(ALARMS)) for table in found.tables
    )
    assert new < old


def test_what_cannot_be_added_is_said(finished: Path, root: Path, tmp_path: Path) -> None:
    """A validation image would be trained and validated on; a training image is known; a file is gone."""
    noted, folder = NotedData(read_checkpoint(finished)["images"]), tmp_path / "feedback"
    keep(folder, "false_alarm", noted.images("val")[0][0], noted.images("train")[0][0])
    with pytest.raises(ValueError, match=r"is a validation image.*is a training image"):
        retrain(finished, folder, tmp_path / "new")
    keep(folder, "false_alarm", root / "grass/test/good/000.png")
    (folder / list(read_feedback(folder))[-1]["file"]).unlink()
    with pytest.raises(ValueError, match="is gone"):
        retrain(finished, folder, tmp_path / "new")
    broken = tmp_path / "broken.png"
    broken.write_bytes((root / "grass/test/good/001.png").read_bytes()[:2000])
    keep(tmp_path / "halves", "false_alarm", broken)
    with pytest.raises(ValueError, match="is no image that can be read"):
        retrain(finished, tmp_path / "halves", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="There is no false alarm"):
        retrain(finished, tmp_path / "nothing", tmp_path / "new")
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        retrain(finished, tmp_path / "nowhere", tmp_path / "new")
    content = read_checkpoint(finished)
    content["images"]["root"] = str(tmp_path)
    write_checkpoint(tmp_path / "moved.ckpt", content)
    with pytest.raises(DataError, match=r"images of the training are gone.*--images"):
        retrain(tmp_path / "moved.ckpt", folder, tmp_path / "new")
    del content["images"]
    write_checkpoint(tmp_path / "before.ckpt", content)
    with pytest.raises(ValueError, match="does not say which images"):
        retrain(tmp_path / "before.ckpt", folder, tmp_path / "new")


def test_several_categories_are_noted_too(root: Path) -> None:
    data = MultiCategory("MVTecAD", str(root), ["brick", "grass"], num_workers=0, val_split_mode="from_train")
    data.setup()
    noted = NotedData(note_images(data))
    noted.setup()
    assert list(noted.train_data.samples.category.unique()) == ["brick", "grass"]
    assert sorted(noted.test_data.samples.image_path) == sorted(data.test_data.samples.image_path)


def test_the_commands(finished: Path, root: Path, tmp_path: Path) -> None:
    test = root / "brick/test"

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "anomalib_inp.cli", *arguments]
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    kept = ("--false_alarms", f"{test}/good/000.png", f"{test}/good/001.png", "--missed", f"{test}/hole/000.png")
    assert "Kept in feedback: 2 false alarms, 1 missed." in run("feedback", "feedback", *kept)
    assert "1 false alarms, 1 missed" in run("feedback", "feedback", "--drop", f"{test}/good/001.png")
    (tmp_path / "text.png").write_text("no image")
    command = [sys.executable, "-m", "anomalib_inp.cli", "feedback", "feedback", "--missed", "text.png"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "no image that can be used: text.png" in ended.stderr
    said = run("retrain", str(finished), "feedback", "--accelerator", "cpu")
    assert "Added: 1 false alarms" in said
    assert "validation/good" in said
    assert "median" not in run("compare", "retrained/old", "retrained/new")
