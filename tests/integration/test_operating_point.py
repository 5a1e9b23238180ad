# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""An image threshold chosen by false alarms, and the verdicts that follow: of checkpoints and exports, all alike."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from anomalib.data import MVTecAD

from anomalib_inp import SelfSimilarity, cli
from anomalib_inp.checkpoints.edit import kept_scores, set_thresholds
from anomalib_inp.checkpoints.own import read_checkpoint, write_checkpoint
from anomalib_inp.data import MultiCategory
from anomalib_inp.models.convert import set_map
from anomalib_inp.models.registry import load_model
from anomalib_inp.results.score_table import read_all_rows
from anomalib_inp.runtime.metadata import read_metadata

CATEGORIES = ["brick", "grass"]
KINDS = ["ckpt", "onnx", "xml"]


@pytest.fixture(scope="module")
def root(write_small_sample, tmp_path_factory) -> Path:
    return write_small_sample(tmp_path_factory.mktemp("data"), categories=tuple(CATEGORIES))


@pytest.fixture(scope="module")
def trained(root, tiny_model, quiet_engine, tmp_path_factory) -> Path:
    """A folder with a checkpoint and its exports; nothing may change it."""
    run = quiet_engine()
    data = MultiCategory(
        "MVTecAD", str(root), CATEGORIES, num_workers=0, train_batch_size=4, val_split_mode="from_train",
        val_split_ratio=0.5,
    )  # fmt: skip
    run.fit(tiny_model(SelfSimilarity), datamodule=data)
    folder = tmp_path_factory.mktemp("trained")
    (checkpoint,) = Path(run.trainer.default_root_dir).rglob("finished.ckpt")
    shutil.copy(checkpoint, folder / "model.ckpt")
    loaded = load_model(folder / "model.ckpt").eval()
    for export in (loaded.to_onnx(folder), loaded.to_openvino(folder)):
        for file in export.parent.glob("model.*"):
            shutil.copy(file, folder)
    return folder


@pytest.fixture
def files(trained: Path, tmp_path: Path) -> dict[str, Path]:
    shutil.copytree(trained, tmp_path / "model")
    return {kind: tmp_path / "model" / f"model.{kind}" for kind in KINDS}


@pytest.fixture
def run(monkeypatch, capsys) -> Callable[..., str]:
    def call(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["anomalib-inp", "threshold", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as stopped:
            return str(stopped.code)
        return " ".join(capsys.readouterr().out.split())

    return call


@pytest.fixture
def run_predict(monkeypatch) -> Callable[..., None]:
    def call(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", ["anomalib-inp", "predict", *map(str, arguments)])
        cli.main()

    return call


def threshold_of(path: Path, category: str | None = None) -> float:
    if path.suffix == ".ckpt":
        return set_thresholds(path, category=category).image
    metadata = read_metadata(path)
    return (metadata if category is None else metadata.of_category(category)).image.threshold


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_chosen_from_the_scores_that_a_file_keeps(kind, files, run) -> None:
    scores = sorted(kept_scores(files["ckpt"])[0].normal)
    assert len(scores) == 8
    said = run(files[kind], "--false_alarms", 0.25)
    assert "Of 8 normal validation images, 2 are above it. Of those to come, at most 59.97% are" in said
    assert "To promise 25.00% takes at least 11 normal images" in said
    assert scores[5] < threshold_of(files[kind]) < scores[6]
    assert f"Image threshold: {threshold_of(files[kind]):.6g}" in said


@pytest.mark.parametrize("kind", KINDS)
def test_a_category_has_scores_of_its_own(kind, files, run) -> None:
    before = {name: threshold_of(files[kind], name) for name in (None, "grass")}
    scores = sorted(kept_scores(files["ckpt"], "brick")[0].normal)
    assert len(scores) == 4
    assert "Of 4 normal validation images, 1 are above" in run(
        files[kind], "--false_alarms", 0.3, "--category", "brick"
    )
    assert scores[2] < threshold_of(files[kind], "brick") < scores[3]
    assert {name: threshold_of(files[kind], name) for name in before} == pytest.approx(before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_confidence_is_kept_or_refused(kind, files, run) -> None:
    said = run(files[kind], "--false_alarms", 0.4, "--confidence", 0.95)
    assert "Of 8 normal validation images, 0 are above it. Of those to come, at most 31.23% are" in said
    assert "To promise" not in said
    before = files[kind].read_bytes()
    said = run(files[kind], "--false_alarms", 0.02, "--confidence", 0.95)
    assert "8 normal images cannot promise 2.00% false alarms with a confidence of 95%: 149 can" in said
    assert files[kind].read_bytes() == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_sensitivity_is_allowed_for(kind, files, run, tmp_path) -> None:
    """It moves what is in force away from the threshold, and the false alarms are those that were asked for."""
    content = read_checkpoint(files["ckpt"])
    content["anomalib_post_processor_config"]["image_sensitivity"] = 0.7
    write_checkpoint(files["ckpt"], content)
    model = load_model(files["ckpt"]).eval()
    exports = {"onnx": model.to_onnx, "xml": model.to_openvino}
    path = files["ckpt"] if kind == "ckpt" else Path(exports[kind](tmp_path))
    assert "Of 8 normal validation images, 2 are above" in run(path, "--false_alarms", 0.25)
    kept, scale, limit = kept_scores(files["ckpt"])
    if kind != "ckpt":
        metadata = read_metadata(path)
        kept, scale, limit = metadata.validation, metadata.image, metadata.image_limit
    assert limit == pytest.approx(0.3)
    _, alarms = scale.normalise_and_label(np.array(kept.normal), limit)
    assert alarms.sum() == 2


def test_what_cannot_be_promised_or_read_is_said_before_images_are_scored(files, root, run, tmp_path) -> None:
    good = root / "brick" / "train" / "good"
    said = run(files["xml"], "--false_alarms", 0.02, "--confidence", 0.95, "--images", good)
    assert "8 normal images cannot promise" in said
    assert "Scoring" not in said
    shutil.copytree(good, tmp_path / "images")
    (tmp_path / "images" / "zzz.png").write_bytes(b"no image")
    said = run(files["xml"], "--false_alarms", 0.5, "--images", tmp_path / "images")
    assert "Files are no images that can be used: " in said
    assert "zzz.png" in said


def test_images_of_a_folder_are_scored_alike_by_all_files(files, root, run) -> None:
    found = []
    for kind in KINDS:
        said = run(files[kind], "--false_alarms", 0.5, "--images", root / "brick" / "test")
        assert "Of 2 normal images in" in said
        assert "1 are above it" in said
        found.append(threshold_of(files[kind]))
    assert found[1:] == pytest.approx(found[:1] * 2, rel=1e-4)
    assert "Of 8 normal images in" in run(
        files["xml"], "--false_alarms", 0.5, "--images", root / "brick" / "train" / "good"
    )


def test_a_test_and_predict_say_the_same_of_the_same_images(files, root, quiet_engine, run_predict, tmp_path) -> None:
    model, engine = load_model(files["ckpt"]), quiet_engine()
    engine.test(model, datamodule=MVTecAD(root, "brick", num_workers=0), verbose=False)
    run_predict(files["xml"], root / "brick" / "test", "--output", tmp_path / "predicted", "--category", "brick")
    tested = Path(engine.trainer.default_root_dir)
    rows, predicted = read_all_rows(tested), {row.image: row for row in read_all_rows(tmp_path / "predicted")}
    assert [row.image for row in rows] == sorted(predicted)
    assert len(rows) > 4
    for row in rows:
        other = predicted[row.image]
        assert (row.kind, row.anomalous) == (other.kind, other.anomalous)
        assert (row.score, row.raw_score) == pytest.approx((other.score, other.raw_score), abs=1e-4)
    counted = (tested / "confusion.csv").read_text()
    assert counted == (tmp_path / "predicted" / "confusion.csv").read_text()
    assert [line.partition(",")[0] for line in counted.splitlines()[:2]] == ["kind", "good"]


def test_a_test_of_several_categories_keeps_them_apart(files, root, quiet_engine, capsys) -> None:
    model, engine = load_model(files["ckpt"]), quiet_engine()
    data = MultiCategory("MVTecAD", str(root), CATEGORIES, num_workers=0)
    capsys.readouterr()
    engine.test(model, datamodule=data)
    rows = read_all_rows(Path(engine.trainer.default_root_dir))
    assert len(rows) == len({row.image for row in rows}) == len(data.test_data)
    for row in rows:
        category, _, kind, _ = row.image.split("/")
        assert row.kind == f"{category}/{kind}"
    said = capsys.readouterr().out
    assert "brick/good" in said
    assert "false alarms" in said


def test_what_does_not_go_together_is_refused(files, run, tmp_path) -> None:
    assert "belong to --false_alarms" in run(files["xml"], "--confidence", 0.95)
    assert "give one of them" in run(files["xml"], "--false_alarms", 0.1, "--image", 0.5)
    assert "must lie between 0 and 1, such as 0.02 for 2 %, got 2.0" in run(files["xml"], "--false_alarms", 2)
    assert "no thresholds of the category 'bolt'" in run(files["ckpt"], "--false_alarms", 0.1, "--category", "bolt")
    assert "no thresholds of the category 'bolt'" in run(files["xml"], "--false_alarms", 0.1, "--category", "bolt")
    assert "There is no image or folder" in run(files["xml"], "--false_alarms", 0.1, "--images", tmp_path / "none")


def test_a_file_without_scores_and_one_of_another_map_say_so(files, run) -> None:
    content = read_checkpoint(files["ckpt"])
    config = content["anomalib_post_processor_config"]
    for name in ("validation", "category_validation"):  # as checkpoints of before are
        del config[name]
    write_checkpoint(files["ckpt"], content)
    assert "keeps no scores of normal validation images: give some by --images" in run(
        files["ckpt"], "--false_alarms", 0.1
    )
    shown = set_map(files["ckpt"])
    set_map(files["ckpt"], next(name for name in load_model(files["ckpt"]).model.maps if name != shown))
    assert f"are of the map '{shown}'" in run(files["ckpt"], "--false_alarms", 0.1)
