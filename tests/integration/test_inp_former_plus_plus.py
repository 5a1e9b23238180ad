# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""INP-Former++ inside anomalib: what INP-Former does not have."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.data import Folder, ImageBatch
from lightning import Callback, LightningModule, Trainer, seed_everything
from model_tester import SEVEN, Finished, ModelTester
from torch import Tensor

from anomalib_inp import InpFormer, InpFormerPlusPlus
from anomalib_inp.data.file_checks import DataError
from anomalib_inp.models.registry import load_model
from anomalib_inp.outputs import PatchFeatures
from anomalib_inp.training.training_data import DerivedDataset

MAPS = ("fused", "reconstruction", "segmentation", "prototype_distance", "nearest_prototype_distance")


class Seen(Callback):
    """Keeps what the reconstruction and the head are shown."""

    def __init__(self) -> None:
        self.normal: list[torch.Tensor] = []
        self.pseudo: list[torch.Tensor] = []
        self.masks: list[torch.Tensor] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.normal.append(batch.source.image.clone())
        self.pseudo.append(batch.pseudo.image.clone())
        self.masks.append(batch.pseudo.gt_mask.clone())


class TestInpFormerPlusPlus(ModelTester):
    model_class = InpFormerPlusPlus
    weights = {"mining": 1.0, "mining_mse": 1.0, "coherence": 0.2, "segmentation": 1.0}
    published_rate = 5e-4

    # --- maps ---------------------------------------------------------------------------------------------------------

    def test_every_map_is_there_without_training_anew(self, model) -> None:
        torch.manual_seed(0)
        trained = model().eval()
        with torch.no_grad():  # a head that says more than one half
            for weight in trained.head.parameters():
                weight.mul_(5)
        images = torch.rand(2, 3, 64, 64)
        found = {}
        for name in MAPS:
            shown = model(map=name).eval()
            shown.load_state_dict(trained.state_dict(), strict=True)
            trained.model.map = name  # the same, on a finished model
            with torch.no_grad():
                found[name] = shown.model(images).anomaly_map
                assert torch.equal(found[name], trained.model(images).anomaly_map)
        torch.testing.assert_close(found["fused"], (found["reconstruction"] + found["segmentation"]) / 2)
        assert len({round(value.mean().item(), 4) for value in found.values()}) == len(MAPS)

    def test_without_a_head_there_is_a_reconstruction_map(self, model) -> None:
        assert model(head=False).model.map == "reconstruction"
        with pytest.raises(ValueError, match="shows the segmentation head, but head is false"):
            model(head=False, map="fused")

    def test_a_checkpoint_with_a_head_is_not_loaded_into_a_model_without(
        self, model, datamodule, quiet_engine, tmp_path: Path
    ) -> None:
        for head, needed in ((True, "a segmentation head.*--model.head true"), (False, "no segmentation.*head false")):
            quiet_engine(tmp_path / str(head), limit_val_batches=0).fit(model(head=head), datamodule=datamodule())
            (finished,) = (tmp_path / str(head)).rglob("finished.ckpt")
            with pytest.raises(ValueError, match=needed):
                quiet_engine().test(model(head=not head), datamodule=datamodule(), ckpt_path=finished)

    def test_thresholds_of_another_map_are_warned_of(self, finished: Finished) -> None:
        with pytest.warns(UserWarning, match="are of the map 'fused', but the map 'segmentation' is shown"):
            InpFormerPlusPlus.load_from_checkpoint(finished.checkpoint, map="segmentation")
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            loaded = load_model(finished.checkpoint)
        assert loaded.model.map == "fused"
        assert isinstance(loaded, InpFormerPlusPlus)

    # --- training -----------------------------------------------------------------------------------------------------

    def test_the_head_does_not_change_what_the_reconstruction_learns(self, model, datamodule, quiet_engine) -> None:
        def train(**kwargs: Any) -> dict[str, torch.Tensor]:
            seed_everything(0, verbose=False)
            trained = model(warmup_steps=1, **kwargs)
            # the head's own weights are drawn after those of the network
            quiet_engine(limit_val_batches=0).fit(trained, datamodule=datamodule())
            return trained.model.network.state_dict()

        with_head, without = train(), train(head=False)
        assert not [name for name, weight in without.items() if not torch.equal(weight, with_head[name])]

    def test_a_ring_teaches_the_reconstruction_and_not_the_head(self, model, datamodule, quiet_engine) -> None:
        def gradients(**arguments: float) -> tuple[dict[str, Tensor], set[str]]:
            torch.manual_seed(0)
            trained = model(**arguments)
            images = torch.rand(2, 3, *trained.pre_processor.crop_size)
            masks = torch.zeros(2, *trained.pre_processor.crop_size)
            masks[:, 16:32, 16:32] = 1
            terms = trained.pseudo_terms(ImageBatch(image=images, gt_mask=masks))
            terms["loss"].backward()
            found = {name: weight.grad for name, weight in trained.named_parameters() if weight.grad is not None}
            return found, set(terms)

        (without, terms), (beside, more) = gradients(), gradients(ring_weight=0.05)
        assert more == terms | {"ring"}
        assert all(name.startswith("model.heads.") for name in without)
        assert any(name.startswith("model.network.decoder.") for name in beside)
        assert not any(name.startswith("model.network.encoder.") for name in beside)
        for name, gradient in without.items():
            torch.testing.assert_close(beside[name], gradient)
        run = quiet_engine()
        run.fit(model(ring_weight=0.05), datamodule=datamodule())
        assert run.trainer.callback_metrics["train_ring"] > 0

    @pytest.mark.parametrize("source", [InpFormer, InpFormerPlusPlus])
    def test_the_head_alone_is_trained_on_a_finished_reconstruction(
        self, source, model, tiny_model, datamodule, quiet_engine, tmp_path: Path
    ) -> None:
        first = tiny_model(source)
        quiet_engine(tmp_path / "first").fit(first, datamodule=datamodule())
        (finished,) = (tmp_path / "first").rglob("finished.ckpt")

        trained = model(reconstruction=str(finished))
        head = {name: weight.clone() for name, weight in trained.head.named_parameters()}
        run = quiet_engine(tmp_path / "second", max_epochs=2)
        run.fit(trained, datamodule=datamodule())
        reconstruction = trained.model.network.state_dict()
        for name, weight in first.model.network.state_dict().items():
            assert torch.equal(weight, reconstruction[name]), name
        assert not [name for name, weight in trained.head.named_parameters() if torch.equal(weight, head[name])]
        assert {name for name in run.trainer.callback_metrics if name.startswith("train")} == {
            "train_segmentation",
            "train_loss",
            "train_loss_step",
            "train_loss_epoch",
        }
        # the finished model needs the first checkpoint no more
        finished.unlink()
        (own,) = (tmp_path / "second").rglob("finished.ckpt")
        loaded = InpFormerPlusPlus.load_from_checkpoint(own)
        assert torch.equal(loaded.model.network.extractor.queries, first.model.network.extractor.queries)

    def test_reconstructions_that_do_not_fit_are_refused(self, model, datamodule, quiet_engine, tmp_path: Path) -> None:
        quiet_engine(tmp_path).fit(model(head=False), datamodule=datamodule())
        (finished,) = tmp_path.rglob("finished.ckpt")
        with pytest.raises(ValueError, match="does not fit the network"):
            model(reconstruction=str(finished), num_prototypes=3)
        with pytest.raises(ValueError, match="target layers"):
            model(reconstruction=str(finished), target_layers=[1, 2])
        with pytest.raises(ValueError, match="trained on images of"):
            model(reconstruction=str(finished), image_size=80)
        with pytest.raises(FileNotFoundError, match=r"no checkpoint .*nothing\.ckpt"):
            model(reconstruction=str(tmp_path / "nothing.ckpt"))

    @pytest.mark.parametrize("cache", ["memory", "disk"])
    def test_cached_normal_images_stand_beside_new_pseudo_anomalies(
        self, model, datamodule, quiet_engine, tmp_path: Path, cache: str
    ) -> None:
        def losses(**kwargs: Any) -> list[float]:
            values = []

            class Record(Callback):
                def on_train_batch_end(
                    self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
                ) -> None:
                    assert isinstance(batch.source, PatchFeatures) == ("feature_cache" in kwargs)
                    values.append(outputs["loss"].item())

            seed_everything(0, verbose=False)
            data = datamodule()
            quiet_engine(max_epochs=2, callbacks=[Record()], limit_val_batches=0).fit(
                model(warmup_steps=1, **kwargs), datamodule=data
            )
            assert not isinstance(data.train_data, DerivedDataset)  # given back
            return values

        cached = losses(feature_cache=cache, feature_cache_dir=str(tmp_path / "cache"))
        assert len(cached) == 8
        assert cached == pytest.approx(losses(), rel=1e-5)

    def test_settings_of_the_head_without_a_head_are_refused(self, model) -> None:
        for name, value in {
            "labelled_anomalies": 3,
            "reconstruction": "finished.ckpt",
            "pseudo_textures": "textures",
        }.items():
            with pytest.raises(ValueError, match=f"{name} is for the segmentation head"):
                model(head=False, **{name: value})

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"pseudo_probability": 0.0}, "probability"),
            ({"pseudo_blend": (0.5, 0.2)}, "blend"),
            ({"pseudo_threshold": 1.0}, "threshold"),
            ({"mse_weight": -1.0}, "mse_weight -1.0"),
            ({"mse_weight": float("inf")}, "mse_weight inf"),
            ({"head_learning_rate": 0.0}, "learning_rate must be a positive number"),
            ({"ring_weight": -0.1}, "ring_weight must be a positive number"),
            ({"ring_weight": 0.05, "head": False}, "ring_weight teaches the reconstruction.*no head"),
            ({"ring_weight": 0.05, "reconstruction": "finished.ckpt"}, "ring_weight.*taken over as it is"),
            ({"labelled_anomalies": 0}, "at least 1"),
            ({"labelled_anomalies": 3, "labelled_seed": -1}, "labelled_seed must not be negative"),
            ({"head": False, "map": "fused"}, "'fused' shows the segmentation head, but head is false"),
        ],
    )
    def test_settings_that_make_no_sense_are_refused_at_once(self, model, arguments, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            model(**arguments)

    def test_only_a_training_looks_for_textures(
        self, model, datamodule, quiet_engine, data: Path, tmp_path: Path
    ) -> None:
        textures = tmp_path / "textures"
        shutil.copytree(data / "brick" / "train" / "good", textures)
        run = quiet_engine()
        run.fit(model(pseudo_textures=str(textures)), datamodule=datamodule())
        finished = Path(run.trainer.checkpoint_callback.dirpath) / "finished.ckpt"
        shutil.rmtree(textures)
        loaded = InpFormerPlusPlus.load_from_checkpoint(finished)
        assert set(quiet_engine().test(loaded, datamodule=datamodule())[0]) == SEVEN
        cached = model(pseudo_textures=str(textures), feature_cache="disk", feature_cache_dir=str(tmp_path / "cache"))
        with pytest.raises(DataError, match=f"there are none in {textures}"):
            quiet_engine().fit(cached, datamodule=datamodule())
        assert not (tmp_path / "cache").exists()  # nothing was computed for nothing

    # --- semi-supervised ----------------------------------------------------------------------------------------------

    def test_drawn_anomalies_are_trained_on_and_not_tested_on(
        self, model, datamodule, quiet_engine, caplog: pytest.LogCaptureFixture
    ) -> None:
        data = datamodule(val_split_mode="same_as_test")
        trained = model(labelled_anomalies=3)
        seen = Seen()
        with caplog.at_level("INFO"):
            quiet_engine(max_epochs=2, callbacks=[seen]).fit(trained, datamodule=data)
        drawn = set(trained.labelled.digests)
        assert len(drawn) == 3
        assert all(name in caplog.text for name in drawn)
        for dataset in (data.test_data, data.val_data):
            assert len(dataset) == 36 - 3
            assert not [path for path in dataset.samples.image_path if path.endswith(tuple(drawn))]
        # The same model again, the same data: nothing else is drawn, nothing more is taken out.
        quiet_engine().fit(trained, datamodule=data)
        assert set(trained.labelled.digests) == drawn
        assert len(data.test_data) == 33

        # The reconstruction is shown the training images alone; the head, what has been changed in them.
        assert len(seen.normal) == 2 * 5
        known = torch.stack([data.train_data[index].image for index in range(len(data.train_data))])
        for normal, pseudo, masks in zip(seen.normal, seen.pseudo, seen.masks, strict=True):
            assert all(any(torch.equal(image, other) for other in known) for image in normal)
            changed = (pseudo != normal).any(dim=1)
            assert changed[masks.bool()].float().mean() > 0.9
            assert changed[~masks.bool()].float().mean() < 0.02  # soft edges of pasted defects

    def test_a_checkpoint_knows_what_not_to_test_on(self, model, datamodule, quiet_engine, tmp_path: Path) -> None:
        quiet_engine(tmp_path).fit(model(labelled_anomalies=3), datamodule=datamodule())
        (finished,) = tmp_path.rglob("finished.ckpt")
        data = datamodule()
        other = model()  # as `anomalib test` builds it, with no word about labelled anomalies
        quiet_engine().test(other, datamodule=data, ckpt_path=finished)
        assert len(data.test_data) == 33
        data = datamodule()
        quiet_engine().test(InpFormerPlusPlus.load_from_checkpoint(finished), datamodule=data)
        assert len(data.test_data) == 33

    def test_a_resumed_training_tests_on_neither_draw(self, model, datamodule, quiet_engine) -> None:
        run = quiet_engine(limit_val_batches=0)
        run.fit(model(labelled_anomalies=3), datamodule=datamodule())
        stopped = Path(run.trainer.checkpoint_callback.dirpath) / "model.ckpt"
        data, other = datamodule(), model(labelled_anomalies=3, labelled_seed=1)
        run = quiet_engine(max_epochs=2, limit_val_batches=0)
        run.fit(other, datamodule=data, ckpt_path=stopped)
        both = set(other.labelled.digests)
        assert len(both) > 3
        assert len(data.test_data) == 36 - len(both)
        again = datamodule()
        finished = Path(run.trainer.checkpoint_callback.dirpath) / "finished.ckpt"
        quiet_engine().test(InpFormerPlusPlus.load_from_checkpoint(finished), datamodule=again)
        assert len(again.test_data) == 36 - len(both)

    def test_data_without_masks(self, model, quiet_engine, data: Path) -> None:
        folder = Folder(
            "brick",
            root=data / "brick",
            normal_dir="train/good",
            normal_test_dir="test/good",
            abnormal_dir="test/hole",
            num_workers=0,
            train_batch_size=8,
        )
        with pytest.raises(DataError, match="need masks"):
            quiet_engine().fit(model(labelled_anomalies=2), datamodule=folder)
        # without labelled anomalies such data are as good as any
        (results,) = quiet_engine().train(model(), datamodule=folder)
        assert set(results) == {name for name in SEVEN if name.startswith("image")}
