# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Exported models against the Engine: the same image file must give the same scores and maps."""

import itertools
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import openvino
import pytest
import torch
from anomalib.data import ImageBatch, InferenceBatch
from anomalib.data.utils import read_image
from anomalib.deploy import CompressionType, OpenVINOInferencer, TorchInferencer
from anomalib.post_processing import PostProcessor
from PIL import Image

from anomalib_inp import InpFormer, InpFormerPlusPlus
from anomalib_inp.benchmarks.exports import export_all
from anomalib_inp.exporting.convert import metadata_of
from anomalib_inp.files import VARIABLE
from anomalib_inp.frame import WHOLE_IMAGE
from anomalib_inp.runtime import edit
from anomalib_inp.runtime.metadata import read_metadata
from anomalib_inp.runtime.model import ExportedModel
from anomalib_inp.thresholds.scale import Scale, Thresholds

Make = Callable[..., Any]

# Height and width of the images; the model's are 64 x 96.
IMAGES = {
    "large.png": (150, 210, 3),
    "small.png": (40, 50, 3),
    "wide_grey.png": (30, 300, 1),
    "tall_grey.png": (200, 90, 1),
    "same.png": (64, 96, 3),
}
TOLERANCE = {"torch": 1e-4, "onnx": 1e-4, "openvino": 1e-4, "openvino_inferencer": 1e-4, "openvino_fp16": 5e-3}
PRINTED = "printed.txt"
SPANS = {"image": 0.02, "pixel": 0.05}


class Prediction(NamedTuple):
    """What a model says of one image: score, label, map ``(h, w)`` and mask ``(h, w)``."""

    score: float
    label: bool
    anomaly_map: np.ndarray
    mask: np.ndarray


def prediction(batch: object) -> Prediction:
    score, label, anomaly_map, mask = (
        np.asarray(getattr(batch, name)) for name in ("pred_score", "pred_label", "anomaly_map", "pred_mask")
    )
    return Prediction(score.item(), label.item(), anomaly_map.squeeze(), mask.squeeze())


def predict_exported(model: ExportedModel, path: Path) -> Prediction:
    return prediction(model(read_image(path, as_tensor=True).numpy()[None]))


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def assert_no_errors(printed: str) -> None:
    for word in ("traceback", "error", "fail", "warn", "❌"):
        assert word not in printed.lower(), printed


@pytest.fixture(scope="module")
def build(tiny_model: Make) -> Make:
    """Builds small models whose weights matter: scores of different images differ by far more than the tolerance."""

    def build(kind: type[InpFormer | InpFormerPlusPlus] = InpFormer, **arguments: object) -> InpFormer:
        torch.manual_seed(0)
        # a graph of two blocks exports fast
        return tiny_model(kind, spread=8, **{"target_layers": [1, 2], "map_size": 48, "evaluator": False, **arguments})

    return build


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("images")
    paths = {}
    for index, (name, (height, width, channels)) in enumerate(IMAGES.items()):
        rng = np.random.default_rng(index)
        # Smooth shapes under fine noise: without antialiasing the noise would alias.
        y, x = np.mgrid[:height, :width] / max(height, width)
        shape = 128 + 80 * np.sin(2 * np.pi * (3 + index) * (x + y**2))
        noise = rng.normal(0, 40, (height, width, channels))
        pixels = (shape[..., None] + noise).clip(0, 255).astype(np.uint8)
        paths[name] = folder / name
        Image.fromarray(pixels.squeeze()).save(paths[name])
    return paths


@pytest.fixture(scope="module")
def predict(quiet_engine: Make, images: dict[str, Path]) -> Make:
    """Predicts the images through the Engine."""

    def predict(model: InpFormer) -> dict[str, ImageBatch]:
        batches = quiet_engine().predict(model, data_path=images["large.png"].parent)
        return {Path(batch.image_path[0]).name: batch for batch in batches}

    return predict


@pytest.fixture(scope="module", params=[InpFormer, InpFormerPlusPlus])
def model(request: pytest.FixtureRequest, build: Make, predict: Make) -> InpFormer:
    """A model whose thresholds part the images, and the pixels of most."""
    model = build(request.param, image_size=(64, 96))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There are no thresholds")
        raw = predict(model).values()
    scores = np.sort([batch.raw_score.item() for batch in raw])
    pixels = torch.stack([batch.raw_map for batch in raw])
    post = model.post_processor
    post.set_thresholds(image=float(scores[2:4].mean()), pixel=pixels.median().item())
    for kind, span in SPANS.items():
        threshold = getattr(post, f"{kind}_threshold")
        getattr(post, f"{kind}_min").copy_(threshold - 2 * span)
        getattr(post, f"{kind}_max").copy_(threshold + span)
    return model


@pytest.fixture(scope="module")
def expected(model: InpFormer, predict: Make) -> dict[str, ImageBatch]:
    return predict(model)


@pytest.fixture(scope="module")
def exports(model: InpFormer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("exports")
    with (root / PRINTED).open("w") as file, redirect_stdout(file), redirect_stderr(file):
        onnx_path = model.to_onnx(root)
    return {
        "torch": model.to_torch(root),
        "onnx": onnx_path,
        "openvino": model.to_openvino(root),
        "openvino_fp16": model.to_openvino(root, "half", compression_type=CompressionType.FP16),
    }


@pytest.fixture(scope="module")
def runs(exports: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Callable[[Path], Prediction]]:
    """How each export is run on an image file."""
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRUST_REMOTE_CODE", "1")
        patch.chdir(tmp_path_factory.mktemp("cache"))  # OpenVINOInferencer leaves a cache where it is made
        torch_inferencer = TorchInferencer(exports["torch"], device="cpu")
        openvino_inferencer = OpenVINOInferencer(exports["openvino"], device="CPU", config=hint)
    exported = {name: ExportedModel(exports[name]) for name in ("onnx", "openvino", "openvino_fp16")}

    def run_torch(path: Path) -> Prediction:
        with torch.no_grad():
            return prediction(torch_inferencer.predict(path))

    return {
        "torch": run_torch,
        "openvino_inferencer": lambda path: prediction(openvino_inferencer.predict(path)),
        **{name: lambda path, model=model: predict_exported(model, path) for name, model in exported.items()},
    }


# --- the same numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("kind", TOLERANCE)
def test_an_export_scores_an_image_as_the_engine_does(
    kind: str,
    image: str,
    model: InpFormer,
    runs: dict[str, Callable[[Path], Prediction]],
    images: dict[str, Path],
    expected: dict[str, ImageBatch],
) -> None:
    ours, theirs, tolerance = runs[kind](images[image]), expected[image], TOLERANCE[kind]
    metadata = metadata_of(model)
    assert metadata.to_raw(ours.score) == pytest.approx(theirs.raw_score.item(), abs=tolerance)
    raw_map = metadata.to_raw(ours.anomaly_map, "pixel")
    np.testing.assert_allclose(raw_map, theirs.raw_map[0].numpy(), atol=tolerance, rtol=0)
    if kind != "openvino_fp16":  # it may move what lies at a threshold
        assert ours.label == theirs.pred_label.item()
        decided = (theirs.anomaly_map[0] - 0.5).abs().numpy() > 5e-3
        np.testing.assert_array_equal(ours.mask[decided], theirs.pred_mask[0].numpy()[decided])


def test_the_images_tell_exports_apart(expected: dict[str, ImageBatch]) -> None:
    """The comparison above means something: scores are far apart, labels of both kinds, masks part their pixels."""
    scores = np.sort([batch.raw_score.item() for batch in expected.values()])
    assert np.diff(scores).min() > 10 * TOLERANCE["onnx"]
    assert {batch.pred_label.item() for batch in expected.values()} == {True, False}
    assert 0.2 < torch.stack([batch.pred_mask for batch in expected.values()]).float().mean() < 0.8
    assert min(batch.raw_map.std().item() for batch in expected.values()) > 100 * TOLERANCE["onnx"]


def test_antialiasing_makes_a_difference(
    model: InpFormer, images: dict[str, Path], expected: dict[str, ImageBatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.pre_processor.export_transform.transforms[0], "antialias", False)
    with torch.no_grad():
        result = model(read_image(images["large.png"], as_tensor=True)[None])
    raw_map = metadata_of(model).to_raw(result.anomaly_map[0, 0].numpy(), "pixel")
    assert np.abs(raw_map - expected["large.png"].raw_map[0].numpy()).max() > 100 * TOLERANCE["onnx"]


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_batches_of_any_size(kind: str, exports: dict[str, Path], images: dict[str, Path]) -> None:
    exported = ExportedModel(exports[kind])
    image = read_image(images["large.png"], as_tensor=True).numpy()
    batch = np.stack([image, image[:, ::-1], image[:, :, ::-1]])
    together = exported(batch)
    assert together.pred_score.shape == together.pred_label.shape == (3,)
    assert together.anomaly_map.shape == together.pred_mask.shape == (3, 1, 48, 48)
    for index in range(3):
        alone = exported(batch[index : index + 1])
        np.testing.assert_allclose(together.pred_score[index], alone.pred_score[0], atol=1e-4)
        np.testing.assert_allclose(together.anomaly_map[index], alone.anomaly_map[0], atol=1e-4)


# --- what the files are -----------------------------------------------------------------------------------------------


def test_exports_leave_nothing_else_behind(exports: dict[str, Path]) -> None:
    openvino_files = [f"weights/openvino/{name}.{end}" for name in ("half", "model") for end in ("bin", "xml")]
    expected = [PRINTED, "weights/onnx/model.onnx", *openvino_files, "weights/torch/model.pt"]
    assert files_below(exports["torch"].parents[2]) == expected


def test_onnx_export_prints_no_errors(exports: dict[str, Path]) -> None:
    assert_no_errors((exports["torch"].parents[2] / PRINTED).read_text())


def test_onnx_file(model: InpFormer, exports: dict[str, Path]) -> None:
    content = onnx.load(exports["onnx"])
    onnx.checker.check_model(content)
    assert [(entry.domain, entry.version) for entry in content.opset_import if entry.domain == ""] == [("", 18)]
    assert [output.name for output in content.graph.output] == ["pred_score", "pred_label", "anomaly_map", "pred_mask"]
    assert read_metadata(exports["onnx"]) == metadata_of(model)


@pytest.mark.parametrize("kind", ["openvino", "openvino_fp16"])
def test_openvino_file(kind: str, model: InpFormer, exports: dict[str, Path]) -> None:
    content = openvino.Core().read_model(exports[kind])
    assert [value.any_name for value in content.inputs] == ["input"]
    assert [value.any_name for value in content.outputs] == ["pred_score", "pred_label", "anomaly_map", "pred_mask"]
    assert str(content.inputs[0].partial_shape) == "[?,3,?,?]"
    assert read_metadata(exports[kind]) == metadata_of(model)


def test_half_precision_is_half_as_large(exports: dict[str, Path]) -> None:
    half, full = (exports[kind].with_suffix(".bin").stat().st_size for kind in ("openvino_fp16", "openvino"))
    assert half < 0.6 * full


def test_metadata_of_a_model(model: InpFormer) -> None:
    metadata, post = metadata_of(model), model.post_processor
    assert metadata.normalized
    assert metadata.image.threshold == post.image_threshold
    assert metadata.pixel.threshold == post.pixel_threshold
    assert (metadata.image.span, metadata.pixel.span) == pytest.approx((SPANS["image"], SPANS["pixel"]), rel=1e-4)
    assert metadata.crop_box == WHOLE_IMAGE


def test_files_that_are_no_export_of_ours(tmp_path: Path) -> None:
    graph = onnx.helper.make_graph([], "empty", [], [])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="carries no metadata of anomalib-inp; export the model"):
        read_metadata(tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="carries no metadata of anomalib-inp; export the model"):
        edit.set_thresholds(tmp_path / "model.onnx", image=0.5)
    for name in ("missing.xml", "missing.onnx", "model.pt"):
        with pytest.raises(FileNotFoundError, match=f"Expected the .xml of an exported OpenVINO .*{name}"):
            ExportedModel(tmp_path / name)


# --- a model with a crop, thresholds by hand and a fixed input size ---------------------------------------------------


@pytest.fixture
def cropped(build: Make) -> InpFormer:
    """Thresholds by hand, both the same and equal to other constants of the graph; so the span is unknown, 1."""
    model = build(image_size=(80, 112), crop_size=(64, 96))
    model.post_processor.set_thresholds(image=1.0, pixel=1.0)
    return model


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_crop_thresholds_by_hand_and_fixed_size(
    kind: str, cropped: InpFormer, images: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    export = {"onnx": cropped.to_onnx, "openvino": cropped.to_openvino}[kind]
    path = export(tmp_path, "fixed", (150, 210))
    assert_no_errors("".join(capfd.readouterr()))
    assert files_below(tmp_path) == sorted(
        {"onnx": ["weights/onnx/fixed.onnx"], "openvino": [f"weights/openvino/fixed.{end}" for end in ("bin", "xml")]}[
            kind
        ]
    )

    # The box of the crop is known to whoever draws the map into the image.
    metadata = read_metadata(path)
    assert tuple(metadata.crop_box) == pytest.approx((8 / 112, 8 / 80, 104 / 112, 72 / 80))
    assert metadata.crop_box == cropped.pre_processor.crop_box
    assert metadata.normalized
    assert [(scale.threshold, scale.span) for scale in (metadata.image, metadata.pixel)] == [(1.0, 1.0)] * 2

    exported = ExportedModel(path)
    image = read_image(images["large.png"], as_tensor=True)
    with torch.no_grad():
        theirs = prediction(cropped(image[None]))
    ours = predict_exported(exported, images["large.png"])
    assert metadata.to_raw(ours.score) == pytest.approx(metadata.to_raw(theirs.score), abs=1e-4)
    np.testing.assert_allclose(
        metadata.to_raw(ours.anomaly_map, "pixel"), metadata.to_raw(theirs.anomaly_map, "pixel"), atol=1e-4, rtol=0
    )
    batch = exported(np.stack([image.numpy()] * 2))
    np.testing.assert_allclose(batch.pred_score, ours.score, atol=1e-4)
    with pytest.raises(ValueError, match="exported for images of one size: a batch of any x 3 x 150 x 210"):
        exported(np.zeros((1, 3, 64, 64), np.float32))
    del exported  # the file is about to be replaced

    check_moved_thresholds(path, images["large.png"])


def check_moved_thresholds(path: Path, image: Path) -> None:
    """Move one threshold, then the other, then both."""
    before, metadata = predict_exported(ExportedModel(path), image), read_metadata(path)
    raw_score, raw_map = metadata.to_raw(before.score), metadata.to_raw(before.anomaly_map, "pixel")
    names = files_below(path.parent)
    lower, upper = raw_score - 0.05, raw_score + 0.05
    low, high = np.quantile(raw_map, [0.3, 0.7])
    values = {"image": metadata.image.threshold, "pixel": metadata.pixel.threshold}
    for moved in ({"image": upper}, {"pixel": low}, {"image": lower, "pixel": high}):
        values |= moved
        shown, returned = edit.set_thresholds(path, **moved), read_metadata(path)
        assert shown == Thresholds(values["image"], values["pixel"], metadata.normalized, list(metadata.categories))
        assert (returned.image.threshold, returned.pixel.threshold) == (values["image"], values["pixel"])
        assert returned._replace(image=metadata.image, pixel=metadata.pixel) == metadata
        for kind in ("image", "pixel"):
            assert getattr(returned, kind).span == pytest.approx(getattr(metadata, kind).span, rel=1e-9)
        assert files_below(path.parent) == names

        after = predict_exported(ExportedModel(path), image)
        assert after.label == (raw_score > values["image"])
        decided = np.abs(raw_map - values["pixel"]) > 1e-4
        np.testing.assert_array_equal(after.mask[decided], (raw_map > values["pixel"])[decided])
        # Scores are normalised around the new threshold, by the same span: the raw ones are those of before.
        assert after.score == pytest.approx(returned.to_normalized(raw_score), abs=1e-3)
        assert returned.to_raw(after.score) == pytest.approx(raw_score, abs=1e-4)
        np.testing.assert_allclose(returned.to_raw(after.anomaly_map, "pixel"), raw_map, atol=1e-4, rtol=0)


# --- thresholds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_thresholds_of_an_export_move(
    kind: str, exports: dict[str, Path], images: dict[str, Path], tmp_path: Path
) -> None:
    for path in exports[kind].parent.glob(f"{exports[kind].stem}.*"):
        shutil.copy(path, tmp_path)
    check_moved_thresholds(tmp_path / exports[kind].name, images["large.png"])


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_thresholds_that_are_zero_move_too(kind: str, build: Make, images: dict[str, Path], tmp_path: Path) -> None:
    model = build()
    model.post_processor.set_thresholds(0.0, 0.0)
    path = model.to_onnx(tmp_path) if kind == "onnx" else model.to_openvino(tmp_path)
    check_moved_thresholds(Path(path), images["large.png"])


def test_thresholds_of_a_half_precision_export_move(
    exports: dict[str, Path], images: dict[str, Path], tmp_path: Path
) -> None:
    for path in exports["openvino_fp16"].parent.glob("half.*"):
        shutil.copy(path, tmp_path)
    size = (tmp_path / "half.bin").stat().st_size
    check_moved_thresholds(tmp_path / "half.xml", images["large.png"])
    assert (tmp_path / "half.bin").stat().st_size < 1.05 * size


@pytest.mark.parametrize("normalized", [True, False], ids=["normalised", "raw"])
def test_an_export_knows_the_thresholds_of_the_categories(
    normalized: bool,
    model: InpFormer,
    images: dict[str, Path],
    expected: dict[str, ImageBatch],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    post = model.post_processor
    (image, image_span), (pixel, pixel_span) = (
        (float(post.scale(kind).threshold), float(post.scale(kind).span)) for kind in ("image", "pixel")
    )
    ranges = {
        "low": (Scale(image - image_span, 0, image), Scale(pixel - pixel_span, 0, pixel)),
        "high": (Scale(image + image_span, image, image + 4 * image_span), Scale(pixel + pixel_span, 0, pixel)),
    }
    monkeypatch.setattr(post, "ranges", ranges)
    monkeypatch.setattr(post, "enable_normalization", normalized)
    monkeypatch.setattr(post, "pixel_sensitivity", 0.6)
    with caplog.at_level("INFO"):
        path = model.to_openvino(tmp_path)
    assert f"Exporting the map {model.model.map}, read by the common thresholds" in caplog.text
    for category in ranges:
        monkeypatch.setattr(post, "category", category)
        exported = ExportedModel(path, category=category)
        for name, theirs in expected.items():
            ours = predict_exported(exported, images[name])
            read = post(InferenceBatch(pred_score=theirs.raw_score, anomaly_map=theirs.raw_map[:, None]))
            assert ours.score == pytest.approx(read.pred_score.item(), abs=1e-4)
            np.testing.assert_allclose(ours.anomaly_map, read.anomaly_map[0, 0].numpy(), atol=1e-3, rtol=0)
            assert ours.label == read.pred_label.item()
            assert (ours.mask != read.pred_mask[0, 0].numpy()).mean() < 1e-3
    with pytest.raises(ValueError, match="no thresholds of the category 'nut'; it knows low, high"):
        ExportedModel(path, category="nut")
    before = read_metadata(path)
    shown, after = edit.set_thresholds(path, image=0.125, category="low"), read_metadata(path)
    assert shown.image == after.of_category("low").image.threshold == 0.125
    assert shown.pixel == after.of_category("low").pixel.threshold == before.of_category("low").pixel.threshold
    assert after.of_category("low").pixel == before.of_category("low").pixel
    assert after.categories["high"] == before.categories["high"]
    assert after._replace(categories=before.categories) == before


def test_an_export_is_read_by_the_category_that_was_chosen(
    model: InpFormer,
    images: dict[str, Path],
    expected: dict[str, ImageBatch],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    post = model.post_processor
    image, pixel = (float(post.scale(kind).threshold) for kind in ("image", "pixel"))
    monkeypatch.setattr(post, "ranges", {"own": (Scale(image / 2, 0, image), Scale(pixel / 2, 0, pixel))})
    monkeypatch.setattr(post, "category", "own")
    exported = ExportedModel(model.to_openvino(tmp_path))
    for name, theirs in expected.items():
        read = post(InferenceBatch(pred_score=theirs.raw_score, anomaly_map=theirs.raw_map[:, None]))
        assert predict_exported(exported, images[name]).score == pytest.approx(read.pred_score.item(), abs=1e-4)
        assert read.pred_score.item() != pytest.approx(theirs.pred_score.item(), abs=1e-3)  # the common ones differ


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_looking_at_thresholds_writes_nothing(kind: str, model: InpFormer, exports: dict[str, Path]) -> None:
    files = sorted(exports[kind].parent.iterdir())
    before = [(path.stat().st_mtime_ns, path.read_bytes()) for path in files]
    scales = metadata_of(model)
    assert edit.set_thresholds(exports[kind]) == Thresholds(scales.image.threshold, scales.pixel.threshold, True, [])
    assert read_metadata(exports[kind]) == scales
    assert [(path.stat().st_mtime_ns, path.read_bytes()) for path in files] == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_thresholds_of_an_export_are_finite(value: float, exports: dict[str, Path]) -> None:
    before = read_metadata(exports["openvino"])
    with pytest.raises(ValueError, match="The pixel threshold must be a finite raw score"):
        edit.set_thresholds(exports["openvino"], pixel=value)
    assert read_metadata(exports["openvino"]) == before


def test_without_thresholds_an_export_warns_and_gives_raw_scores(
    model: InpFormer, images: dict[str, Path], expected: dict[str, ImageBatch], tmp_path: Path
) -> None:
    state = model.post_processor.state_dict()
    kept = {name: value.clone() for name, value in state.items()}
    try:
        for value in state.values():
            value.fill_(float("nan"))
        with pytest.warns(UserWarning, match="The model has no thresholds: the export gives raw scores"):
            path = model.to_openvino(tmp_path)
    finally:
        model.post_processor.load_state_dict(kept)

    metadata = read_metadata(path)
    assert not metadata.normalized
    assert np.isnan([metadata.image.threshold, metadata.pixel.threshold]).all()
    exported = ExportedModel(path)
    for name, theirs in expected.items():
        ours = predict_exported(exported, images[name])
        assert ours.score == pytest.approx(theirs.raw_score.item(), abs=1e-4)
        np.testing.assert_allclose(ours.anomaly_map, theirs.raw_map[0].numpy(), atol=1e-4, rtol=0)
        assert not ours.label
        assert not ours.mask.any()
    with pytest.raises(ValueError, match="A model exported without thresholds is exported anew"):
        edit.set_thresholds(path, image=0.5)


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_without_a_post_processor_an_export_gives_scores_and_maps(
    kind: str, build: Make, images: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = build(post_processor=False)
    with caplog.at_level("INFO"):
        path = getattr(model, f"to_{kind}")(tmp_path)
    assert "raw: the model has no post-processor" in caplog.text
    exported = ExportedModel(path)
    assert not exported.metadata.normalized
    assert np.isnan([exported.metadata.image.threshold, exported.metadata.pixel.threshold]).all()
    pixels = read_image(images["large.png"], as_tensor=True)[None]
    with torch.no_grad():
        expected = model.eval()(pixels)
    results = exported(pixels.numpy())
    np.testing.assert_allclose(results.pred_score, expected.pred_score.numpy(), atol=TOLERANCE[kind], rtol=0)
    np.testing.assert_allclose(results.anomaly_map, expected.anomaly_map.numpy(), atol=TOLERANCE[kind], rtol=0)
    assert results.pred_label is None
    assert results.pred_mask is None


@pytest.mark.parametrize("kind", ["onnx", "openvino", *CompressionType])
def test_another_post_processor_is_refused_before_anything_is_written(
    kind: str, build: Make, quiet_engine: Make, tmp_path: Path
) -> None:
    model = build(post_processor=PostProcessor())
    compressed = kind not in {"onnx", "openvino"}
    with pytest.raises(ValueError, match="an InpPostProcessor, got PostProcessor: build or load the model with post_"):
        quiet_engine(tmp_path / "engine").export(
            model,
            "openvino" if compressed else kind,
            export_root=tmp_path / "export",
            compression_type=kind if compressed else None,
        )
    assert files_below(tmp_path) == []


def test_a_comparison_of_formats_refuses_another_post_processor(build: Make, tmp_path: Path) -> None:
    model = build(post_processor=PostProcessor())
    with pytest.raises(ValueError, match="need an InpPostProcessor"):
        list(export_all(model, tmp_path / "finished.ckpt", [], tmp_path / "export"))
    assert files_below(tmp_path) == []


def test_torch_exports_with_another_post_processor_as_anomalib_does(
    build: Make, images: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    post = PostProcessor()
    for name, value in {"_image_threshold": 0.3, "image_min": 0.1, "image_max": 0.9, "_pixel_threshold": 0.2}.items():
        getattr(post, name).fill_(value)
    post.pixel_min.fill_(0.0)
    post.pixel_max.fill_(2.0)
    model = build(post_processor=post)
    path = model.to_torch(tmp_path)
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    ours = TorchInferencer(path, device="cpu").predict(images["large.png"])
    with torch.no_grad():
        expected = model.eval()(read_image(images["large.png"], as_tensor=True)[None])
    assert ours.pred_score.item() == pytest.approx(expected.pred_score.item(), abs=TOLERANCE["torch"])
    np.testing.assert_allclose(ours.anomaly_map, expected.anomaly_map[0], atol=TOLERANCE["torch"], rtol=0)
    raw = model.model(model.pre_processor(read_image(images["large.png"], as_tensor=True)[None])).pred_score.item()
    line = min((raw - 0.3) / 0.8 + 0.5, 1)  # anomalib's normalisation
    assert ours.pred_score.item() == pytest.approx(line, abs=TOLERANCE["torch"])


def test_a_raw_export_has_the_labels_of_a_normalised_one(
    model: InpFormer,
    images: dict[str, Path],
    expected: dict[str, ImageBatch],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model.post_processor, "enable_normalization", False)
    path = model.to_openvino(tmp_path)
    assert read_metadata(path) == metadata_of(model)
    assert not read_metadata(path).normalized
    exported = ExportedModel(path)
    for name, theirs in expected.items():
        ours = predict_exported(exported, images[name])
        assert ours.score == pytest.approx(theirs.raw_score.item(), abs=1e-4)
        assert ours.label == theirs.pred_label.item()
    edit.set_thresholds(path, image=ours.score - 0.01)
    assert predict_exported(ExportedModel(path), images[name]).label


@pytest.mark.parametrize("performance", ["latency", "throughput"])
@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_a_stream_answers_in_order(exports, images, kind: str, performance: str) -> None:
    exported = ExportedModel(exports[kind], performance=performance, threads=2)
    batches = [read_image(path, as_tensor=True).numpy()[None] for path in images.values()] * 3
    expected = [exported(batch).pred_score.item() for batch in batches]
    assert len({round(score, 4) for score in expected}) == len(images)
    results = exported.stream(iter(batches))
    assert [result.pred_score.item() for result in results] == pytest.approx(expected, abs=1e-5)
    assert list(exported.stream([])) == []


def test_a_stream_is_read_as_it_goes(exports, images) -> None:
    """An endless stream gives results: nothing waits for its end."""
    image = read_image(images["same.png"], as_tensor=True).numpy()[None]
    exported = ExportedModel(exports["openvino"], performance="throughput")
    results = exported.stream(itertools.repeat(image))
    scores = [next(results).pred_score.item() for _ in range(5)]
    assert scores == pytest.approx([scores[0]] * 5, abs=1e-6)
    del results  # with images at work; the next stream finds the model free
    assert [result.pred_score.item() for result in exported.stream([image] * 5)] == pytest.approx(scores, abs=1e-6)


def test_a_batch_that_fails_does_not_spoil_the_next_stream(exports, images) -> None:
    image = read_image(images["same.png"], as_tensor=True).numpy()[None]
    exported = ExportedModel(exports["openvino"], performance="throughput", streams=2)
    (expected,) = (result.pred_score.item() for result in exported.stream([image]))
    for _ in range(5):
        with pytest.raises(Exception, match="shape"):
            list(exported.stream([image, image, image[:, :1]]))
        assert [result.pred_score.item() for result in exported.stream([image] * 4)] == pytest.approx([expected] * 4)


def test_several_streams_are_read_at_a_time(exports, images) -> None:
    batches = [read_image(path, as_tensor=True).numpy()[None] for path in images.values()] * 2
    exported = ExportedModel(exports["openvino"], performance="throughput", streams=2)
    expected = [exported(batch).pred_score.item() for batch in batches]
    both = zip(exported.stream(batches), exported.stream(batches[::-1]), strict=True)
    for index, (first, second) in enumerate(both):
        assert first.pred_score.item() == pytest.approx(expected[index], abs=1e-6)
        assert second.pred_score.item() == pytest.approx(expected[-1 - index], abs=1e-6)
    with ThreadPoolExecutor(3) as threads:
        streams = threads.map(lambda _: [result.pred_score.item() for result in exported.stream(batches)], range(3))
        assert all(scores == pytest.approx(expected, abs=1e-6) for scores in streams)


def test_settings_reach_openvino_and_performance_is_one_of_two(exports, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[openvino.CompiledModel] = []

    def watch(name: str) -> None:
        make = getattr(openvino.Core, name)
        monkeypatch.setattr(openvino.Core, name, lambda *arguments: compiled.append(make(*arguments)) or compiled[-1])

    for name in ("compile_model", "import_model"):  # what has been compiled before is read again
        watch(name)
    for performance, threads in (("throughput", 2), ("latency", 1)):
        ExportedModel(exports["openvino"], performance=performance, threads=threads, streams=1)
        names = ("PERFORMANCE_HINT", "INFERENCE_NUM_THREADS", "NUM_STREAMS", "INFERENCE_PRECISION_HINT")
        found = [compiled[-1].get_property(name) for name in names]
        assert found[:-1] == [performance.upper(), threads, 1]
        assert found[-1] == openvino.Type.f32  # unless told otherwise
    with pytest.raises(ValueError, match="latency or throughput, got 'fast'"):
        ExportedModel(exports["openvino"], performance="fast")


def test_what_a_device_compiles_is_kept_in_the_cache_folder(
    exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "caches"))
    monkeypatch.chdir(tmp_path)
    ExportedModel(exports["openvino"])
    kept = files_below(tmp_path / "caches/openvino")
    assert kept
    ExportedModel(exports["openvino"])
    assert files_below(tmp_path / "caches/openvino") == kept
    assert [path.name for path in tmp_path.iterdir()] == ["caches"]
