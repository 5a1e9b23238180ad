# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Learning from false alarms, by the command: in checkpoints and exports, and back."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.deploy import CompressionType
from anomalib.engine import Engine
from lightning import Trainer

from anomalib_inp import ExportedModel, InpFormer, InpFormerPlusPlus, TokenMemory, cli
from anomalib_inp.checkpoints.edit import set_thresholds
from anomalib_inp.checkpoints.own import read_checkpoint, write_checkpoint
from anomalib_inp.data.deep import read_tensor
from anomalib_inp.files import DiskError, locked
from anomalib_inp.models.convert import set_map
from anomalib_inp.models.learning import learn
from anomalib_inp.models.registry import load_model
from anomalib_inp.pictures.visualizer import short_name
from anomalib_inp.scoring.memory import NormalMemory


@pytest.fixture(scope="module")
def root(write_small_sample, tmp_path_factory) -> Path:
    return write_small_sample(tmp_path_factory.mktemp("data"), categories=("brick",))


@pytest.fixture(scope="module", params=[TokenMemory, InpFormerPlusPlus], ids=lambda kind: kind.__name__)
def trained(request, root, tiny_model, quiet_engine, tmp_path_factory) -> Path:
    """A folder with a checkpoint and its exports; nothing may change it."""
    switch = {} if request.param is TokenMemory else {"memory": True}
    model = tiny_model(request.param, memory_size=60, **switch)
    data = partial(MVTecAD, root, "brick", train_batch_size=4, num_workers=0)
    run = quiet_engine()
    run.fit(model, datamodule=data(val_split_mode="from_train", val_split_ratio=0.3, seed=0))
    folder = tmp_path_factory.mktemp("trained")
    (checkpoint,) = Path(run.trainer.default_root_dir).rglob("finished.ckpt")
    shutil.copy(checkpoint, folder / "finished.ckpt")
    loaded = load_model(folder / "finished.ckpt").eval()
    for export in (loaded.to_onnx(folder), loaded.to_openvino(folder)):
        for file in export.parent.glob("model.*"):
            shutil.copy(file, folder)
    return folder


@pytest.fixture
def files(trained: Path, tmp_path: Path) -> dict[str, Path]:
    shutil.copytree(trained, tmp_path / "model")
    return {
        name: tmp_path / "model" / f"{stem}.{name}"
        for name, stem in (("ckpt", "finished"), ("onnx", "model"), ("xml", "model"))
    }


@pytest.fixture
def alarms(root: Path) -> list[Path]:
    """Images with defects stand for normal ones that are unlike all others."""
    return sorted(path for path in (root / "brick" / "test").glob("*/*.png") if path.parent.name != "good")[:3]


def score(checkpoint: Path, image: Path) -> float:
    model = load_model(checkpoint).eval()
    with torch.no_grad():
        return float(model.model(model.pre_processor.transform(read_tensor(image).unsqueeze(0))).pred_score)


def tokens_of(checkpoint: Path) -> torch.Tensor:
    return load_model(checkpoint).model.head_of(NormalMemory).tokens


def test_what_is_learnt_alarms_less_everywhere_and_can_be_forgotten(files, alarms) -> None:
    exports = [files["onnx"], files["xml"]]
    exported_scores = [
        ExportedModel(files["xml"])(read_tensor(path).unsqueeze(0).numpy()).pred_score for path in alarms
    ]
    before, scores = tokens_of(files["ckpt"]), [score(files["ckpt"], path) for path in alarms]
    threshold = read_checkpoint(files["ckpt"])["state_dict"]["post_processor._image_threshold"].item()
    learnt = learn(files["ckpt"], alarms, exports)
    assert (learnt.images, learnt.changed, learnt.kept) == ([short_name(path) for path in alarms], 3, "")
    assert learnt.alarming == []
    assert learnt.before == pytest.approx(threshold)
    # a tenth of the 16 tokens of each image, at each depth
    assert tokens_of(files["ckpt"]).shape[1] == learnt.tokens == before.shape[1] + 3 * 2
    assert torch.equal(tokens_of(files["ckpt"])[:, : before.shape[1]], before)
    assert all(score(files["ckpt"], path) < old for path, old in zip(alarms, scores, strict=True))
    model = load_model(files["ckpt"]).eval()
    for export in exports:
        exported = ExportedModel(export)
        assert exported.metadata.image.threshold == pytest.approx(learnt.threshold, abs=1e-6)
        for path in alarms:
            image = read_tensor(path).unsqueeze(0)
            with torch.no_grad():
                expected = model(image)
            found = exported(image.numpy())
            assert not found.pred_label.any()
            np.testing.assert_allclose(found.anomaly_map, expected.anomaly_map, rtol=0, atol=1e-4)
            np.testing.assert_allclose(found.pred_score, expected.pred_score, rtol=0, atol=1e-4)

    again = learn(files["ckpt"], alarms[:2], exports)
    assert (again.changed, again.tokens) == (0, learnt.tokens)
    middle = learn(files["ckpt"], [alarms[1]], exports, forget=True)
    assert (middle.images, middle.changed) == ([short_name(alarms[0]), short_name(alarms[2])], 1)
    rest = learn(files["ckpt"], exports=exports, forget=True)
    assert (rest.images, rest.changed) == ([], 2)
    assert torch.equal(tokens_of(files["ckpt"]), before)
    assert rest.threshold == pytest.approx(threshold)
    for path, old, exported in zip(alarms, scores, exported_scores, strict=True):
        assert score(files["ckpt"], path) == pytest.approx(old, abs=1e-6)
        found = ExportedModel(files["xml"])(read_tensor(path).unsqueeze(0).numpy()).pred_score
        np.testing.assert_allclose(found, exported, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [CompressionType.FP16, CompressionType.INT8_PTQ])
def test_a_compressed_export_learns_what_one_made_anew_knows(kind, files, alarms, root, tmp_path) -> None:
    def export(name: str) -> Path:
        data = MVTecAD(root, "brick", num_workers=0)
        calibration = {} if kind is CompressionType.FP16 else {"datamodule": data}
        model = load_model(files["ckpt"]).eval()
        engine = Engine(default_root_dir=tmp_path, logger=False, accelerator="cpu")
        return engine.export(model, "openvino", tmp_path / name, compression_type=kind, **calibration)

    def maps(path: Path) -> np.ndarray:
        model = ExportedModel(path)
        return np.concatenate([model(read_tensor(alarm).unsqueeze(0).numpy()).anomaly_map for alarm in alarms])

    edited = export("before")
    unlearnt = maps(edited)
    learn(files["ckpt"], alarms, [edited])
    learnt, anew = maps(edited), maps(export("after"))
    np.testing.assert_allclose(learnt, anew, rtol=0, atol=1e-4)
    assert np.abs(unlearnt - learnt).max() > 0.01


def test_an_image_is_forgotten_by_its_content_before_its_name(files, alarms, tmp_path) -> None:
    paths = [tmp_path / line / "camera" / "000.png" for line in ("first", "second", "third")]
    for path, alarm in zip(paths, alarms, strict=True):
        path.parent.mkdir(parents=True)
        shutil.copy(alarm, path)
    learn(files["ckpt"], paths[:2])
    known = read_checkpoint(files["ckpt"])["learnt"]
    with pytest.raises(ValueError, match="has the name of several that were learnt"):
        learn(files["ckpt"], [paths[2]], forget=True)
    learn(files["ckpt"], [paths[1]], forget=True)
    assert read_checkpoint(files["ckpt"])["learnt"] == known[:1]


def test_the_name_of_an_image_need_be_no_text(files, alarms, tmp_path) -> None:
    image = tmp_path / os.fsdecode(b"f\xff.png")
    shutil.copy(alarms[0], image)
    assert learn(files["ckpt"], [image]).images == [f"{tmp_path.name}/f\\xff.png"]
    image.write_bytes(alarms[1].read_bytes())  # found by its name alone
    assert learn(files["ckpt"], [image], forget=True).images == []


def test_an_empty_folder_forgets_nothing(files, alarms, tmp_path, monkeypatch) -> None:
    learn(files["ckpt"], alarms[:1])
    (tmp_path / "empty").mkdir()
    for further in ([], ["--forget", "true"]):
        monkeypatch.setattr(
            sys, "argv", ["anomalib-inp", "learn", str(files["ckpt"]), str(tmp_path / "empty"), *further]
        )
        with pytest.raises(SystemExit, match=r"there are no images in .*empty"):
            cli.main()
    assert len(read_checkpoint(files["ckpt"])["learnt"]) == 1


def test_the_threshold_is_chosen_from_kept_scores_and_those_of_what_was_learnt(files, alarms) -> None:
    content = read_checkpoint(files["ckpt"])
    validation = content["anomalib_post_processor_config"]["validation"]
    assert len(validation["normal"]) == 2
    assert validation["anomalous"] == []
    learnt = learn(files["ckpt"], alarms)
    entries = read_checkpoint(files["ckpt"])["learnt"]
    assert [entry["score"] for entry in entries] == [pytest.approx(score(files["ckpt"], path)) for path in alarms]
    # of five scores, the 0.99 quantile is the highest; the threshold is above it by a thousandth of the span
    scores = validation["normal"] + [entry["score"] for entry in entries]
    span = max(0.02, (max(scores) - min(scores)) / 2)
    assert learnt.threshold == pytest.approx(max(scores) + 1e-3 * span, abs=1e-6)


def test_a_threshold_that_was_set_by_hand_stays(files, alarms) -> None:
    set_thresholds(files["ckpt"], image=0.01)
    learnt = learn(files["ckpt"], alarms[:1], [files["onnx"]])
    assert (learnt.kept, learnt.before) == ("it was set by hand", learnt.threshold)
    assert learnt.threshold == pytest.approx(0.01)
    assert learnt.alarming == [short_name(alarms[0])]
    assert read_checkpoint(files["ckpt"])["state_dict"]["post_processor._image_threshold"] == torch.tensor(0.01)


def test_the_thresholds_of_a_category_stay(files, alarms) -> None:
    content = read_checkpoint(files["ckpt"])
    config = content["anomalib_post_processor_config"]
    of_brick = [[0.02, 0.01, 0.03], [0.2, 0.1, 0.3]]
    config |= {"category": "brick", "ranges": {"brick": of_brick}}
    write_checkpoint(files["ckpt"], content)
    common = content["state_dict"]["post_processor._image_threshold"].item()
    learnt = learn(files["ckpt"], alarms)
    assert learnt.before == pytest.approx(common)
    assert learnt.threshold > learnt.before
    assert learnt.alarming == [short_name(path) for path in alarms]  # by the threshold of the category
    assert read_checkpoint(files["ckpt"])["anomalib_post_processor_config"]["ranges"] == {"brick": of_brick}


def test_scores_of_another_map_are_not_mixed(files, alarms) -> None:
    if len(load_model(files["ckpt"]).model.maps) == 1:
        pytest.skip("it has one map")
    set_map(files["ckpt"], "memory")
    with pytest.raises(ValueError, match=r"shows the map 'memory', but .* are of the map 'fused'"):
        learn(files["ckpt"], alarms)
    set_map(files["ckpt"], "fused")
    assert learn(files["ckpt"], alarms).changed == 3


def test_all_files_are_changed_or_none(files, alarms, monkeypatch) -> None:
    before = {name: path.read_bytes() for name, path in files.items()}

    def full(*_: object) -> None:
        raise DiskError(28, "no room")

    monkeypatch.setattr("anomalib_inp.checkpoints.own.torch.save", full)
    with pytest.raises(DiskError, match="no room"):
        learn(files["ckpt"], alarms, [files["onnx"], files["xml"]])
    assert {name: path.read_bytes() for name, path in files.items()} == before
    left = {path.name for path in files["ckpt"].parent.iterdir() if path.is_file()} - {"finished.ckpt.lock"}
    assert left == {"finished.ckpt", "model.onnx", "model.xml", "model.bin"}


def test_two_commands_follow_each_other(files, alarms) -> None:
    with ThreadPoolExecutor(1) as pool, locked(files["ckpt"]):
        learning = pool.submit(learn, files["ckpt"], alarms[:1])
        with pytest.raises(TimeoutError):
            learning.result(timeout=1)
        assert "learnt" not in read_checkpoint(files["ckpt"])
    assert learning.result().changed == 1


def test_what_was_learnt_stays_when_a_model_is_saved_again(files, alarms, quiet_engine, root, tmp_path) -> None:
    learn(files["ckpt"], alarms)
    known = read_checkpoint(files["ckpt"])["learnt"]
    model = load_model(files["ckpt"])
    trainer = Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "again.ckpt", weights_only=True)
    assert read_checkpoint(tmp_path / "again.ckpt")["learnt"] == known
    data = MVTecAD(root, "brick", train_batch_size=4, num_workers=0, val_split_mode="none")
    with pytest.warns(UserWarning, match="The memory is filled anew: 3 images that were learnt are forgotten"):
        quiet_engine(limit_val_batches=0).fit(model, datamodule=data)
    assert model.learnt == []


def test_by_the_command(files, alarms, root, tmp_path, capsys, monkeypatch) -> None:
    exports = [str(files["onnx"]), str(files["xml"])]
    arguments = ["learn", str(files["ckpt"]), *map(str, alarms[:2]), "--exports", *exports]
    monkeypatch.setattr(sys, "argv", ["anomalib-inp", *arguments])
    cli.main()
    said = capsys.readouterr().out
    assert "Learnt: 2 images; " in said
    assert f"Learnt in all: {short_name(alarms[0])}; {short_name(alarms[1])}" in said
    assert "Image threshold: " in said
    (tmp_path / "folder").mkdir()
    shutil.copy(alarms[2], tmp_path / "folder")
    monkeypatch.setattr(sys, "argv", ["anomalib-inp", "learn", str(files["ckpt"]), str(tmp_path / "folder")])
    cli.main()
    assert "Learnt: 1 images" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["anomalib-inp", "learn", str(files["ckpt"]), "--forget", "true"])
    cli.main()
    assert "Forgotten: 3 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["learn", "a.ckpt", "1.png", "2 3.png"], ["learn", "a.ckpt", "--images", '["1.png", "2 3.png"]']),
        (["learn", "a.ckpt", "--images", '["1.png"]'], ["learn", "a.ckpt", "--images", '["1.png"]']),
        (
            ["learn", "a.ckpt", "1.png", "--exports", "a.xml", "b.onnx", "--forget", "true"],
            ["learn", "a.ckpt", "--forget", "true", "--images", '["1.png"]', "--exports", '["a.xml", "b.onnx"]'],
        ),
        (["learn", "a.ckpt", "--exports=a.xml"], ["learn", "a.ckpt", "--exports", '["a.xml"]']),
        (["learn", "a.ckpt", "[1].png", "[2]/3.png"], ["learn", "a.ckpt", "--images", '["[1].png", "[2]/3.png"]']),
        (["learn", "a", "--forget", "true", "1.png"], ["learn", "a", "--forget", "true", "--images", '["1.png"]']),
        (["learn", "a", "--forget=true", "1.png"], ["learn", "a", "--forget=true", "--images", '["1.png"]']),
        (["learn", "--help"], ["learn", "--help"]),
        (["predict", "a", "b", "--pictures", "false"], ["predict", "a", "b", "--pictures", "false"]),
    ],
)
def test_files_after_one_another_are_a_list(arguments, expected) -> None:
    assert cli.with_lists(arguments) == expected


def test_what_cannot_be_learnt(files, alarms, root, tiny_model, quiet_engine, tmp_path) -> None:
    untouched = files["ckpt"].read_bytes()
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken\.png"):
        learn(files["ckpt"], [alarms[0], broken])
    with pytest.raises(ValueError, match=r"was never learnt; what was: nothing"):
        learn(files["ckpt"], [alarms[0]], forget=True)
    with pytest.raises(FileNotFoundError):
        learn(files["ckpt"], [alarms[0]], [tmp_path / "gone.xml"])
    assert files["ckpt"].read_bytes() == untouched
    learn(files["ckpt"], [alarms[0]])
    with pytest.raises(ValueError, match="is no export of this checkpoint as it is now"):
        learn(files["ckpt"], [alarms[1]], [files["xml"]])
    with pytest.raises(ValueError, match="is no export of this checkpoint as it is now"):
        learn(files["ckpt"], [alarms[1]], [files["onnx"]])
    run = quiet_engine(limit_val_batches=0)
    data = MVTecAD(root, "brick", train_batch_size=4, num_workers=0, val_split_mode="same_as_test")
    run.fit(tiny_model(InpFormer), datamodule=data)
    (plain,) = Path(run.trainer.default_root_dir).rglob("finished.ckpt")
    with pytest.raises(ValueError, match="remembers nothing that could be added to: train TokenMemory"):
        learn(plain, alarms)


def test_the_help_is_there() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "anomalib_inp.cli", "learn", "--help"], capture_output=True, text=True, check=True
    )
    assert "Learn from false alarms" in done.stdout
