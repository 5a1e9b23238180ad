# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Both models through the Engine on a GPU: every way in which images and weights reach it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.models.components import AnomalibModule
from gpu.harness import float32
from lightning import Callback, LightningModule, Trainer, seed_everything
from model_tester import SEVEN

from anomalib_inp import InpFormer, InpFormerPlusPlus, InpPostProcessor, MultiCategory
from anomalib_inp.pictures.extremes import ExtremeResults

pytestmark = pytest.mark.gpu
KINDS = (InpFormer, InpFormerPlusPlus)


@pytest.fixture
def model(tiny_model: Callable[..., AnomalibModule]) -> Callable[..., AnomalibModule]:
    def make(kind: type[AnomalibModule] = InpFormer, **kwargs: Any) -> AnomalibModule:
        seed_everything(0, verbose=False)
        return tiny_model(kind, **{"visualizer": True, **kwargs})

    return make


def losses_of(trained: AnomalibModule, data: Any, engine: Callable[..., Any], **kwargs: Any) -> list[float]:
    values: list[float] = []

    class Record(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
            loss = outputs["loss"]
            assert loss.device.type == pl_module.device.type
            values.append(loss.item())

    engine(callbacks=[Record()], limit_val_batches=0, **kwargs).fit(trained, datamodule=data)
    return values


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_trains_tests_and_predicts(kind, precision: str, device: str, model, datamodule, engine, tmp_path) -> None:
    if precision == "16-mixed" and device == "cpu":
        pytest.skip("16-mixed is for GPUs")
    trained, data, run = (
        model(kind),
        datamodule(val_split_mode="from_test", val_split_ratio=0.5),
        engine(precision=precision),
    )
    results = run.train(trained, datamodule=data)[0]
    assert set(results) == SEVEN
    assert all(0 <= value <= 1 for value in results.values())
    predictions = run.predict(trained, datamodule=data)
    assert all(torch.isfinite(batch.raw_map).all() for batch in predictions)
    pictures = list(tmp_path.rglob("images/**/*.png"))
    assert len(pictures) == sum(len(batch.image) for batch in predictions)
    assert all(weight.dtype == torch.float32 for weight in trained.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_that_of_the_cpu(kind, model, datamodule, engine) -> None:
    arguments = {"head": False} if kind is InpFormerPlusPlus else {}
    with float32(matmul=False, convolution=False):
        here = losses_of(model(kind, **arguments), datamodule(), engine)
        there = losses_of(model(kind, **arguments), datamodule(), engine, accelerator="cpu")
    assert len(here) == 2
    assert here == pytest.approx(there, rel=1e-4)


@pytest.mark.parametrize("store", ["memory", "disk"])
@pytest.mark.parametrize("workers", [0, 2])
def test_cached_features_are_those_of_the_images(store: str, workers: int, model, datamodule, engine, tmp_path) -> None:
    cache = {"feature_cache": store, "feature_cache_dir": str(tmp_path / "features")}
    with float32(matmul=False, convolution=False):
        plain = losses_of(model(), datamodule(), engine, max_epochs=2)
        cached = losses_of(model(**cache), datamodule(num_workers=workers), engine, max_epochs=2)
    assert cached == pytest.approx(plain, rel=1e-4)


def test_pinned_features_reach_the_device(model, datamodule, engine) -> None:
    """A data module of one's own may pin memory; what a cache hands out must survive that."""
    trained, data = model(feature_cache="memory"), datamodule()
    usual = data.train_dataloader

    def pinned() -> Any:
        loader = usual()
        loader.pin_memory = torch.cuda.is_available()
        return loader

    data.train_dataloader = pinned
    assert len(losses_of(trained, data, engine)) == 2


@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("cl")), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("cache", ["off", "memory"])
def test_a_compiled_training_is_the_same_training(cache: str, model, datamodule, engine, tmp_path) -> None:
    with float32(matmul=False, convolution=False):
        expected = losses_of(model(feature_cache=cache), datamodule(), engine)
        trained = model(feature_cache=cache, compile=True)
        assert losses_of(trained, datamodule(), engine) == pytest.approx(expected, rel=1e-3)
    assert trained.to_torch(tmp_path).exists()


def test_resumed_on_the_device(model, datamodule, engine, tmp_path) -> None:
    unbroken, resumed = model(), model()
    engine(default_root_dir=tmp_path / "unbroken", max_epochs=4).fit(unbroken, datamodule=datamodule())
    engine(default_root_dir=tmp_path / "short", max_epochs=4, limit_val_batches=0, callbacks=[_Stop()]).fit(
        model(), datamodule=datamodule()
    )
    (checkpoint,) = (tmp_path / "short").rglob("model.ckpt")
    engine(default_root_dir=tmp_path / "resumed", max_epochs=4).fit(
        resumed, datamodule=datamodule(), ckpt_path=checkpoint
    )
    for name, weight in unbroken.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], weight, rtol=1e-4, atol=1e-5)


class _Stop(Callback):
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = trainer.current_epoch == 1


@pytest.mark.parametrize("kind", KINDS)
def test_several_categories(kind, model, data: Path, engine, tmp_path) -> None:
    """Thresholds of each category, from normal images and from anomalous ones, and sheets of the extremes."""
    sheets = ExtremeResults(tmp_path / "sheets")
    thresholds = InpPostProcessor(normal_image_quantile=0.9, normal_pixel_quantile=0.9)
    trained = model(kind, visualizer=sheets, post_processor=thresholds)
    arguments = {"root": data, "num_workers": 0, "train_batch_size": 4, "eval_batch_size": 8}
    run = engine()
    run.fit(trained, datamodule=MultiCategory("MVTecAD", val_split_mode="from_train", seed=0, **arguments))
    of_normal = dict(trained.post_processor.ranges)
    images = MultiCategory("MVTecAD", val_split_mode="same_as_test", **arguments)
    run.validate(trained, datamodule=images)
    assert of_normal.keys() == trained.post_processor.ranges.keys() == {"brick", "grass"}
    assert of_normal != trained.post_processor.ranges
    for exact in (2500, 0):
        trained.evaluator.exact_images = exact
        results = run.test(trained, datamodule=images)[0]
        assert {f"grass/{name}" for name in SEVEN} <= results.keys()
    assert {path.stem for path in (tmp_path / "sheets").iterdir()} == {"brick", "grass"}


def test_few_shots(model, data: Path, engine) -> None:
    arguments = {"num_workers": 0, "train_batch_size": 4, "val_split_mode": "none"}
    images = MultiCategory("MVTecAD", data, shots=1, seed=0, **arguments)
    values = losses_of(model(), images, engine, limit_train_batches=3)
    assert len(values) == 3


def test_the_head_learns_from_labelled_anomalies(model, datamodule, engine) -> None:
    trained = model(InpFormerPlusPlus, labelled_anomalies=1, feature_cache="memory")
    results = engine().train(trained, datamodule=datamodule())[0]
    assert set(results) == SEVEN
    assert trained.labelled.digests


@pytest.mark.parametrize("kind", KINDS)
def test_every_map_is_that_of_the_cpu(kind, device: str, model) -> None:
    detector = model(kind).model.eval()
    images = torch.randn(2, 3, 64, 64)
    for name in detector.maps:
        detector.map = name
        with torch.no_grad(), float32(matmul=False, convolution=False):
            expected = detector.cpu()(images)
            found = detector.to(device)(images.to(device))
        for part in ("anomaly_map", "pred_score"):
            assert getattr(found, part).device.type == device
            torch.testing.assert_close(getattr(found, part).cpu(), getattr(expected, part), rtol=1e-4, atol=1e-5)


def test_normal_images_alone_give_the_thresholds_of_the_cpu(model, datamodule, engine) -> None:
    found = []
    for accelerator in ({}, {"accelerator": "cpu"}):
        trained = model(post_processor=InpPostProcessor(normal_image_quantile=0.5, normal_pixel_quantile=0.5))
        with float32(matmul=False, convolution=False):
            engine(**accelerator).validate(trained, datamodule=datamodule())
        found.append([trained.post_processor.image_threshold.item(), trained.post_processor.pixel_threshold.item()])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_trains_after_it_has_predicted(model, datamodule, engine, tmp_path) -> None:
    """What inference mode leaves behind, such as a position table, must serve a training too."""
    trained, data = model(), datamodule()
    engine(default_root_dir=tmp_path / "predicted").predict(trained, datamodule=data)
    assert len(losses_of(trained, data, engine)) == 2
