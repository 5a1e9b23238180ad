# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What all models must do inside anomalib: Engine, checkpoints, exports, precision, schedule, bad input."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from anomalib.models.components import AnomalibModule
from lightning import Callback, LightningModule, Trainer, seed_everything

from anomalib_inp.data.sample import write_sample_data
from anomalib_inp.outputs import TrainingBatch
from anomalib_inp.runtime.model import ExportedModel
from anomalib_inp.training.callbacks import NonFiniteLossError

SEVEN = {"image_AUROC", "image_AP", "image_F1Max", "pixel_AUROC", "pixel_AP", "pixel_F1Max", "pixel_AUPRO"}


SMALL = {"image_size": 64, "map_size": 64}


WITH_WORKERS = """
import runpy, sys
from pathlib import Path
from anomalib.data import MVTecAD
import anomalib_inp

file, name, encoder, root, folder = sys.argv[1:]
tests = runpy.run_path(file)
make = lambda: getattr(anomalib_inp, name)("test_vit", encoder, **tests["SMALL"], warmup_steps=3)
data = lambda: MVTecAD(
    root, "brick", 8, 16, num_workers=2, val_split_mode="from_train", val_split_ratio=0.2, seed=0
)
assert tests["train_broken_off_and_resumed"](make, data, Path(folder)) == []
"""


class PowerCutError(Exception):
    """What ends the training of ``StopAfter``."""


class StopAfter(Callback):
    """Ends a training without a goodbye, after an epoch has been checkpointed."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == self.epochs:
            raise PowerCutError


def engine(folder: Path, **kwargs: Any) -> Engine:
    defaults = {"max_epochs": 1, "logger": False, "accelerator": "cpu", "enable_progress_bar": False}
    return Engine(default_root_dir=folder, **{**defaults, "enable_model_summary": False, **kwargs})


def train_broken_off_and_resumed(
    make: Callable[[], AnomalibModule], data: Callable[[], MVTecAD], folder: Path, **length: int
) -> list[str]:
    """Train 4 epochs at once, and 2 and 2; returns the names of the weights that differ."""
    arguments = length or {"max_epochs": 4}

    def train(name: str, callbacks: tuple[Callback, ...] = (), **kwargs: Any) -> AnomalibModule:
        seed_everything(3, verbose=False)
        trained = make()
        engine(folder / name, callbacks=list(callbacks), **arguments).fit(trained, datamodule=data(), **kwargs)
        return trained

    unbroken = train("unbroken").state_dict()
    with pytest.raises(PowerCutError):
        train("broken", callbacks=(StopAfter(2),))
    (checkpoint,) = (folder / "broken").rglob("model.ckpt")
    resumed = train("resumed", ckpt_path=checkpoint).state_dict()
    # without validation, thresholds are nan in both
    same = partial(torch.allclose, rtol=0, atol=0, equal_nan=True)
    return [name for name, weight in unbroken.items() if not same(weight, resumed[name])]


class SiblingTester:
    """Tests of every model on the frozen encoder, trained or not; a subclass names the model."""

    model_class: type[AnomalibModule]

    @pytest.fixture(scope="class")
    def data(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return write_sample_data(tmp_path_factory.mktemp("data") / "sample", categories=("brick",))

    @pytest.fixture
    def datamodule(self, data: Path) -> Callable[..., MVTecAD]:
        def make(**kwargs: Any) -> MVTecAD:
            defaults = {"train_batch_size": 8, "eval_batch_size": 16, "num_workers": 0, "val_split_mode": "from_train"}
            return MVTecAD(root=data, category="brick", **{**defaults, "val_split_ratio": 0.2, "seed": 0, **kwargs})

        return make

    @pytest.fixture
    def model(self, tiny_encoder_file: Path) -> Callable[..., AnomalibModule]:
        def make(**kwargs: Any) -> AnomalibModule:
            return self.model_class("test_vit", str(tiny_encoder_file), **{**SMALL, **kwargs})

        return make

    def test_is_a_direct_subclass_of_anomalibs_module(self) -> None:
        assert self.model_class in AnomalibModule.__subclasses__()

    def test_trains_tests_and_predicts_through_the_engine(self, model, datamodule, tmp_path: Path) -> None:
        run, trained, data = engine(tmp_path), model(), datamodule()
        results = run.train(trained, datamodule=data)[0]
        assert set(results) == SEVEN
        predictions = run.predict(trained, datamodule=data)
        scores = torch.cat([batch.raw_score for batch in predictions])
        assert len(scores) == 36
        assert predictions[0].anomaly_map.shape[-2:] == (64, 64)
        assert all(((batch.pred_score > 0.5) == batch.pred_label).all() for batch in predictions)
        pictures = list(tmp_path.rglob("images/**/*.png"))
        assert len(pictures) == 36

    def test_trains_and_tests_in_bfloat16(self, model, datamodule, tmp_path: Path) -> None:
        trained = model()
        run = engine(tmp_path, precision="bf16-mixed")
        results = run.train(trained, datamodule=datamodule())[0]
        assert set(results) == SEVEN
        assert all(weight.dtype == torch.float32 for weight in trained.parameters())
        assert trained.post_processor.image_threshold.dtype == torch.float32

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"image_size": 70}, "multiple of the encoder's patch size 16"),
            ({"image_size": 64, "crop_size": 80}, "crop must fit"),
            ({"target_layers": [1, 9]}, "0 to 5"),
            ({"map": "heat"}, "must be one of "),
        ],
    )
    def test_arguments_that_do_not_fit_are_refused(self, model, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            model(**arguments)

    def test_non_square_crops_work(self, model) -> None:
        trained = model(image_size=(96, 160), crop_size=(64, 128), map_size=None).eval()
        with torch.no_grad():
            predictions = trained(torch.rand(1, 3, 120, 300))
        assert predictions.anomaly_map.shape == (1, 1, 64, 128)

    def test_a_checkpoint_is_not_used_on_another_frame_nor_resumed_when_finished(
        self, model, datamodule, tmp_path
    ) -> None:
        run = engine(tmp_path)
        run.fit(model(), datamodule=datamodule())
        (finished,) = tmp_path.rglob("finished.ckpt")
        with pytest.raises(ValueError, match=r"trained on images of \[64, 64\].*--model.image_size"):
            engine(tmp_path).test(model(image_size=80), datamodule=datamodule(), ckpt_path=finished)
        with pytest.raises(ValueError, match=r"\[64, 64\]"):
            self.model_class.load_from_checkpoint(finished, image_size=96, crop_size=64)
        with pytest.raises(ValueError, match=r"resumed from model\.ckpt"):
            engine(tmp_path, max_epochs=2).fit(model(), datamodule=datamodule(), ckpt_path=finished)

    def test_trains_and_tests_without_a_post_processor(self, model, datamodule, tmp_path: Path) -> None:
        results = engine(tmp_path).train(model(post_processor=False), datamodule=datamodule())[0]
        assert set(results) == SEVEN

    def test_a_finished_checkpoint_holds_no_encoder_and_gives_the_same_scores(
        self, model, datamodule, tmp_path: Path
    ) -> None:
        fitted = model()
        engine(tmp_path).fit(fitted, datamodule=datamodule())
        (finished,) = tmp_path.rglob("finished.ckpt")
        state = torch.load(finished, weights_only=True)["state_dict"]
        assert not [name for name in state if "encoder" in name]
        loaded = self.model_class.load_from_checkpoint(finished).eval()
        images = torch.rand(1, 3, 100, 90)
        with torch.no_grad():
            for ours, theirs in zip(loaded(images), fitted.eval()(images), strict=True):
                assert torch.equal(ours, theirs)

    @pytest.mark.parametrize("kind", ["onnx", "openvino"])
    def test_an_export_gives_the_scores_of_the_model(self, kind: str, model, tmp_path: Path) -> None:
        torch.manual_seed(0)
        built = model().eval()
        built.post_processor.set_thresholds(image=0.2, pixel=0.3)
        export = built.to_onnx(tmp_path) if kind == "onnx" else built.to_openvino(tmp_path)
        images = torch.rand(1, 3, 100, 90)
        with torch.no_grad():
            expected = built(images)
        exported = ExportedModel(export)(images.numpy())
        np.testing.assert_allclose(exported.pred_score, expected.pred_score, rtol=0, atol=1e-4)
        np.testing.assert_allclose(exported.anomaly_map, expected.anomaly_map, rtol=0, atol=1e-4)


class ModelTester(SiblingTester):
    """Tests of a model that is trained by a recipe."""

    weights: dict[str, float]
    """Weights of the terms of the loss."""
    published_rate: float
    """Learning rate of the published recipe."""

    def test_loss_terms_are_logged_by_name(self, model, datamodule, tmp_path: Path) -> None:
        run = engine(tmp_path)
        run.fit(model(), datamodule=datamodule())
        logged = run.trainer.callback_metrics
        total = sum(weight * logged[f"train_{name}"] for name, weight in self.weights.items())
        torch.testing.assert_close(logged["train_loss_epoch"], total, rtol=1e-5, atol=0)

    def test_frozen_encoder_stays_as_it_is_while_everything_else_learns(
        self, model, datamodule, tmp_path: Path
    ) -> None:
        trained = model(warmup_steps=1)
        network = trained.model.network
        encoder = {name: weight.clone() for name, weight in network.encoder.backbone.state_dict().items()}
        before = {name: weight.clone() for name, weight in network.named_parameters() if weight.requires_grad}
        engine(tmp_path, max_epochs=2).fit(trained, datamodule=datamodule())
        for name, weight in network.encoder.backbone.state_dict().items():
            assert torch.equal(weight, encoder[name]), name
        same = [
            name for name, weight in network.named_parameters() if name in before and torch.equal(weight, before[name])
        ]
        assert not same

    def test_checkpoints_hold_what_was_trained_and_no_encoder(self, model, datamodule, tmp_path: Path) -> None:
        trained = model()
        engine(tmp_path).fit(trained, datamodule=datamodule())
        (resumable,) = tmp_path.rglob("model.ckpt")
        finished = resumable.with_name("finished.ckpt")
        for path in (resumable, finished):
            state = torch.load(path, weights_only=True)["state_dict"]
            assert not [name for name in state if "encoder" in name]
        trained_bytes = sum(4 * weight.numel() for weight in trained.parameters() if weight.requires_grad)
        assert finished.stat().st_size < 1.1 * trained_bytes
        assert resumable.stat().st_size < 4.2 * trained_bytes

        loaded = self.model_class.load_from_checkpoint(finished).eval()
        images = torch.rand(1, 3, 100, 90)
        with torch.no_grad():
            for ours, theirs in zip(loaded(images), trained.eval()(images), strict=True):
                assert torch.equal(ours, theirs)

    @pytest.mark.parametrize(
        "length",
        [
            {"max_epochs": 4},
            {"max_epochs": -1, "max_steps": 16},
            {"max_epochs": -1, "max_steps": 16, "limit_val_batches": 0},
        ],
        ids=["epochs", "steps", "steps, no validation"],
    )
    def test_resumed_training_ends_bitwise_where_an_unbroken_one_ends(
        self, length, model, datamodule, tmp_path: Path
    ) -> None:
        assert train_broken_off_and_resumed(lambda: model(warmup_steps=3), datamodule, tmp_path, **length) == []

    def test_resumed_training_ends_bitwise_with_workers_too(
        self, tiny_encoder_file: Path, data: Path, tmp_path: Path
    ) -> None:
        """In a process of its own: workers are forked, which a process that has run OpenVINO may not survive."""
        names = [__file__, self.model_class.__name__, tiny_encoder_file, data, tmp_path]
        subprocess.run([sys.executable, "-c", WITH_WORKERS, *map(str, names)], check=True, timeout=300)

    def test_schedule_counts_optimiser_steps(self, model, datamodule, tmp_path: Path) -> None:
        rates = []

        class Record(Callback):
            def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
                rates.append(optimizer.param_groups[0]["lr"])

        run = engine(tmp_path, max_epochs=3, accumulate_grad_batches=2, callbacks=[Record()])
        run.fit(model(warmup_steps=2, learning_rate=1e-3, final_learning_rate=1e-4), datamodule=datamodule())
        # 32 images make 4 batches and so 2 optimiser steps an epoch: 6 in all
        assert len(rates) == 6
        cosine = [1e-4 + 4.5e-4 * (1 + torch.cos(torch.tensor(torch.pi * s / 4)).item()) for s in range(4)]
        assert rates == pytest.approx([0.0, 1e-3, *cosine], rel=1e-5)

    def test_a_recipe_fills_in_what_is_not_given(self, model) -> None:
        rates = {"published": self.published_rate, "short": 1e-4}
        for name, rate in rates.items():
            assert model(recipe=name).recipe.learning_rate == rate
        assert model().recipe == model(recipe="published").recipe
        mixed = model(recipe="short", learning_rate=3e-4, warmup_steps=7).recipe
        assert (mixed.learning_rate, mixed.final_learning_rate, mixed.warmup_steps) == (3e-4, 1e-5, 7)
        with pytest.raises(ValueError, match="recipe must be one of published, short, got 'long'"):
            model(recipe="long")

    def test_max_steps_sets_the_length_of_the_schedule(self, model, datamodule, tmp_path: Path) -> None:
        run = engine(tmp_path, max_epochs=-1, max_steps=6)
        run.fit(model(), datamodule=datamodule())
        assert run.trainer.global_step == 6
        assert run.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-4)

    def test_thresholds_are_those_of_the_last_step(self, model, datamodule, tmp_path: Path) -> None:
        trained, images = model(), datamodule()
        run = engine(tmp_path, max_epochs=-1, max_steps=6)  # in the middle of the second epoch
        run.fit(trained, datamodule=images)
        chosen = trained.post_processor.image_threshold.clone()
        run.validate(trained, datamodule=images)
        assert torch.equal(trained.post_processor.image_threshold, chosen)

    def test_resuming_for_longer_lays_out_the_schedule_anew(self, model, datamodule, tmp_path: Path) -> None:
        engine(tmp_path / "short").fit(model(warmup_steps=1, learning_rate=1e-3), datamodule=datamodule())
        (checkpoint,) = tmp_path.rglob("model.ckpt")
        rates = []

        class Record(Callback):
            def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
                rates.append(optimizer.param_groups[0]["lr"])

        run = engine(tmp_path / "long", max_epochs=3, callbacks=[Record()])
        run.fit(model(warmup_steps=1, learning_rate=1e-3), datamodule=datamodule(), ckpt_path=checkpoint)
        # 4 of 12 steps are done; the step that follows a resume still has the rate that the checkpoint holds
        cosine = [1e-4 + 4.5e-4 * (1 + torch.cos(torch.tensor(torch.pi * (s - 1) / 11)).item()) for s in range(5, 12)]
        assert rates[1:] == pytest.approx(cosine, rel=1e-5)

    @pytest.mark.parametrize(("given", "expected"), [({}, 200), ({"max_epochs": 7}, 7)])
    def test_200_epochs_unless_the_user_says_otherwise(self, model, datamodule, tmp_path, given, expected: int) -> None:
        class Stop(Callback):
            def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
                assert trainer.max_epochs == expected
                assert trainer.estimated_stepping_batches == 4 * expected
                trainer.should_stop = True

        run = engine(tmp_path, callbacks=[Stop()], limit_val_batches=0, **{"max_epochs": None, **given})
        run.fit(model(), datamodule=datamodule())

    def test_a_training_without_a_step_is_none(self, model, datamodule, tmp_path: Path) -> None:
        run = engine(tmp_path, limit_train_batches=0)
        with pytest.raises(RuntimeError, match=r"Nothing was trained: .* limit_train_batches=0"):
            run.train(model(), datamodule=datamodule())

    @pytest.mark.parametrize(("given", "limit"), [({}, 0.1), ({"gradient_clip_val": 0.02}, 0.02)])
    def test_gradients_are_clipped_at_the_papers_norm_or_the_users(
        self, model, datamodule, tmp_path, given, limit
    ) -> None:
        norms = []

        class Record(Callback):
            def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
                for group in optimizer.param_groups:
                    gradients = [weight.grad for weight in group["params"] if weight.grad is not None]
                    if gradients:
                        norms.append(torch.nn.utils.get_total_norm(gradients).item())

        engine(tmp_path, callbacks=[Record()], **given).fit(model(), datamodule=datamodule())
        assert norms
        assert max(norms) == pytest.approx(limit, rel=1e-3)

    def test_nan_loss_stops_the_training_and_names_the_step(self, model, datamodule, tmp_path: Path) -> None:
        class Poison(Callback):
            def on_train_batch_start(
                self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
            ) -> None:
                if batch_idx == 2:
                    normal = TrainingBatch.of(batch).source
                    normal.image = normal.image * float("nan")

        trained = model()
        with pytest.raises(NonFiniteLossError, match=r"step 2 \(epoch 0\).*images with NaN"):
            engine(tmp_path, callbacks=[Poison()]).fit(trained, datamodule=datamodule())
        assert all(torch.isfinite(weight).all() for weight in trained.parameters())

    def test_zero_shot_reading_needs_no_other_weights(self, model, tmp_path: Path) -> None:
        torch.manual_seed(0)
        trained, other = model().eval(), model(map="prototype_distance").eval()
        other.load_state_dict(trained.state_dict(), strict=True)
        images = torch.rand(2, 3, 64, 64)
        with torch.no_grad():
            reconstruction = trained.model.network(images)
            assert not torch.equal(trained.model(images).anomaly_map, other.model(images).anomaly_map)
            assert torch.equal(other.model.read(reconstruction).pred_score, other.model(images).pred_score)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"num_prototypes": 0}, "num_prototypes must be at least 1"),
            ({"learning_rate": -1.0}, "learning_rate must be a positive number"),
            ({"learning_rate": float("nan")}, "learning_rate must be a positive number"),
            ({"warmup_steps": -5}, "warmup_steps must not be negative"),
            ({"gradient_clip": 0.0}, "gradient_clip must be positive"),
            ({"mining_power": -1.0}, "must not be negative"),
            ({"map_size": 0}, "map_size must be a positive number"),
            ({"image_size": (64, 64, 64)}, "image_size must be a positive number"),
            ({"image_size": 0}, "image_size must be a positive number"),
        ],
    )
    def test_numbers_that_make_no_sense_are_refused_at_once(
        self, model, arguments: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            model(**arguments)

    def test_an_unknown_map_is_refused_and_the_known_ones_are_named(self, model) -> None:
        with pytest.raises(ValueError, match=r"must be one of .*reconstruction, prototype_distance"):
            model(map="heat")
