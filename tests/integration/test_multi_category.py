# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Many categories through the Engine: results, pictures and thresholds of each."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.data import PredictDataset
from lightning import Callback
from torch.utils.data import DataLoader

from anomalib_inp import InpFormer, InpFormerPlusPlus, InpPostProcessor, MultiCategory
from anomalib_inp.checkpoints import edit
from anomalib_inp.data.few_shot import NUM_VIEWS, few_shot_views
from anomalib_inp.data.file_checks import DataError
from anomalib_inp.data.sample import CATEGORIES
from anomalib_inp.outputs import PatchFeatures, TrainingBatch
from anomalib_inp.runtime.edit import set_thresholds as move_export
from anomalib_inp.runtime.metadata import read_metadata
from anomalib_inp.runtime.model import ExportedModel


@pytest.fixture(scope="module")
def root(write_small_sample: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_sample(tmp_path_factory.mktemp("multi"))


@pytest.fixture
def data(root: Path) -> Callable[..., MultiCategory]:
    def make(**kwargs: Any) -> MultiCategory:
        batches = {"train_batch_size": 4, "eval_batch_size": 4, "num_workers": 0}
        return MultiCategory("MVTecAD", str(root), **{**batches, **kwargs})

    return make


class Batches(Callback):
    """Keeps what a training is shown."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(batch)


def test_results_pictures_and_thresholds_of_each_category(data, tiny_model, quiet_engine) -> None:
    images = data(val_split_mode="from_train", val_split_ratio=0.5)
    trained = tiny_model(visualizer=True)
    run = quiet_engine()
    run.fit(trained, datamodule=images)
    (results,) = run.test(trained, datamodule=images)
    assert {name.split("/")[0] for name in results if "/" in name} == set(CATEGORIES)
    folder = Path(run.trainer.default_root_dir)
    with (folder / "metrics.csv").open() as file:
        rows = {row["category"]: row for row in csv.DictReader(file)}
    assert list(rows) == [*sorted(CATEGORIES), "mean"]
    assert float(rows["mean"]["image_AUROC"]) == pytest.approx(results["image_AUROC"])
    assert json.loads((folder / "metrics.json").read_text())["brick"]["pixel_AP"] == pytest.approx(
        results["brick/pixel_AP"]
    )
    pictures = list((folder / "images").rglob("*.png"))
    assert len(pictures) == len(images.test_data)  # none has replaced another

    assert list(trained.post_processor.ranges) == sorted(CATEGORIES)
    finished = Path(run.trainer.checkpoint_callback.dirpath) / "finished.ckpt"
    loaded = InpFormer.load_from_checkpoint(finished)
    assert loaded.post_processor.ranges == trained.post_processor.ranges
    assert loaded.post_processor.category is None

    # An image is read by the thresholds of its category; one from elsewhere by those of the category that is chosen.
    predicted = quiet_engine().predict(loaded, datamodule=images)
    batch = next(batch for batch in predicted if "/grass/" in batch.image_path[0])
    alone = PredictDataset(batch.image_path[0])
    scores = []
    for category in ("grass", "brick"):
        loaded.post_processor.category = category
        scores.append(quiet_engine().predict(loaded, dataset=alone)[0].pred_score.item())
    assert scores[0] == pytest.approx(batch.pred_score[0].item(), abs=1e-5)
    assert scores[1] != scores[0]


def test_a_validation_chooses_thresholds_anew_for_what_it_sees(
    data, tiny_model, quiet_engine, recwarn: pytest.WarningsRecorder
) -> None:
    trained = tiny_model()
    run = quiet_engine()
    two = data(categories=["brick", "grass"], val_split_mode="from_train", val_split_ratio=0.5)
    run.fit(trained, datamodule=two)
    ranges = dict(trained.post_processor.ranges)
    # on the test images now, so that thresholds differ
    run.validate(trained, datamodule=data(categories=["grass"], val_split_mode="same_as_test"))
    assert trained.post_processor.ranges["brick"] == ranges["brick"]
    assert trained.post_processor.ranges["grass"] != ranges["grass"]
    assert trained.post_processor.ranges["grass"][0].threshold == pytest.approx(trained.post_processor.image_threshold)

    def warned() -> list[str]:
        return [text for warning in recwarn if "no thresholds of" in (text := str(warning.message))]

    run.test(trained, datamodule=two)
    assert not warned()
    run.test(trained, datamodule=data())
    (text,) = warned()
    assert "There are no thresholds of gravel: labels and masks are by those of all categories together" in text

    # Trained on, the thresholds of the others are of weights that are gone.
    quiet_engine().fit(trained, datamodule=data(categories=["grass"], val_split_mode="same_as_test"))
    assert list(trained.post_processor.ranges) == ["grass"]


@pytest.mark.parametrize(
    ("category", "categories", "message"),
    [
        ("nut", ["brick", "grass"], "no thresholds of the category 'nut': the validation images are of brick, grass"),
        ("brick", ["brick"], "the validation images are of one category, whose thresholds are the common ones"),
    ],
)
def test_a_category_without_thresholds_is_refused_before_the_training(
    category: str, categories: list[str], message: str, data, tiny_model, quiet_engine
) -> None:
    trained = tiny_model(post_processor=InpPostProcessor(category=category))
    images = data(categories=categories, val_split_mode="from_train", val_split_ratio=0.5)
    seen = Batches()
    for start in ("fit", "validate"):
        with pytest.raises(ValueError, match=message):
            getattr(quiet_engine(callbacks=[seen]), start)(trained, datamodule=images)
    assert not seen.seen
    with pytest.raises(ValueError, match="per_category=False chooses none"):
        InpPostProcessor(category=category, per_category=False)


def test_zero_shot_by_what_was_learnt_is_called_out(
    data, tiny_model, quiet_engine, recwarn: pytest.WarningsRecorder
) -> None:
    def warned(shown: str, **kwargs: Any) -> bool:
        recwarn.clear()
        quiet_engine(max_steps=1).fit(tiny_model(map=shown), datamodule=data(**kwargs))
        return any("None of the tested categories was trained on" in str(warning.message) for warning in recwarn)

    apart = {"train_on": ["brick", "grass"], "test_on": ["gravel"]}
    assert warned("reconstruction", **apart)
    assert not warned("prototype_distance", **apart)
    assert not warned("self_distance", **apart)
    assert not warned("reconstruction")


def test_few_shot_trains_on_the_views(data, tiny_model, quiet_engine) -> None:
    seen = Batches()
    images = data(shots=1, val_split_mode="none")
    run = quiet_engine(callbacks=[seen])
    trained = tiny_model()
    run.fit(trained, datamodule=images)
    assert len(seen.seen) == 3 * NUM_VIEWS // 4
    drawn = images.train_data.samples.drop_duplicates("image_path")
    assert len(drawn) == 3
    shown = torch.cat([batch.image for batch in seen.seen])
    (path, *_) = drawn.image_path
    raw = PredictDataset(path)[0].image
    expected = few_shot_views(trained.pre_processor.transform(raw))
    found = [min(float((view - other).abs().max()) for other in shown) < 1e-5 for view in expected]
    assert sum(found) >= NUM_VIEWS - 2  # an incomplete batch is dropped


def test_few_shots_are_drawn_by_seed_and_fewer_are_among_more(data) -> None:
    def drawn(shots: int, seed: int) -> dict[str, set[str]]:
        images = data(shots=shots, seed=seed, val_split_mode="none")
        images.setup()
        samples = images.train_data.samples
        return {name: set(rows.image_path) for name, rows in samples.groupby("category")}

    for seed in range(4):
        one, two, four = (drawn(shots, seed) for shots in (1, 2, 4))
        assert [len(paths) for shots in (one, two, four) for paths in shots.values()] == [1] * 3 + [2] * 3 + [4] * 3
        assert all(one[name] < two[name] < four[name] for name in one)
    assert len({str(sorted(drawn(1, seed).items())) for seed in range(4)}) > 1


def test_a_model_of_another_frame_is_given_views_of_its_own(data, tiny_model, quiet_engine) -> None:
    images = data(shots=1)
    views = []
    for size in (64, 64, 80):
        quiet_engine(limit_val_batches=0).fit(tiny_model(image_size=size), datamodule=images)
        views.append(images.train_data.views)
    assert views[0] is views[1]  # made once
    assert views[2].shape == (3 * NUM_VIEWS, 3, 80, 80)


@pytest.mark.parametrize("store", ["memory", "disk"])
def test_views_are_cached_as_features(store: str, data, tiny_model, quiet_engine, tmp_path: Path) -> None:
    def losses(**kwargs: Any) -> list[float]:
        images = data(shots=1)
        trained = tiny_model(warmup_steps=1, **kwargs)
        torch.manual_seed(0)
        values = []

        class Record(Callback):
            def on_train_batch_end(
                self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
            ) -> None:
                assert isinstance(TrainingBatch.of(batch).inputs, PatchFeatures) == bool(kwargs)
                values.append(outputs["loss"].item())

        run = quiet_engine(max_epochs=2, limit_val_batches=0, callbacks=[Record()])
        run.fit(trained, datamodule=images)
        return values

    torch.manual_seed(0)
    plain = losses()
    assert len(plain) == 2 * (3 * NUM_VIEWS // 4)
    torch.manual_seed(0)
    assert losses(feature_cache=store, feature_cache_dir=str(tmp_path / "cache")) == pytest.approx(plain, rel=1e-4)


def test_few_shot_with_a_head_and_labelled_anomalies(data, tiny_model, quiet_engine) -> None:
    images = data(shots=2)
    run = quiet_engine(limit_val_batches=0)
    trained = tiny_model(InpFormerPlusPlus, labelled_anomalies=1)
    before = len(data_of(images))
    run.fit(trained, datamodule=images)
    assert len(trained.labelled.digests) == 3  # one of each category
    assert len(images.test_data) == before - 3


def data_of(images: MultiCategory) -> Any:
    images.setup()
    return images.test_data


def test_views_need_a_model_of_ours(data, tiny_model, quiet_engine) -> None:
    with pytest.raises(DataError, match="needs a model with InpPreProcessor"):
        quiet_engine().fit(tiny_model(pre_processor=False), datamodule=data(shots=1))


def test_thresholds_by_hand_are_those_of_the_chosen_category(data, tiny_model, quiet_engine, tmp_path: Path) -> None:
    """In a model, in its checkpoint and in an export, which says the same with and without its name."""
    images = data(val_split_mode="from_train", val_split_ratio=0.5)
    model = tiny_model(target_layers=[1, 2], post_processor=InpPostProcessor(category="grass"))
    run = quiet_engine()
    run.fit(model, datamodule=images)
    others = {name: scales for name, scales in model.post_processor.ranges.items() if name != "grass"}
    model.post_processor.set_thresholds(image=0.77)
    assert float(model.post_processor.scale("image").threshold) == pytest.approx(0.77)

    finished = Path(run.trainer.checkpoint_callback.dirpath) / "finished.ckpt"
    assert edit.set_thresholds(finished, image=0.66).image == pytest.approx(0.66)
    loaded = InpFormer.load_from_checkpoint(finished).eval()
    exported = loaded.to_openvino(tmp_path)
    assert read_metadata(exported).image.threshold == pytest.approx(0.66)

    move_export(exported, image=0.55)
    metadata = read_metadata(exported)
    assert metadata.image.threshold == metadata.of_category("grass").image.threshold == pytest.approx(0.55)
    for name, scales in others.items():
        assert metadata.categories[name][0].threshold == pytest.approx(float(scales[0].threshold))
    image = np.full((40, 50, 3), 90, np.uint8)
    plain, named = (ExportedModel(exported, category=category)(image) for category in (None, "grass"))
    np.testing.assert_allclose(plain.pred_score, named.pred_score, atol=1e-6)
    move_export(exported, image=0.44, category="grass")
    assert read_metadata(exported).image.threshold == pytest.approx(0.44)


def test_scales_of_categories_do_not_outlive_their_weights(data, tiny_model, quiet_engine) -> None:
    images = data(val_split_mode="from_train", val_split_ratio=0.5)
    model = tiny_model()
    quiet_engine().fit(model, datamodule=images)
    assert list(model.post_processor.ranges) == sorted(CATEGORIES)
    collate = images.train_data.collate_fn
    train, val = (DataLoader(part, batch_size=4, collate_fn=collate) for part in (images.train_data, images.val_data))
    quiet_engine().fit(model, train_dataloaders=train, val_dataloaders=val)
    assert model.post_processor.ranges == {}
