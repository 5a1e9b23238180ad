# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The scale against numbers worked by hand, NumPy against torch, and every way of moving a threshold."""

import math
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_inp import InpFormer
from anomalib_inp.checkpoints import edit as checkpoint_edit
from anomalib_inp.runtime import edit as export_edit
from anomalib_inp.runtime.metadata import Metadata, read_metadata
from anomalib_inp.runtime.model import ExportedModel
from anomalib_inp.thresholds.scale import NO_SCALE, Scale, margin_of, move

WRITTEN = Path(__file__).parents[2] / "golden" / "written_before"
# The span is 0.2, half of the distance to the lower end.
BY_HAND = Scale(threshold=0.5, low=0.1, high=0.7)
# Margins whose root is a plain number: 3/4 gives (1 + 3/5) / 2, 4/3 gives (1 + 4/5) / 2.
RAW = [0.5 - 0.2 * 4 / 3, 0.5 - 0.2 * 3 / 4, 0.5, 0.5 + 0.2 * 3 / 4, 0.5 + 0.2 * 4 / 3]
NORMALISED = [0.1, 0.2, 0.5, 0.8, 0.9]


def of(kind: str, values: Any) -> Any:
    """Values as a list that NumPy reads, an array or a tensor."""
    return {"list": list, "numpy": np.array, "torch": torch.tensor}[kind](values)


def scales(seed: int = 0, count: int = 50) -> list[Scale]:
    """Random scales: some normal, some with the threshold outside of the range, one without a range."""
    thresholds, lows, heights = np.random.default_rng(seed).uniform(0.01, 1, (3, count))
    made = [Scale(*map(float, values)) for values in zip(thresholds, lows, lows + heights, strict=True)]
    return [*made, Scale(0.3, 0.3, 0.3), Scale(0.3, math.nan, math.nan)]


# --- one scale --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["list", "numpy", "torch"])
@pytest.mark.parametrize("tensors", [False, True], ids=["numbers", "tensors"])
def test_by_hand(kind: str, tensors: bool) -> None:
    scale = Scale(*map(torch.tensor, BY_HAND)) if tensors else BY_HAND
    normalised, exceeds = scale.normalise_and_label(of(kind, RAW), limit=0.75)
    assert isinstance(normalised, torch.Tensor if kind == "torch" else np.ndarray)
    np.testing.assert_allclose(normalised, NORMALISED, atol=1e-7)
    assert exceeds.tolist() == [False, False, False, True, True]
    np.testing.assert_allclose(scale.normalise(of(kind, RAW)), NORMALISED, atol=1e-7)
    np.testing.assert_allclose(scale.to_raw(of(kind, NORMALISED)), RAW, atol=1e-7)


@pytest.mark.parametrize(
    ("scale", "span"),
    [
        (Scale(0.5, 0.1, 0.7), 0.2),
        (Scale(0.5, 0.4, 1.5), 0.5),
        (Scale(0.5, 0.6, 0.8), 0.15),  # the threshold lies below all values
        (Scale(0.5, 0.5, 0.5), 1.0),
        (Scale(0.5, 0.7, 0.3), 1.0),  # no range at all
        (Scale(0.5, math.nan, math.nan), 1.0),
        (Scale(0.5, 0.1, math.nan), 1.0),
        (Scale(math.nan, 0.1, 0.7), 1.0),
    ],
)
def test_span_by_hand(scale: Scale, span: float) -> None:
    assert scale.span == pytest.approx(span)
    assert Scale(*map(np.float64, scale)).span == pytest.approx(span)
    assert Scale(*map(torch.tensor, scale)).span.item() == pytest.approx(span)


def test_the_scale_of_a_span_has_this_span() -> None:
    for scale in scales()[:-2]:
        again = Scale.of_span(scale.threshold, float(scale.span))
        assert again.span == pytest.approx(scale.span, rel=1e-9)
        np.testing.assert_allclose(again.normalise(RAW), scale.normalise(RAW), rtol=1e-9)
    assert Scale.of_span(math.nan, 1.0).span == 1
    assert Scale.of_span(0.5, 0.2) == pytest.approx((0.5, 0.1, 0.9))


def test_each_image_may_have_a_scale() -> None:
    """Arrays and tensors are compared element by element."""
    first, second = Scale(0.5, 0.1, 0.7), Scale(0.25, 0.05, 0.3)
    both = [[one, other] for one, other in zip(first, second, strict=True)]
    expected = [[0.5, 0.9], [0.5, 0.9]]
    raw = [[0.5, 0.5 + 0.2 * 4 / 3], [0.25, 0.25 + 0.1 * 4 / 3]]
    np.testing.assert_allclose(Scale(*(np.array(values)[:, None] for values in both)).normalise(raw), expected)
    tensors = Scale(*(torch.tensor(values)[:, None] for values in both))
    torch.testing.assert_close(tensors.normalise(torch.tensor(raw)), torch.tensor(expected))


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_without_a_threshold_values_pass_and_nothing_is_exceeded(kind: str) -> None:
    scale, raw = Scale(math.nan, math.nan, math.nan), of(kind, [-1.0, 0.0, 1e6])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for limit in (0.0, 0.5, 1.0):
            normalised, exceeds = scale.normalise_and_label(raw, limit)
            assert normalised.tolist() == scale.to_raw(raw).tolist() == raw.tolist()
            assert not exceeds.any()


# --- properties -------------------------------------------------------------------------------------------------------


def test_numpy_and_torch_agree() -> None:
    raw = np.random.default_rng(1).uniform(-1, 3, 200)
    for scale in scales():
        tensors = Scale(*(torch.tensor(value, dtype=torch.float64) for value in scale))
        for limit in (0.3, 0.5, 0.9):
            arrays, both = scale.normalise_and_label(raw, limit), tensors.normalise_and_label(torch.tensor(raw), limit)
            np.testing.assert_allclose(both[0].numpy(), arrays[0], rtol=1e-12)
            np.testing.assert_array_equal(both[1].numpy(), arrays[1])
        np.testing.assert_allclose(tensors.to_raw(both[0]).numpy(), scale.to_raw(arrays[0]), rtol=1e-12)


def test_numbers_are_rounded_once_for_tensors() -> None:
    """A category's scale is of numbers: its span is what NumPy makes of it, in the precision of the scores."""
    raw = torch.rand(200, generator=torch.Generator().manual_seed(0))
    for scale in scales():
        margin = (raw - np.float32(scale.threshold)) / np.float32(scale.span)
        assert torch.equal(scale.normalise(raw), (1 + margin / (1 + margin**2).sqrt()) / 2)


def test_normalising_is_undone_and_keeps_order() -> None:
    for scale in scales():
        raw = scale.threshold + scale.span * np.linspace(-100, 100, 401)
        normalised = scale.normalise(raw)
        np.testing.assert_allclose(scale.to_raw(normalised), raw, atol=1e-9 * scale.span, rtol=1e-7)
        assert (np.diff(normalised) > 0).all()
        assert 0 < normalised[0] < normalised[-1] < 1
        assert scale.normalise(scale.threshold) == 0.5


def test_the_validation_values_lie_within_two_margins() -> None:
    for scale in scales()[:-2]:
        ends = scale.normalise([scale.low, scale.high])
        furthest = (1 + 2 / math.sqrt(5)) / 2
        assert np.abs(ends - 0.5).max() == pytest.approx(furthest - 0.5)


def test_what_exceeds_is_what_is_normalised_above_the_limit() -> None:
    raw = np.random.default_rng(2).uniform(-1, 3, 500)
    for scale in scales():
        for limit in (0.0, 0.2, 0.5, 0.77, 1.0):
            normalised, exceeds = scale.normalise_and_label(raw, limit)
            np.testing.assert_array_equal(exceeds, normalised > limit)


def test_the_ends_have_finite_raw_values() -> None:
    """A score of 32 bits may round to 0 or 1."""
    for ends in (np.array([0.0, 1.0]), torch.tensor([0.0, 1.0]), np.array([0, 1], dtype=np.float32)):
        low, high = BY_HAND.to_raw(ends).tolist()
        assert -1000 < low < BY_HAND.low
        assert BY_HAND.high < high < 1000


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_margins_of_arrays(kind: str) -> None:
    np.testing.assert_allclose(margin_of(of(kind, NORMALISED)), [-4 / 3, -3 / 4, 0, 3 / 4, 4 / 3], atol=1e-6)


# --- moved by hand ----------------------------------------------------------------------------------------------------


def test_the_ends_move_along() -> None:
    (image, pixel) = move((BY_HAND, Scale(0.3, 0.2, 0.6)), image=0.75, pixel=None)
    assert image == pytest.approx((0.75, 0.35, 0.95))
    assert pixel == (0.3, 0.2, 0.6)
    for scale in scales():
        moved, _ = move((scale, BY_HAND), 0.4321, None)
        assert moved.threshold == 0.4321
        assert moved.span == pytest.approx(scale.span, rel=1e-9)
        shifted = scale.normalise(np.add(RAW, scale.threshold))
        np.testing.assert_allclose(moved.normalise(np.add(RAW, 0.4321)), shifted, rtol=1e-9)


def test_a_missing_threshold_takes_the_other_one() -> None:
    missing = Scale(math.nan, math.nan, math.nan)
    image, pixel = move((missing, missing), 0.3, None)
    assert (image.threshold, pixel.threshold) == (0.3, 0.3)
    image, pixel = move((missing, BY_HAND), None, 0.3)
    assert (image.threshold, pixel.threshold) == (0.3, 0.3)
    assert pixel.span == pytest.approx(BY_HAND.span)
    image, pixel = move((missing, BY_HAND), 0.3, None)
    assert (image.threshold, pixel) == (0.3, BY_HAND)
    assert move((BY_HAND, BY_HAND), None, None) == (BY_HAND, BY_HAND)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_threshold_is_finite(value: float) -> None:
    with pytest.raises(ValueError, match=f"The image threshold must be a finite raw score, got {value}"):
        move((BY_HAND, BY_HAND), value, None)
    with pytest.raises(ValueError, match=f"The pixel threshold must be a finite raw score, got {value}"):
        move((BY_HAND, BY_HAND), 0.5, value)


@pytest.mark.parametrize("category", [None, "grass"])
def test_wherever_thresholds_are_moved_a_raw_score_gives_the_same(category: str | None, tmp_path: Path) -> None:
    """In the post-processor, in a checkpoint and in exports; a checkpoint and exports that earlier code has written."""
    folder = Path(shutil.copytree(WRITTEN, tmp_path / "written"))
    model = InpFormer.load_from_checkpoint(folder / "finished.ckpt")
    assert model.post_processor.scale("image").span < 0.9  # or an unknown span would not be noticed
    raw = np.linspace(0, 1, 11, dtype=np.float32)
    given = {"image": 0.4321, "pixel": 0.1234}
    before = {kind: model.post_processor.scale(kind, category).normalise(torch.tensor(raw)) for kind in given}

    model.post_processor.set_thresholds(**given, category=category)
    checkpoint_edit.set_thresholds(folder / "finished.ckpt", **given, category=category)
    loaded = InpFormer.load_from_checkpoint(folder / "finished.ckpt")
    exports = []
    for name in ("model.xml", "model.onnx"):
        shown = export_edit.set_thresholds(folder / name, **given, category=category)
        assert (shown.image, shown.pixel) == (0.4321, 0.1234)
        metadata = read_metadata(folder / name)
        exports.append(metadata if category is None else metadata.of_category(category))

    for kind in ("image", "pixel"):
        moved = model.post_processor.scale(kind, category)
        expected = moved.normalise(torch.tensor(raw)).numpy()
        assert float(moved.normalise(torch.tensor(given[kind]))) == 0.5
        assert np.abs(expected - before[kind].numpy()).max() > 0.05
        for other in (loaded.post_processor.scale(kind, category), *(getattr(export, kind) for export in exports)):
            np.testing.assert_allclose(np.asarray(other.normalise(torch.tensor(raw))), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["model.xml", "model.onnx"])
def test_a_moved_export_scores_as_the_moved_model(name: str, tmp_path: Path) -> None:
    """What runs, not only what the metadata say."""
    folder = Path(shutil.copytree(WRITTEN, tmp_path / "written"))
    pixels = (
        np.asarray(Image.open(folder / "image.png").convert("RGB"), dtype=np.float32).transpose(2, 0, 1)[None] / 255
    )
    before = ExportedModel(folder / name)
    score = before(pixels).pred_score[0]
    raw = float(before.metadata.to_raw(score))
    del before  # its file is about to be replaced
    model = InpFormer.load_from_checkpoint(folder / "finished.ckpt")
    model.post_processor.set_thresholds(image=raw + 0.01)
    export_edit.set_thresholds(folder / name, image=raw + 0.01)
    moved = ExportedModel(folder / name)(pixels)
    assert moved.pred_score[0] == pytest.approx(
        model.post_processor.scale("image").normalise(torch.tensor(raw)).item(), abs=1e-4
    )
    assert moved.pred_score[0] < min(score, 0.5)


# --- what exports say -------------------------------------------------------------------------------------------------


def test_metadata_survive_being_written() -> None:
    box = read_metadata(WRITTEN / "model.onnx").crop_box
    metadata = Metadata(True, BY_HAND, Scale(0.3, 0.2, 0.6), box, {"bolt": (BY_HAND, Scale(0.1, 0, 0.2))}, 0.4, 0.6)
    assert '"image": [0.5, 0.1, 0.7]' in metadata.to_json()
    assert Metadata.from_json(metadata.to_json()) == metadata


def test_metadata_of_earlier_exports_are_read() -> None:
    written = (
        '{"normalized": true, "image_threshold": 0.5, "image_span": 0.2, "pixel_threshold": 0.25, "pixel_span": 0.1, '
        '"crop_box": [0.0, 0.0, 1.0, 1.0], "categories": {"bolt": [0.4, 0.3, 0.35, 0.15]}, "image_limit": 0.5, '
        '"pixel_limit": 0.4}'
    )
    metadata = Metadata.from_json(written)
    bolt = metadata.of_category("bolt")
    found = [(scale.threshold, scale.span) for scale in (metadata.image, metadata.pixel, bolt.image, bolt.pixel)]
    assert found == [
        (threshold, pytest.approx(span)) for threshold, span in ((0.5, 0.2), (0.25, 0.1), (0.4, 0.3), (0.35, 0.15))
    ]
    assert (metadata.normalized, metadata.image_limit, metadata.pixel_limit) == (True, 0.5, 0.4)
    np.testing.assert_allclose(metadata.to_raw(NORMALISED), RAW)


def test_scales_need_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from anomalib_inp.thresholds.scale import Scale\n"
        "print(float(Scale(0.5, 0.1, 0.7).normalise(0.65)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) == pytest.approx(0.8)


def test_a_threshold_that_is_too_far_is_refused() -> None:
    """Raw scores could not be had back from normalised ones in 32 bits; without one, size alone is bounded."""
    scale = Scale(0.5, 0.4, 0.6)  # a span of 0.05
    (moved, _) = move((scale, scale), 5.4, None)
    scores = np.float32([0.2, 0.3, 0.7])
    assert moved.to_raw(np.float32(moved.normalise(scores))) == pytest.approx(scores, abs=0.2 * scale.span)
    for value in (5.6, -4.6, 100.0, 1e38, 1e300):
        with pytest.raises(ValueError, match=r"too far from the present one, 0\.5"):
            move((scale, scale), value, None)
    assert move((NO_SCALE, NO_SCALE), 1e5, None)[0].threshold == 1e5
    with pytest.raises(ValueError, match="too far"):
        move((NO_SCALE, NO_SCALE), 1e39, None)
