# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What all models must do inside anomalib: Engine, checkpoints, exports, precision, schedule, bad input."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

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
from anomalib_inp.training.callbacks import NonFiniteLossError, is_trained

SEVEN = {"image_AUROC", "image_AP", "image_F1Max", "pixel_AUROC", "pixel_AP", "pixel_F1Max", "pixel_AUPRO"}


WITH_WORKERS = """
import runpy, sys
from pathlib import Path
from anomalib.data import MVTecAD
from anomalib.engine import Engine
import anomalib_inp

file, name, encoder, root, folder = sys.argv[1:]
tests = runpy.run_path(file)
make = lambda: getattr(anomalib_inp, name)("test_vit", encoder, image_size=64, map_size=64, warmup_steps=3)
data = lambda: MVTecAD(
    root, "brick", 8, 16, num_workers=2, val_split_mode="from_train", val_split_ratio=0.2, seed=0
)
engine = lambda folder, **arguments: Engine(
    default_root_dir=folder, logger=False, accelerator="cpu", enable_progress_bar=False, **arguments
)
assert tests["train_broken_off_and_resumed"](make, data, engine, Path(folder), max_epochs=4) == []
"""


class PowerCutError(Exception):
    """What ends the training of ``Epochs``."""


class Epochs(Callback):
    """Notes the epochs that begin; at ``stop``, the training ends without a goodbye."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop = stop
        self.begun: list[int] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == self.stop:
            raise PowerCutError
        self.begun.append(trainer.current_epoch)


def train_broken_off_and_resumed(
    make: Callable[[], AnomalibModule],
    data: Callable[[], MVTecAD],
    engine: Callable[..., Engine],
    folder: Path,
    **length: int,
) -> list[str]:
    """Train 4 epochs at once, and 2 and 2; returns the names of the weights that differ."""

    def train(name: str, epochs: Epochs, **kwargs: Any) -> AnomalibModule:
        seed_everything(3, verbose=False)
        trained = make()
        engine(folder / name, callbacks=[epochs], **length).fit(trained, datamodule=data(), **kwargs)
        return trained

    whole, first, second = Epochs(), Epochs(stop=2), Epochs()
    unbroken = train("unbroken", whole).state_dict()
    with pytest.raises(PowerCutError):
        train("broken", first)
    (checkpoint,) = (folder / "broken").rglob("model.ckpt")
    resumed = train("resumed", second, ckpt_path=checkpoint).state_dict()
    assert (whole.begun, first.begun, second.begun) == ([0, 1, 2, 3], [0, 1], [2, 3])
    # without validation, thresholds are nan in both
    same = partial(torch.allclose, rtol=0, atol=0, equal_nan=True)
    return [name for name, weight in unbroken.items() if not same(weight, resumed[name])]


class Logged(Callback):
    """Keeps what a training has logged."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.metrics = dict(trainer.callback_metrics)


class Rates(Callback):
    """Notes the learning rate of each optimiser step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.values.append(optimizer.param_groups[0]["lr"])


class Finished(NamedTuple):
    """A training of one epoch, what it has logged and what its test has found."""

    model: AnomalibModule
    run: Engine
    logged: dict[str, torch.Tensor]
    results: dict[str, float]

    @property
    def folder(self) -> Path:
        return Path(self.run.trainer.default_root_dir)

    @property
    def checkpoint(self) -> Path:
        (path,) = self.folder.rglob("finished.ckpt")
        return path


class SiblingTester:
    """Tests of every model on the frozen encoder, trained or not; a subclass names the model."""

    model_class: type[AnomalibModule]

    @pytest.fixture(scope="class")
    def data(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return write_sample_data(tmp_path_factory.mktemp("data") / "sample", categories=("brick",))

    @pytest.fixture(scope="class")
    def datamodule(self, data: Path) -> Callable[..., MVTecAD]:
        def make(**kwargs: Any) -> MVTecAD:
            defaults = {"train_batch_size": 8, "eval_batch_size": 16, "num_workers": 0, "val_split_mode": "from_train"}
            return MVTecAD(root=data, category="brick", **{**defaults, "val_split_ratio": 0.2, "seed": 0, **kwargs})

        return make

    @pytest.fixture(scope="class")
    def model(self, tiny_model: Callable[..., AnomalibModule]) -> Callable[..., AnomalibModule]:
        return partial(tiny_model, self.model_class)

    @pytest.fixture(scope="class")
    def finished(self, model, datamodule, quiet_engine) -> Finished:
        """A training of one epoch, and its test; nothing may change it."""
        logged, trained = Logged(), model(visualizer=True)
        run = quiet_engine(callbacks=[logged])
        (results,) = run.train(trained, datamodule=datamodule())
        return Finished(trained, run, logged.metrics, results)

    def test_is_a_direct_subclass_of_anomalibs_module(self) -> None:
        assert self.model_class in AnomalibModule.__subclasses__()

    def test_trains_tests_and_predicts_through_the_engine(self, finished: Finished, datamodule) -> None:
        assert set(finished.results) == SEVEN
        predictions = finished.run.predict(finished.model, datamodule=datamodule())
        scores = torch.cat([batch.raw_score for batch in predictions])
        assert len(scores) == 36
        assert predictions[0].anomaly_map.shape[-2:] == (64, 64)
        assert all(((batch.pred_score > 0.5) == batch.pred_label).all() for batch in predictions)
        pictures = list(finished.folder.rglob("images/**/*.png"))
        assert len(pictures) == 36

    def test_trains_and_tests_in_bfloat16(self, model, datamodule, quiet_engine) -> None:
        trained = model()
        run = quiet_engine(precision="bf16-mixed")
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

    def test_its_maps_are_those_that_it_names(self, model) -> None:
        built = model().model
        assert tuple(built.maps) == tuple(name for name in self.model_class.maps if name in built.maps)
        assert built.map == next(iter(built.maps))

    def test_non_square_crops_work(self, model) -> None:
        trained = model(image_size=(96, 160), crop_size=(64, 128), map_size=None).eval()
        with torch.no_grad():
            predictions = trained(torch.rand(1, 3, 120, 300))
        assert predictions.anomaly_map.shape == (1, 1, 64, 128)

    def test_a_checkpoint_is_not_used_on_another_frame_nor_resumed_when_finished(
        self, finished: Finished, model, datamodule, quiet_engine
    ) -> None:
        checkpoint = finished.checkpoint
        with pytest.raises(ValueError, match=r"trained on images of \[64, 64\].*--model.image_size"):
            quiet_engine().test(model(image_size=80), datamodule=datamodule(), ckpt_path=checkpoint)
        with pytest.raises(ValueError, match=r"\[64, 64\]"):
            self.model_class.load_from_checkpoint(checkpoint, image_size=96, crop_size=64)
        new = model()
        refused = r"resumed from model\.ckpt" if is_trained(new) else f"{type(new).__name__} has nothing to train"
        with pytest.raises(ValueError, match=refused):
            quiet_engine(max_epochs=2).fit(new, datamodule=datamodule(), ckpt_path=checkpoint)

    def test_trains_and_tests_without_a_post_processor(self, model, datamodule, quiet_engine) -> None:
        results = quiet_engine().train(model(post_processor=False), datamodule=datamodule())[0]
        assert set(results) == SEVEN

    def test_a_finished_checkpoint_holds_no_encoder_and_gives_the_same_scores(self, finished: Finished) -> None:
        state = torch.load(finished.checkpoint, weights_only=True)["state_dict"]
        assert "post_processor._image_threshold" in state
        assert not [name for name in state if "encoder" in name]
        loaded, images = self.model_class.load_from_checkpoint(finished.checkpoint).eval(), torch.rand(1, 3, 100, 90)
        with torch.no_grad():
            for ours, theirs in zip(loaded(images), finished.model.eval()(images), strict=True):
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

    def test_loss_terms_are_logged_by_name(self, finished: Finished) -> None:
        logged = finished.logged
        total = sum(weight * logged[f"train_{name}"] for name, weight in self.weights.items())
        torch.testing.assert_close(logged["train_loss_epoch"], total, rtol=1e-5, atol=0)

    def test_frozen_encoder_stays_as_it_is_while_everything_else_learns(self, model, datamodule, quiet_engine) -> None:
        trained = model(warmup_steps=1)
        network = trained.model.network
        encoder = {name: weight.clone() for name, weight in network.encoder.backbone.state_dict().items()}
        before = {name: weight.clone() for name, weight in network.named_parameters() if weight.requires_grad}
        assert len(encoder) > 50
        assert {name.split(".")[0] for name in before} == {"extractor", "bottleneck", "decoder"}
        quiet_engine(max_epochs=2).fit(trained, datamodule=datamodule())
        for name, weight in network.encoder.backbone.state_dict().items():
            assert torch.equal(weight, encoder[name]), name
        same = [
            name for name, weight in network.named_parameters() if name in before and torch.equal(weight, before[name])
        ]
        assert not same

    def test_checkpoints_hold_what_was_trained_and_no_encoder(self, finished: Finished) -> None:
        (resumable,) = finished.folder.rglob("model.ckpt")
        trained = [weight for weight in finished.model.parameters() if weight.requires_grad]
        for path, copies in ((finished.checkpoint, 1.1), (resumable, 4.2)):
            state = torch.load(path, weights_only=True)["state_dict"]
            assert "model.network.extractor.queries" in state
            assert not [name for name in state if "encoder" in name]
            assert path.stat().st_size < copies * sum(4 * weight.numel() for weight in trained)

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
        self, length, model, datamodule, quiet_engine, tmp_path: Path
    ) -> None:
        make = partial(model, warmup_steps=3)
        assert train_broken_off_and_resumed(make, datamodule, quiet_engine, tmp_path, **length) == []

    def test_resumed_training_ends_bitwise_with_workers_too(
        self, tiny_encoder_file: Path, data: Path, tmp_path: Path
    ) -> None:
        """In a process of its own: workers are forked, which a process that has run OpenVINO may not survive."""
        names = [__file__, self.model_class.__name__, tiny_encoder_file, data, tmp_path]
        subprocess.run([sys.executable, "-c", WITH_WORKERS, *map(str, names)], check=True, timeout=300)

    def test_schedule_counts_optimiser_steps(self, model, datamodule, quiet_engine) -> None:
        rates = Rates()
        run = quiet_engine(max_epochs=3, accumulate_grad_batches=2, callbacks=[rates])
        run.fit(model(warmup_steps=2, learning_rate=1e-3, final_learning_rate=1e-4), datamodule=datamodule())
        # 32 images make 4 batches and so 2 optimiser steps an epoch: 6 in all
        assert len(rates.values) == 6
        cosine = [1e-4 + 4.5e-4 * (1 + torch.cos(torch.tensor(torch.pi * s / 4)).item()) for s in range(4)]
        assert rates.values == pytest.approx([0.0, 1e-3, *cosine], rel=1e-5)

    def test_a_recipe_fills_in_what_is_not_given(self, model) -> None:
        rates = {"published": self.published_rate, "short": 1e-4}
        for name, rate in rates.items():
            assert model(recipe=name).recipe.learning_rate == rate
        assert model().recipe == model(recipe="published").recipe
        mixed = model(recipe="short", learning_rate=3e-4, warmup_steps=7).recipe
        assert (mixed.learning_rate, mixed.final_learning_rate, mixed.warmup_steps) == (3e-4, 1e-5, 7)
        with pytest.raises(ValueError, match="recipe must be one of published, short, got 'long'"):
            model(recipe="long")

    def test_max_steps_sets_the_length_of_the_schedule(self, model, datamodule, quiet_engine) -> None:
        run = quiet_engine(max_epochs=-1, max_steps=6)
        run.fit(model(), datamodule=datamodule())
        assert run.trainer.global_step == 6
        assert run.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-4)

    def test_thresholds_are_those_of_the_last_step(self, model, datamodule, quiet_engine) -> None:
        trained, images = model(), datamodule()
        run = quiet_engine(max_epochs=-1, max_steps=6)  # in the middle of the second epoch
        run.fit(trained, datamodule=images)
        chosen = trained.post_processor.image_threshold.clone()
        run.validate(trained, datamodule=images)
        assert torch.equal(trained.post_processor.image_threshold, chosen)

    def test_resuming_for_longer_lays_out_the_schedule_anew(
        self, model, datamodule, quiet_engine, tmp_path: Path
    ) -> None:
        quiet_engine(tmp_path / "short").fit(model(warmup_steps=1, learning_rate=1e-3), datamodule=datamodule())
        (checkpoint,) = tmp_path.rglob("model.ckpt")
        rates = Rates()
        run = quiet_engine(tmp_path / "long", max_epochs=3, callbacks=[rates])
        run.fit(model(warmup_steps=1, learning_rate=1e-3), datamodule=datamodule(), ckpt_path=checkpoint)
        # 4 of 12 steps are done; the step that follows a resume still has the rate that the checkpoint holds
        cosine = [1e-4 + 4.5e-4 * (1 + torch.cos(torch.tensor(torch.pi * (s - 1) / 11)).item()) for s in range(5, 12)]
        assert rates.values[1:] == pytest.approx(cosine, rel=1e-5)

    @pytest.mark.parametrize(("given", "expected"), [({}, 200), ({"max_epochs": 7}, 7)])
    def test_200_epochs_unless_the_user_says_otherwise(
        self, model, datamodule, quiet_engine, given, expected: int
    ) -> None:
        class Stop(Callback):
            found: tuple[int, int]

            def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
                self.found = (trainer.max_epochs, trainer.estimated_stepping_batches)
                trainer.should_stop = True

        stop = Stop()
        run = quiet_engine(callbacks=[stop], limit_val_batches=0, **{"max_epochs": None, **given})
        run.fit(model(), datamodule=datamodule())
        assert stop.found == (expected, 4 * expected)

    def test_a_training_without_a_step_is_none(self, model, datamodule, quiet_engine) -> None:
        run = quiet_engine(limit_train_batches=0)
        with pytest.raises(RuntimeError, match=r"Nothing was trained: .* limit_train_batches=0"):
            run.train(model(), datamodule=datamodule())

    @pytest.mark.parametrize(("given", "limit"), [({}, 0.1), ({"gradient_clip_val": 0.02}, 0.02)])
    def test_gradients_are_clipped_at_the_papers_norm_or_the_users(
        self, model, datamodule, quiet_engine, given, limit
    ) -> None:
        norms = []

        class Record(Callback):
            def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
                for group in optimizer.param_groups:
                    gradients = [weight.grad for weight in group["params"] if weight.grad is not None]
                    if gradients:
                        norms.append(torch.nn.utils.get_total_norm(gradients).item())

        quiet_engine(callbacks=[Record()], **given).fit(model(), datamodule=datamodule())
        assert norms
        assert max(norms) == pytest.approx(limit, rel=1e-3)

    def test_nan_loss_stops_the_training_and_names_the_step(self, model, datamodule, quiet_engine) -> None:
        class Poison(Callback):
            def on_train_batch_start(
                self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
            ) -> None:
                if batch_idx == 2:
                    normal = TrainingBatch.of(batch).source
                    normal.image = normal.image * float("nan")

        trained = model()
        with pytest.raises(NonFiniteLossError, match=r"step 2 \(epoch 0\).*images with NaN"):
            quiet_engine(callbacks=[Poison()]).fit(trained, datamodule=datamodule())
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
