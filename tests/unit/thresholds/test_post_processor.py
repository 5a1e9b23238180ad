# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch, InferenceBatch, MVTecAD
from anomalib.engine import Engine
from anomalib.metrics import F1AdaptiveThreshold
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image
from torch import Tensor

from anomalib_inp import InpFormer
from anomalib_inp.frame import WHOLE_IMAGE
from anomalib_inp.runtime.metadata import Metadata
from anomalib_inp.thresholds import post_processor
from anomalib_inp.thresholds.choose import quantile
from anomalib_inp.thresholds.post_processor import InpPostProcessor
from anomalib_inp.thresholds.scale import Scale, margin_of

# A threshold, a range and so a span that differ between images and pixels.
IMAGE = {"threshold": 0.4, "min": 0.1, "max": 0.6}
PIXEL = {"threshold": 0.25, "min": 0.2, "max": 0.65}
IMAGE_SPAN, PIXEL_SPAN = 0.15, 0.2


def make_batch(scores: Any, maps: Any = None, labels: Any = None, masks: Any = None) -> ImageBatch:
    scores = torch.as_tensor(scores, dtype=torch.float32)
    if maps is None:
        maps = scores[:, None, None].expand(-1, 8, 8)
    labels = None if labels is None else torch.as_tensor(labels)
    return ImageBatch(
        image=torch.zeros(len(scores), 3, 8, 8), pred_score=scores, anomaly_map=maps, gt_label=labels, gt_mask=masks
    )


def validate(post: InpPostProcessor, *batches: ImageBatch) -> None:
    """What Lightning calls during a validation in one process."""
    trainer = SimpleNamespace(
        strategy=SimpleNamespace(reduce=lambda value, reduce_op: value),
        state=SimpleNamespace(fn=TrainerFn.VALIDATING),
        global_step=0,
        datamodule=None,
    )
    module = SimpleNamespace(device=torch.device("cpu"))
    post.on_validation_start(trainer, module)
    post.on_validation_epoch_start(trainer, module)
    for index, batch in enumerate(batches):
        post.on_validation_batch_end(trainer, module, batch, batch, index)
    post.on_validation_epoch_end(trainer, module)
    post.on_validation_end(trainer, module)


def with_ranges(**kwargs: Any) -> InpPostProcessor:
    post = InpPostProcessor(**kwargs)
    post.set_thresholds(image=IMAGE["threshold"], pixel=PIXEL["threshold"])
    for kind, values in (("image", IMAGE), ("pixel", PIXEL)):
        getattr(post, f"{kind}_min").fill_(values["min"])
        getattr(post, f"{kind}_max").fill_(values["max"])
    return post


def process(post: InpPostProcessor, scores: Any) -> InferenceBatch:
    """Process scores ``(B,)`` that are the only pixels of their maps as well."""
    scores = torch.as_tensor(scores, dtype=torch.float32)
    return post(InferenceBatch(pred_score=scores, anomaly_map=scores[:, None, None, None]))


def anomalous_batches(seed: int = 0) -> list[ImageBatch]:
    """Two batches with overlapping normal and anomalous scores and pixels."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(2):
        labels = torch.tensor([0, 1, 0, 1, 1, 0])
        masks = (torch.rand(6, 8, 8, generator=generator) < 0.3) & labels[:, None, None].bool()
        scores = torch.rand(6, generator=generator) + 0.5 * labels
        maps = torch.rand(6, 8, 8, generator=generator) + 0.7 * masks
        batches.append(make_batch(scores, maps, labels, masks))
    return batches


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(post_processor, "rank_zero_info", lines.append)
    return lines


# --- thresholds -------------------------------------------------------------------------------------------------------


def test_without_anomalous_images_the_thresholds_are_quantiles_of_the_normal_ones(said: list[str]) -> None:
    post = InpPostProcessor(normal_image_quantile=0.85, normal_pixel_quantile=0.75)
    scores = torch.tensor([0.3, 1.0, 0.7, 0.1, 0.5, 0.9, 0.2, 0.8, 0.4, 0.6])
    maps = 10 * scores[:, None, None].expand(-1, 8, 8)
    # One validation set without labels and one with the label of normal images give the same.
    validate(post, make_batch(scores[:6], maps[:6]), make_batch(scores[6:], maps[6:], torch.zeros(4, dtype=torch.long)))

    # 85 % of ten scores are 8.5, so nine of them must not exceed the threshold; 75 % of the pixels are those of 7.5.
    # The image threshold lies above the score that it comes from by a thousandth of the span, (0.9 - 0.1) / 2.
    assert post.image_threshold == torch.tensor(0.9004)
    assert post.pixel_threshold == torch.tensor(8.0)
    # The lowest validation score has a margin of -2.
    assert process(post, [0.1]).pred_score.item() == pytest.approx((1 - 2 / math.sqrt(5)) / 2, abs=1e-6)
    assert len(said) == 1
    assert "image 0.9004, pixel 8.0000; no anomalous validation images: quantile 0.85" in said[0]


def test_default_quantiles_of_normal_images() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = (torch.randperm(200, generator=generator) + 1) / 200
    # Blocks of 4 x 4 equal pixels: every fourth pixel holds what all hold.
    values = (torch.randperm(200 * 100, generator=generator) + 1) / 20000
    maps = values.view(200, 10, 10).repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    post = InpPostProcessor()
    validate(post, make_batch(scores, maps))
    assert post.image_threshold.item() == pytest.approx(0.99 + 1e-3 * (0.99 - 0.005) / 2)
    assert post.pixel_threshold.item() == pytest.approx(0.9995)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.77, 0.99, 1.0])
@pytest.mark.parametrize("count", [1, 7, 100])
def test_quantile_is_the_inverse_of_the_empirical_distribution(share: float, count: int) -> None:
    values = torch.rand(count, 3, generator=torch.Generator().manual_seed(count))
    expected = np.quantile(values.numpy(), share, method="inverted_cdf")
    assert quantile(values, share).item() == expected


@pytest.mark.parametrize("seed", [0, 1])
def test_with_anomalous_images_the_thresholds_are_anomalibs(seed: int, said: list[str]) -> None:
    post, batches = InpPostProcessor(), anomalous_batches(seed)
    validate(post, *batches)

    for name, fields in (("image", ["pred_score", "gt_label"]), ("pixel", ["anomaly_map", "gt_mask"])):
        metric = F1AdaptiveThreshold(fields=fields)
        for batch in batches:
            metric.update(batch)
        scale = post.scale(name)
        values = torch.cat([getattr(batch, fields[0]).flatten() for batch in batches])
        best = metric.compute()
        if name == "image":  # between the score that it comes from, which is anomalous, and the next lower one
            assert values[values < best].max() < scale.threshold < best
            assert best - scale.threshold < 0.0011 * scale.span
        else:
            assert scale.threshold == best
        # Normal and anomalous values lie within margins of -2 and 2, and one of them is at the end.
        assert ((values - scale.threshold) / scale.span).abs().max().item() == pytest.approx(2, abs=1e-5)
    assert len(said) == 1
    assert "best F1 over 6 anomalous and the normal validation images" in said[0]


def test_every_validation_starts_from_nothing() -> None:
    again, once = InpPostProcessor(), InpPostProcessor()
    validate(again, *anomalous_batches())
    validate(again, make_batch([0.9, 0.3]))
    validate(again, make_batch([0.1, 0.2]))
    validate(once, make_batch([0.1, 0.2]))
    for name, value in once.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, msg=name)


def test_without_masks_the_pixel_threshold_is_that_of_the_images() -> None:
    post = InpPostProcessor()
    scores, labels = torch.tensor([0.1, 0.2, 0.7, 0.9]), torch.tensor([0, 0, 1, 1])
    validate(post, make_batch(scores, labels=labels))
    # Below 0.7 by a thousandth of the span, (0.7 - 0.1) / 2.
    assert post._pixel_threshold == post.image_threshold == torch.tensor(0.6997)
    # So it stays in every later epoch of a training.
    validate(post, make_batch(2 * scores, labels=labels))
    assert post._pixel_threshold == post.image_threshold == torch.tensor(1.3994)


def test_no_verdict_hangs_on_how_an_export_rounds() -> None:
    """The score that a threshold comes from lies on its side of it, however closely others follow."""
    rounding = 2e-6  # of exports in 32 bits (docs/export.md)
    normal, both = InpPostProcessor(normal_image_quantile=0.75), InpPostProcessor()
    validate(normal, make_batch([0.1, 0.2, 0.3, 0.30002]))
    validate(both, make_batch([0.1, 0.29998, 0.3, 0.4], labels=torch.tensor([0, 0, 1, 1])))
    assert process(normal, [0.3 + rounding, 0.30002 - rounding]).pred_label.tolist() == [False, True]
    assert process(both, [0.29998 + rounding, 0.3 - rounding]).pred_label.tolist() == [False, True]


@pytest.mark.parametrize("labels", [None, torch.tensor([0, 0, 1])])
def test_images_that_score_alike_leave_others_apart(labels: torch.Tensor | None) -> None:
    post = InpPostProcessor()
    validate(post, make_batch([0.2, 0.2 + 1e-6, 0.2 + 2e-6], labels=labels))
    raw = torch.tensor([0.2, 0.3, 1.0, 5.0, 10.0])
    scores = process(post, raw.tolist()).pred_score
    assert (scores.diff() > 0).all()
    torch.testing.assert_close(post.scale("image").to_raw(scores.double()), raw.double(), atol=1e-6, rtol=0.1)


def test_thresholds_by_hand() -> None:
    post = InpPostProcessor()
    post.set_thresholds(image=0.3, pixel=0.5)
    post.set_thresholds(pixel=0.6)
    assert (post.image_threshold, post.pixel_threshold) == (torch.tensor(0.3), torch.tensor(0.6))
    result = process(post, [0.2, 0.4, 0.7])
    assert result.pred_label.tolist() == [False, True, True]
    assert result.pred_mask.flatten().tolist() == [False, False, True]


def test_an_image_threshold_by_hand_serves_pixels_too() -> None:
    """``pixel_threshold`` says so; masks and maps must agree with it."""
    post = InpPostProcessor()
    post.set_thresholds(image=0.3)
    assert post.pixel_threshold == torch.tensor(0.3)
    result = process(post, [0.2, 0.4])
    assert result.pred_mask.flatten().tolist() == [False, True]
    torch.testing.assert_close(result.anomaly_map.flatten(), result.pred_score)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("kind", ["image", "pixel"])
def test_thresholds_by_hand_are_finite(kind: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"The {kind} threshold must be a finite raw score"):
        InpPostProcessor().set_thresholds(**{kind: value})


@pytest.mark.parametrize(
    "name", ["normal_image_quantile", "normal_pixel_quantile", "image_sensitivity", "pixel_sensitivity"]
)
@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_fractions_are_checked(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name} must lie in \[0, 1\], got {value}"):
        InpPostProcessor(**{name: value})


# --- normalised scores ------------------------------------------------------------------------------------------------


def test_normalised_scores_by_hand() -> None:
    post = with_ranges()
    # Margins whose root is a plain number: 3/4 gives (1 + 3/5) / 2, -4/3 gives (1 - 4/5) / 2.
    margins, expected = torch.tensor([-4 / 3, 0, 3 / 4]), torch.tensor([0.1, 0.5, 0.8])
    score = process(post, IMAGE["threshold"] + IMAGE_SPAN * margins).pred_score
    pixels = process(post, PIXEL["threshold"] + PIXEL_SPAN * margins).anomaly_map.flatten()
    torch.testing.assert_close(score, expected)
    torch.testing.assert_close(pixels, expected)


def test_order_is_kept_far_beyond_the_validation_range() -> None:
    margins = torch.linspace(-30, 30, 241)
    assert margins.max() * IMAGE_SPAN > 10 * (IMAGE["max"] - IMAGE["min"]) / 2
    score = process(with_ranges(), IMAGE["threshold"] + IMAGE_SPAN * margins).pred_score
    assert (score.diff() > 0).all()
    assert score.min() > 0
    assert score.max() < 1


@pytest.mark.parametrize("kind", ["image", "pixel"])
def test_metadata_inverts_the_normalisation(kind: str) -> None:
    post = with_ranges()
    image, pixel = (Scale(*map(float, post.scale(name))) for name in ("image", "pixel"))
    assert (image.span, pixel.span) == pytest.approx((IMAGE_SPAN, PIXEL_SPAN))
    metadata = Metadata(True, image, pixel, WHOLE_IMAGE)
    scale = {"image": image, "pixel": pixel}[kind]
    threshold, span = scale.threshold, scale.span

    raw = threshold + span * np.concatenate([np.linspace(-1.2, 0, 13), np.linspace(0.25, 30, 120)])
    result = process(post, raw)
    normalised = {"image": result.pred_score, "pixel": result.anomaly_map.flatten()}[kind].numpy()
    np.testing.assert_allclose(metadata.to_raw(normalised, kind), raw, rtol=1e-4)
    np.testing.assert_allclose(metadata.to_normalized(raw, kind), normalised, atol=1e-6)


def test_an_unknown_span_is_one() -> None:
    post = InpPostProcessor()
    post.set_thresholds(image=0.25)
    assert (post.scale("image").threshold, post.scale("image").span) == (torch.tensor(0.25), torch.tensor(1.0))
    assert process(post, [1.0]).pred_score.item() == pytest.approx(0.8)


def test_equal_validation_scores_give_finite_results() -> None:
    post = InpPostProcessor()
    validate(post, make_batch([0.5, 0.5]))
    assert process(post, [0.4, 0.5, 0.6]).pred_score.isfinite().all()


# --- labels and masks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sensitivity", "expected"), [(0.0, 0), (0.15, 1), (0.5, 2), (0.95, 4), (1.0, 5)])
@pytest.mark.parametrize("kind", ["image", "pixel"])
def test_sensitivity_moves_labels(kind: str, sensitivity: float, expected: int) -> None:
    post = with_ranges(**{f"{kind}_sensitivity": sensitivity})
    threshold, span = {"image": (IMAGE["threshold"], IMAGE_SPAN), "pixel": (PIXEL["threshold"], PIXEL_SPAN)}[kind]
    # Normalised to 0.028, 0.1, 0.37, 0.8 and 0.9.
    result = process(post, threshold + span * torch.tensor([-2.85, -4 / 3, -0.27, 3 / 4, 4 / 3]))
    labels = {"image": result.pred_label, "pixel": result.pred_mask.flatten()}[kind]
    assert labels.tolist() == [False] * (5 - expected) + [True] * expected
    # The other kind keeps the usual threshold.
    assert process(post, [PIXEL["threshold"] + 1e-4]).pred_mask.all() == (kind == "image" or sensitivity >= 0.5)


@pytest.mark.parametrize("anomalous", [True, False])
@pytest.mark.parametrize("sensitivity", [0.3, 0.5, 0.7])
def test_labels_are_the_same_without_normalisation(anomalous: bool, sensitivity: float) -> None:
    batches = anomalous_batches() if anomalous else [make_batch(batch.pred_score) for batch in anomalous_batches()]
    scores = torch.linspace(-0.5, 2.5, 200)
    results = []
    for normalise in (True, False):
        post = InpPostProcessor(
            enable_normalization=normalise, image_sensitivity=sensitivity, pixel_sensitivity=sensitivity
        )
        validate(post, *batches)
        results.append(process(post, scores))
    normalised, raw = results
    assert 0 < normalised.pred_label.sum() < len(scores)
    torch.testing.assert_close(raw.pred_label, normalised.pred_label)
    torch.testing.assert_close(raw.pred_mask, normalised.pred_mask)
    torch.testing.assert_close(raw.pred_score, scores)
    torch.testing.assert_close(raw.anomaly_map.flatten(), scores)
    assert not torch.allclose(normalised.pred_score, scores)


@pytest.mark.parametrize("normalised", [0.1, 0.2, 0.5, 0.8, 0.999])
def test_margin_of_inverts_the_formula(normalised: float) -> None:
    margin = margin_of(normalised)
    assert (1 + margin / math.sqrt(1 + margin**2)) / 2 == pytest.approx(normalised)


def test_margin_of_the_ends() -> None:
    assert (margin_of(0), margin_of(1)) == (-math.inf, math.inf)


# --- batches ----------------------------------------------------------------------------------------------------------


def test_a_batch_keeps_its_raw_values() -> None:
    scores, maps = torch.tensor([0.1, 0.7]), torch.rand(2, 8, 8)
    batch = make_batch(scores, maps.clone())
    post = with_ranges()
    post.post_process_batch(batch)
    expected = post(InferenceBatch(pred_score=scores, anomaly_map=maps))
    assert torch.equal(batch.raw_score, scores)
    assert torch.equal(batch.raw_map, maps)
    for name in ("pred_score", "anomaly_map", "pred_label", "pred_mask"):
        assert torch.equal(getattr(batch, name), getattr(expected, name)), name
    assert not torch.equal(batch.pred_score, scores)
    assert not torch.equal(batch.anomaly_map, maps)


def test_without_thresholds_values_pass_unchanged() -> None:
    scores, maps = torch.tensor([0.1, 0.7]), torch.rand(2, 8, 8)
    post, batch = InpPostProcessor(), make_batch(scores, maps.clone())
    with pytest.warns(UserWarning, match="There are no thresholds: scores stay raw"):
        post.post_process_batch(batch)
    assert (batch.pred_label, batch.pred_mask) == (None, None)
    for values, expected in [(batch.pred_score, scores), (batch.raw_score, scores), (batch.anomaly_map, maps)]:
        assert torch.equal(values, expected)
    result = post(InferenceBatch(pred_score=scores, anomaly_map=maps))
    assert torch.equal(result.pred_score, scores)
    assert torch.equal(result.anomaly_map, maps)
    assert not result.pred_label.any()
    assert not result.pred_mask.any()


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_state_and_configuration_survive_a_checkpoint(tmp_path: Path) -> None:
    arguments = {
        "normal_image_quantile": 0.9,
        "normal_pixel_quantile": 0.8,
        "enable_normalization": False,
        "image_sensitivity": 0.7,
        "pixel_sensitivity": 0.2,
    }
    post = InpPostProcessor(**arguments)
    validate(post, *anomalous_batches())
    torch.save({"state": post.state_dict(), "config": post.checkpoint_config()}, tmp_path / "post.ckpt")
    saved = torch.load(tmp_path / "post.ckpt", weights_only=True)

    fresh = InpPostProcessor()
    fresh.load_state_dict(saved["state"], strict=True)
    fresh.load_checkpoint_config(saved["config"])
    assert {name: getattr(fresh, name) for name in arguments} == arguments
    scores = torch.linspace(-0.5, 2.5, 50)
    expected = process(post, scores)
    assert 0 < expected.pred_mask.sum() < 50
    for ours, theirs in zip(process(fresh, scores), expected, strict=True):
        assert torch.equal(ours, theirs)


# --- inside anomalib's Engine -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A category with 6 training images, 3 normal and 3 anomalous test images."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for folder, count in {"train/good": 6, "test/good": 3, "test/dent": 3, "ground_truth/dent": 3}.items():
        (root / "part" / folder).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 256, (40, 40), dtype=np.uint8)
            name = f"{index:03}_mask.png" if folder.startswith("ground_truth") else f"{index:03}.png"
            Image.fromarray(pixels).save(root / "part" / folder / name)
    return root


def data(root: Path, val_split_mode: str) -> MVTecAD:
    return MVTecAD(root=root, category="part", num_workers=0, eval_batch_size=2, val_split_mode=val_split_mode, seed=0)


@pytest.fixture
def model(tiny_model: Callable[..., InpFormer]) -> InpFormer:
    torch.manual_seed(0)
    return tiny_model(map_size=32, evaluator=False)


def raw_scores(predictions: list[ImageBatch]) -> Tensor:
    return torch.cat([batch.raw_score for batch in predictions])


def test_training_validates_on_normal_images(
    root: Path, quiet_engine: Callable[..., Engine], model: InpFormer, said: list[str]
) -> None:
    engine, datamodule = quiet_engine(), data(root, "from_train")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        engine.fit(model, datamodule=datamodule)
    assert not [str(warning.message) for warning in caught if "threshold" in str(warning.message)]

    scores = raw_scores(engine.predict(model, dataloaders=datamodule.val_dataloader()))
    assert len(scores) == 3
    span = max(0.02, (scores.max() - scores.min()).item() / 2)
    assert model.post_processor.image_threshold.item() == pytest.approx(scores.max().item() + 1e-3 * span, abs=1e-6)
    assert len(said) == 1
    assert "no anomalous validation images: quantile 0.99" in said[0]


def test_validation_on_test_images_is_called_out(
    root: Path, quiet_engine: Callable[..., Engine], model: InpFormer, said: list[str]
) -> None:
    engine, datamodule = quiet_engine(), data(root, "same_as_test")
    with pytest.warns(UserWarning, match="6 of the 6 test images are validation images too"):
        engine.validate(model, datamodule=datamodule)
    assert len(said) == 1
    assert "best F1 over 3 anomalous" in said[0]
    with pytest.warns(UserWarning, match="6 of the 6 test images are validation images too"):
        engine.fit(model, datamodule=datamodule)


@pytest.mark.parametrize("how", ["none", "limit_val_batches"])
def test_training_without_validation_images(
    how: str, root: Path, quiet_engine: Callable[..., Engine], model: InpFormer, said: list[str]
) -> None:
    engine = quiet_engine(limit_val_batches=0 if how == "limit_val_batches" else None)
    datamodule = data(root, "none" if how == "none" else "same_as_test")
    with pytest.warns(UserWarning, match="There are no validation images, so there will be no thresholds") as warned:
        engine.fit(model, datamodule=datamodule)
    assert not [one for one in warned if "are validation images too" in str(one.message)]
    assert model.post_processor.image_threshold.isnan()
    assert model.post_processor.pixel_threshold.isnan()
    assert not said

    with pytest.warns(UserWarning, match="There are no thresholds"):
        predictions = engine.predict(model, dataloaders=datamodule.test_dataloader())
    for batch in predictions:
        assert torch.equal(batch.pred_score, batch.raw_score)
        assert torch.equal(batch.anomaly_map, batch.raw_map)
        assert batch.pred_label is None
        assert batch.pred_mask is None
