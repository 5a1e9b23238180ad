# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from anomalib_inp import InpFormer, InpFormerPlusPlus
from anomalib_inp.checkpoints.edit import set_thresholds
from anomalib_inp.exporting.convert import metadata_of
from anomalib_inp.models.convert import convert_reference, set_map
from anomalib_inp.thresholds.scale import Thresholds

GOLDEN = Path(__file__).parents[2] / "golden" / "inp_former_tiny"
SIZES: dict[str, Any] = {"image_size": 84, "crop_size": None}


@pytest.fixture(scope="module")
def trained(tiny_encoder_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny training's results: the checkpoint to resume from, the finished one, and the encoder's file."""
    folder = tmp_path_factory.mktemp("trained")
    encoder = shutil.copy(tiny_encoder_file, folder / "encoder.safetensors")
    rng = np.random.default_rng(0)
    for name in ("train/good/000.png", "train/good/001.png", "test/good/000.png", "test/good/001.png"):
        path = folder / "data/part" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40), dtype=np.uint8)).save(path)
    torch.manual_seed(0)
    model = InpFormer(
        encoder="test_vit", encoder_weights=str(encoder), image_size=64, evaluator=False, visualizer=False
    )
    datamodule = MVTecAD(
        root=folder / "data", category="part", num_workers=0, train_batch_size=1, val_split_mode="from_test", seed=0
    )
    engine = Engine(default_root_dir=folder, accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False)
    engine.fit(model, datamodule=datamodule)
    for path in folder.glob("InpFormer/**/weights/lightning/*.ckpt"):
        shutil.copy(path, folder)
    assert sorted(path.name for path in folder.glob("*.ckpt")) == ["finished.ckpt", "model.ckpt"]
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoints; the encoder's file stays where it was."""
    for path in trained.glob("*.ckpt"):
        shutil.copy(path, tmp_path)
    return tmp_path


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


def outputs(model: InpFormer, images: Tensor) -> list[Tensor]:
    """Everything that the network says of normalised images, and what is read off it."""
    model.eval()
    with torch.no_grad():
        reconstruction = model.model.network(images)
        result = model.model(images)
    features = reconstruction.features.groups
    return [*features, reconstruction.prototypes, *reconstruction.groups, result.pred_score, result.anomaly_map]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


# --- published checkpoints --------------------------------------------------------------------------------------------


def test_a_converted_checkpoint_computes_what_the_published_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    published = InpFormer.from_reference(GOLDEN / "model.pth", **SIZES)
    encoder = convert_reference(GOLDEN / "model.pth", "new/folder/inp.ckpt")
    assert encoder == Path("new/folder/inp.encoder.safetensors")
    # Nothing else is left behind, neither here nor there.
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    assert found == ["new", "new/folder", "new/folder/inp.ckpt", "new/folder/inp.encoder.safetensors"]
    converted = InpFormer.load_from_checkpoint("new/folder/inp.ckpt")

    images = load_file(GOLDEN / "expected.safetensors")["image"]
    expected = outputs(published, images)
    assert_same(outputs(converted, images), expected)
    # The published weights and not fresh ones.
    torch.manual_seed(1)
    other = InpFormer(**{**converted.hparams, **SIZES})
    assert not torch.equal(outputs(other, images)[-1], expected[-1])


def test_published_checkpoints_follow_the_published_protocol() -> None:
    pre_processor = InpFormer.from_reference(GOLDEN / "model.pth").pre_processor
    assert (pre_processor.image_size, pre_processor.crop_size) == ((448, 448), (392, 392))


def broken(change: Callable[[dict[str, Tensor]], object], path: Path) -> Path:
    state = load(GOLDEN / "model.pth")
    change(state)
    torch.save(state, path)
    return path


FAULTS: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "no checkpoint of ours": (
        lambda state: [state.pop(key) for key in list(state) if key.startswith(("encoder", "prototype"))],
        "Expected a checkpoint of the INP-Former reference code .* but prototype_token, encoder.pos_embed, .* missing",
    ),
    "missing in the decoder": (
        lambda state: state.pop("decoder.3.attn.qkv.weight", None) or state.pop("decoder.3.attn.q.weight"),
        r"Missing key\(s\).*decoder\.blocks\.3\.attn\.",
    ),
    "missing in the encoder": (
        lambda state: state.pop("encoder.blocks.5.attn.qkv.bias"),
        r"missing blocks\.5\.attn\.qkv\.bias",
    ),
    "left over in the bottleneck": (
        lambda state: state.update({"bottleneck.0.fc9.weight": torch.zeros(1)}),
        r"Unexpected key\(s\).*bottleneck\.fc9\.weight",
    ),
    "left over in the encoder": (
        lambda state: state.update({"encoder.extra": torch.zeros(1)}),
        "left over extra",
    ),
    "of no known part": (
        lambda state: state.update({"segmentation.0.weight": torch.zeros(1)}),
        r"belong to no part of INP-Former: segmentation\.0\.weight",
    ),
    "another shape in the bottleneck": (
        lambda state: state.update({"bottleneck.0.fc1.bias": torch.zeros(7)}),
        r"size mismatch for bottleneck\.fc1\.bias: .*\[7\]",
    ),
    "another shape in the encoder": (
        lambda state: state.update({"encoder.blocks.2.norm1.bias": torch.zeros(7)}),
        r"blocks\.2\.norm1\.bias is \(7,\) instead of \(32,\)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_named(fault: str, tmp_path: Path) -> None:
    change, message = FAULTS[fault]
    path = broken(change, tmp_path / "model.pth")
    for read in (lambda: InpFormer.from_reference(path), lambda: convert_reference(path, tmp_path / "new.ckpt")):
        with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
            read()
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "model.pth"))):
        InpFormer.from_reference(tmp_path / "model.pth")


# --- the encoder of a checkpoint --------------------------------------------------------------------------------------


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


def test_another_encoder_is_refused(trained: Path, folder: Path, other_encoder: Path) -> None:
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
    model = InpFormer(encoder="test_vit", encoder_weights=str(other_encoder), image_size=64)
    engine = Engine(default_root_dir=folder, accelerator="cpu", logger=False, enable_progress_bar=False)
    with pytest.raises(ValueError, match=message):
        engine.predict(model, data_path=trained / "data/part/test", ckpt_path=folder / "finished.ckpt")


# --- thresholds -------------------------------------------------------------------------------------------------------


def test_the_map_of_a_checkpoint_is_the_one_that_is_exported(folder: Path) -> None:
    path = folder / "finished.ckpt"
    before = path.read_bytes()
    assert set_map(path) == "reconstruction"
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="must be one of reconstruction, prototype_distance, got 'fused'"):
        set_map(path, "fused")
    assert set_map(path, "prototype_distance") == set_map(path) == "prototype_distance"
    with pytest.warns(UserWarning, match="of the map 'reconstruction', but the map 'prototype_distance' is shown"):
        model = InpFormer.load_from_checkpoint(path)  # as anomalib's export loads it
    assert model.model.map == "prototype_distance"


def test_a_checkpoint_of_the_other_model_is_refused(folder: Path, trained: Path) -> None:
    message = "This is a checkpoint of InpFormer, not of InpFormerPlusPlus"
    with pytest.raises(ValueError, match=message):
        InpFormerPlusPlus.load_from_checkpoint(folder / "finished.ckpt")
    encoder = load(folder / "finished.ckpt")["hyper_parameters"]["encoder_weights"]
    model = InpFormerPlusPlus("test_vit", encoder, image_size=64, head=False)
    engine = Engine(default_root_dir=folder, accelerator="cpu", logger=False, enable_progress_bar=False)
    with pytest.raises(ValueError, match=message):
        engine.predict(model, data_path=trained / "data/part/test", ckpt_path=folder / "finished.ckpt")


def flatten(content: Any, name: str = "") -> dict[str, Any]:
    if isinstance(content, dict):
        return {key: value for k, part in content.items() for key, value in flatten(part, f"{name}/{k}").items()}
    return {name: content}


@pytest.mark.parametrize("name", ["finished.ckpt", "model.ckpt"])
def test_thresholds_of_a_checkpoint(name: str, folder: Path) -> None:
    path = folder / name
    names, before = sorted(file.name for file in folder.iterdir()), flatten(load(path))
    shown = set_thresholds(path)
    state = load(path)["state_dict"]
    assert shown == Thresholds(
        image=state["post_processor._image_threshold"].item(),
        pixel=state["post_processor._pixel_threshold"].item(),
        normalized=True,
        categories=[],
    )
    assert set_thresholds(path, image=0.25) == shown._replace(image=0.25)
    moved = Thresholds(image=0.25, pixel=0.5, normalized=False, categories=[])
    assert set_thresholds(path, pixel=0.5, normalized=False) == moved
    assert set_thresholds(path) == moved
    assert sorted(file.name for file in folder.iterdir()) == names

    # Nothing else has changed: the ends of the validation values move with the threshold.
    after = flatten(load(path))
    assert after.keys() == before.keys()
    different = {key for key, value in after.items() if not _equal(value, before[key])}
    buffers = [name for kind in ("image", "pixel") for name in (f"_{kind}_threshold", f"{kind}_min", f"{kind}_max")]
    expected = {f"/state_dict/post_processor.{buffer}" for buffer in buffers}
    if name == "model.ckpt":  # the post-processor is a callback too, which a resumed training restores
        expected |= {f"/callbacks/InpPostProcessor/{buffer}" for buffer in buffers}
    assert different == {*expected, "/anomalib_post_processor_config/enable_normalization"}

    model = InpFormer.load_from_checkpoint(path)
    metadata = metadata_of(model)
    assert (metadata.normalized, metadata.image.threshold, metadata.pixel.threshold) == (False, 0.25, 0.5)
    set_thresholds(path, normalized=True)
    assert metadata_of(InpFormer.load_from_checkpoint(path)).normalized


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one.nan_to_num(-1), other.nan_to_num(-1))
    return repr(one) == repr(other)


def test_thresholds_of_a_category(folder: Path) -> None:
    path = folder / "finished.ckpt"
    content = load(path)
    content["anomalib_post_processor_config"]["ranges"] = {"bolt": [[0.3, 0.1, 0.5], [0.2, 0.05, 0.4]]}
    torch.save(content, path)
    shown = Thresholds(image=0.3, pixel=0.2, normalized=True, categories=["bolt"])
    assert set_thresholds(path, category="bolt") == shown
    common = set_thresholds(path)
    assert set_thresholds(path, pixel=0.25, category="bolt") == shown._replace(pixel=0.25)
    assert set_thresholds(path) == common
    model = InpFormer.load_from_checkpoint(path)
    image, pixel = model.post_processor.ranges["bolt"]
    assert image == (0.3, 0.1, 0.5)
    assert pixel == pytest.approx((0.25, 0.1, 0.45))  # the ends moved along
    assert metadata_of(model).categories == {"bolt": (image, pixel)}
    assert (image.span, pixel.span) == pytest.approx((0.1, 0.1))
    with pytest.raises(ValueError, match="no thresholds of the category 'nut'; it has bolt"):
        set_thresholds(path, image=0.25, category="nut")


def test_looking_at_thresholds_writes_nothing(folder: Path) -> None:
    path = folder / "finished.ckpt"
    before = (path.stat().st_mtime_ns, path.read_bytes())
    set_thresholds(path)
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before


@pytest.mark.parametrize("given", ["image", "pixel"])
def test_a_missing_threshold_follows_the_one_that_is_given(given: str, tmp_path: Path) -> None:
    """As in ``InpPostProcessor.set_thresholds``; a converted checkpoint has none."""
    path = tmp_path / "inp.ckpt"
    convert_reference(GOLDEN / "model.pth", path)
    assert all(math.isnan(getattr(set_thresholds(path), kind)) for kind in ("image", "pixel"))
    shown = Thresholds(image=0.25, pixel=0.25, normalized=True, categories=[])
    assert set_thresholds(path, **{given: 0.25}) == shown
    assert set_thresholds(path, **{given: 0.5}) == shown._replace(**{given: 0.5})


@pytest.mark.parametrize("kind", ["image", "pixel"])
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_thresholds_are_finite(kind: str, value: float, folder: Path) -> None:
    before = (folder / "finished.ckpt").read_bytes()
    with pytest.raises(ValueError, match=f"The {kind} threshold must be a finite raw score, got {value}"):
        set_thresholds(folder / "finished.ckpt", **{kind: value})
    assert (folder / "finished.ckpt").read_bytes() == before


def test_checkpoints_of_others_have_no_thresholds(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"other\.ckpt is no checkpoint with a post-processor of anomalib-inp"):
        set_thresholds(tmp_path / "other.ckpt", image=0.5)


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
