# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Exports of models that see tiles give what the models give, of images of any size."""

from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.data import MVTecAD
from PIL import Image

from anomalib_inp import InpFormer, InpFormerPlusPlus, SelfSimilarity
from anomalib_inp.results.inspection import Inspection
from anomalib_inp.runtime import edit
from anomalib_inp.runtime.metadata import read_metadata
from anomalib_inp.runtime.model import ExportedModel

TILES = {"size": 64, "overlap": 16}
SIZES = [(64, 64), (100, 131), (210, 90)]
FORMATS = {"openvino": "to_openvino", "onnx": "to_onnx"}


@pytest.fixture(scope="module", params=[InpFormer, InpFormerPlusPlus, SelfSimilarity])
def model(request, tiny_model):
    torch.manual_seed(0)
    made = tiny_model(request.param, spread=6, tiles=TILES, image_size=None, evaluator=False).eval()
    with torch.no_grad():
        found = made.model(made.pre_processor.transform(torch.rand(1, 3, 100, 131)))
    made.post_processor.set_thresholds(float(found.pred_score), float(found.anomaly_map.quantile(0.9)))
    return made


@pytest.fixture(scope="module", params=FORMATS)
def exported(request, model, tmp_path_factory) -> Path:
    return getattr(model, FORMATS[request.param])(tmp_path_factory.mktemp("export"))


def image(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(size[0]).integers(0, 256, (*size, 3), dtype=np.uint8)


def check(found, expected, atol: float = 1e-4) -> None:
    for name in ("pred_score", "anomaly_map"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name).numpy(), rtol=0, atol=atol)


@torch.no_grad()
def test_images_of_any_size(model, exported: Path) -> None:
    runs = ExportedModel(exported)
    expected = [model(torch.from_numpy(image(size))) for size in SIZES]
    for size, want in zip(SIZES, expected, strict=True):
        found = runs(image(size))
        check(found, want)
        assert found.pred_label.dtype == found.pred_mask.dtype == bool
        if abs(want.pred_score - 0.5) > 1e-3:
            np.testing.assert_array_equal(found.pred_label, want.pred_label.numpy())
        assert (found.pred_mask != want.pred_mask.numpy()).mean() < 1e-3
    for found, want in zip(runs.stream(map(image, SIZES)), expected, strict=True):  # several at a time, in order
        check(found, want)
    both = np.stack([image(SIZES[1]), image(SIZES[1])[::-1]])
    check(runs(both), model(torch.from_numpy(both.copy())))
    with pytest.raises(ValueError, match="An image of 60 pixels is smaller than a tile of 64"):
        runs(image((80, 60)))


@torch.no_grad()
def test_images_of_one_size_in_one_graph(model, tmp_path: Path) -> None:
    for make in FORMATS.values():
        runs = ExportedModel(getattr(model, make)(tmp_path / make, input_size=SIZES[1]))
        assert runs.metadata.tiling is None
        check(runs(image(SIZES[1])), model(torch.from_numpy(image(SIZES[1]))))


@torch.no_grad()
@pytest.mark.parametrize("make", FORMATS.values())
def test_a_second_scale_and_a_score_by_area(tiny_model, tmp_path: Path, make: str) -> None:
    tiles = {**TILES, "second_scale": True, "scored_area": 100}
    model = tiny_model(InpFormer, spread=6, tiles=tiles, image_size=None, evaluator=False).eval()
    model.post_processor.set_thresholds(0.5, 0.5)
    runs = ExportedModel(getattr(model, make)(tmp_path))
    for size in SIZES:
        check(runs(image(size)), model(torch.from_numpy(image(size))))
    one = ExportedModel(getattr(model, make)(tmp_path / "one", input_size=SIZES[1]))
    check(one(image(SIZES[1])), model(torch.from_numpy(image(SIZES[1]))))


@torch.no_grad()
def test_images_that_are_resized_before_they_are_cut(tiny_model, tmp_path: Path) -> None:
    model = tiny_model(InpFormer, spread=6, tiles=TILES, image_size=(90, 130), evaluator=False).eval()
    model.post_processor.set_thresholds(0.5, 0.5)
    for make in FORMATS.values():
        runs = ExportedModel(getattr(model, make)(tmp_path / make))
        for size in SIZES:
            check(runs(image(size)), model(torch.from_numpy(image(size))))


@torch.no_grad()
def test_thresholds_and_masks_are_changed_in_place(model, exported: Path, tmp_path: Path) -> None:
    path = tmp_path / exported.name
    for suffix in (".xml", ".bin", ".onnx"):
        if (file := exported.with_suffix(suffix)).exists():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    mask = tmp_path / "mask.png"
    Image.fromarray(np.repeat([[255, 0]], 2, axis=0).astype(np.uint8)).save(mask)
    threshold = read_metadata(path).image.threshold
    edit.set_thresholds(path, image=threshold * 1.01)
    edit.set_inspection(path, mask, smallest_area=3)
    runs = ExportedModel(path)
    assert runs.metadata.image.threshold == pytest.approx(threshold * 1.01)
    before = model.inspection, [float(scale.threshold) for scale in map(model.post_processor.scale, ("image", "pixel"))]
    try:
        model.inspect(Inspection().changed(mask))
        model.post_processor.set_thresholds(image=threshold * 1.01)
        for size in SIZES[1:]:
            found = runs(image(size))
            check(found, model(torch.from_numpy(image(size))))
            right = found.anomaly_map[0, 0, :, found.anomaly_map.shape[-1] // 2 + 1 :]
            assert (right == found.anomaly_map.min()).all()
    finally:
        model.inspect(before[0])
        model.post_processor.set_thresholds(*before[1])


def test_int8(tiny_model, write_small_sample, tmp_path: Path) -> None:
    root = write_small_sample(tmp_path / "data", categories=("brick",))
    data = MVTecAD(root, "brick", num_workers=0)
    model = tiny_model(InpFormer, spread=6, tiles=TILES, image_size=None, evaluator=False).eval()
    model.post_processor.set_thresholds(0.5, 0.5)
    runs = ExportedModel(model.to_openvino(tmp_path, compression_type="int8_ptq", datamodule=data))
    pixels = image(SIZES[1])
    with torch.no_grad():
        check(runs(pixels), model(torch.from_numpy(pixels)), atol=0.1)
    with pytest.raises(ValueError, match="scores no image that could be watched"):
        model.to_openvino(tmp_path, compression_type="int8_acq", datamodule=data)
