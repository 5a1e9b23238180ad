# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Images of 16 bits are the images of 8 bits times 257, wherever the Engine reads them."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.data import Folder, MVTecAD, PredictDataset
from part import pixels, write, write_part
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision.transforms.v2 import RandomHorizontalFlip

from anomalib_inp.data import MultiCategory
from anomalib_inp.data.deep import DeepImages, with_deep_images
from anomalib_inp.data.file_checks import DataError
from anomalib_inp.data.labelled import LabelledAnomalies
from anomalib_inp.data.pseudo_anomaly import read_texture

Make = Callable[..., Any]
IMAGES = ("train/good", "test/good", "test/dent")


@pytest.fixture
def roots(tmp_path: Path) -> tuple[Path, Path]:
    """A data set with images of 8 bits, and its twin with some of 16."""
    eight, sixteen = write_part(tmp_path / "eight"), tmp_path / "sixteen"
    shutil.copytree(eight, sixteen)
    for folder in IMAGES:
        write(
            sixteen / "part" / folder / "000.png", np.asarray(Image.open(eight / "part" / folder / "000.png")) * DEEPER
        )
    return eight, sixteen


DEEPER = np.uint16(257)
SETTINGS = {"category": "part", "num_workers": 0, "train_batch_size": 1, "val_split_mode": "same_as_test"}


def images_of(dataset: Any) -> torch.Tensor:
    return torch.stack([dataset[index].image for index in range(len(dataset))])


def test_the_pixels_are_the_same_and_the_rest_is_as_it_was(roots: tuple[Path, Path]) -> None:
    eight, sixteen = (MVTecAD(root=root, **SETTINGS) for root in roots)
    for module in (eight, sixteen):
        module.setup()
    for name in ("train_data", "test_data"):
        ours, theirs = with_deep_images(getattr(sixteen, name)), getattr(eight, name)
        assert isinstance(ours, DeepImages)
        torch.testing.assert_close(images_of(ours), images_of(theirs), atol=1e-6, rtol=0)
        assert not torch.equal(images_of(getattr(sixteen, name)), images_of(theirs)), "anomalib reads them by now"
        for index in range(len(ours)):
            ours_item, their_item = ours[index], theirs[index]
            torch.testing.assert_close(ours_item.gt_mask, their_item.gt_mask)
            assert ours_item.gt_label == their_item.gt_label
        assert (ours.name, ours.task, len(ours)) == (theirs.name, theirs.task, len(theirs))
        few = ours.subsample([1])
        torch.testing.assert_close(few[0].image, ours[1].image)


def test_augmentations_come_after_reading(roots: tuple[Path, Path]) -> None:
    flipped = []
    for root in roots:
        module = MVTecAD(root=root, **SETTINGS, augmentations=RandomHorizontalFlip(1.0))
        module.setup()
        flipped.append(with_deep_images(module.test_data))
    for index in range(len(flipped[0])):
        eight, sixteen = (dataset[index] for dataset in flipped)
        torch.testing.assert_close(sixteen.image, eight.image, atol=1e-6, rtol=0)
        torch.testing.assert_close(sixteen.gt_mask, eight.gt_mask)


def test_a_data_set_of_8_bits_stays_as_it_is(roots: tuple[Path, Path]) -> None:
    module = MVTecAD(root=roots[0], **SETTINGS)
    module.setup()
    assert with_deep_images(module.train_data) is module.train_data


@pytest.mark.parametrize("cache", ["off", "memory"])
def test_training_and_testing_are_the_same(
    roots: tuple[Path, Path], tiny_model: Make, quiet_engine: Make, cache: str, caplog: pytest.LogCaptureFixture
) -> None:
    results = []
    for root in roots:
        torch.manual_seed(0)
        model, module = tiny_model(feature_cache=cache), MVTecAD(root=root, **SETTINGS)
        engine = quiet_engine(max_epochs=2)
        with caplog.at_level(logging.INFO):
            engine.fit(model, datamodule=module)
            (metrics,) = engine.test(model, datamodule=module)
        results.append((model.post_processor.image_threshold.item(), metrics))
    assert results[1][0] == pytest.approx(results[0][0], abs=1e-4)
    assert results[1][1] == pytest.approx(results[0][1], abs=1e-3, nan_ok=True)
    said = [record.getMessage() for record in caplog.records if "16 bits per pixel" in record.getMessage()]
    assert len(said) == 2  # in training and in the test of one of them
    assert "000.png for one: they are scaled by their whole range" in said[0]


def test_predictions_by_folder_and_by_data_module_are_the_same(
    roots: tuple[Path, Path], tiny_model: Make, quiet_engine: Make
) -> None:
    model, engine = tiny_model(), quiet_engine()

    def scores(**arguments: Any) -> list[float]:
        batches = engine.predict(model, return_predictions=True, **arguments)
        return [float(score) for batch in batches for score in batch.pred_score]

    expected = scores(data_path=roots[0] / "part/test")
    assert len(expected) == 4
    assert scores(data_path=roots[1] / "part/test") == pytest.approx(expected, abs=1e-5)
    assert scores(data_path=roots[1] / "part/test/dent/000.png") == pytest.approx(expected[:1], abs=1e-5)
    assert scores(dataset=PredictDataset(roots[1] / "part/test")) == pytest.approx(expected, abs=1e-5)
    assert scores(datamodule=MVTecAD(root=roots[1], **SETTINGS)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("content", ["no image", "float"])
def test_a_prediction_names_what_is_no_image(
    tmp_path: Path, tiny_model: Make, quiet_engine: Make, content: str
) -> None:
    write(tmp_path / "images/0.png", pixels())
    path = tmp_path / ("images/1.png" if content == "no image" else "images/1.tif")
    path.write_text(content)
    if content == "float":
        Image.fromarray(np.ones((40, 40), np.float32)).save(path)
    with pytest.raises(DataError, match=rf"Files are no images that can be used: .*{path.name} \("):
        quiet_engine().predict(tiny_model(), data_path=tmp_path / "images")


def test_a_prediction_names_a_truncated_image(tmp_path: Path, tiny_model: Make, quiet_engine: Make) -> None:
    path = write(tmp_path / "images/0.png", pixels())
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"Images cannot be decoded: .*0\.png"):
        quiet_engine().predict(tiny_model(), data_path=tmp_path / "images")


def test_few_shot_views_and_many_categories(roots: tuple[Path, Path], tiny_model: Make, quiet_engine: Make) -> None:
    losses = []
    for root in roots:
        module = MultiCategory(
            "MVTecAD", str(root), ["part"], shots=2, num_workers=0, train_batch_size=4, val_split_mode="same_as_test"
        )
        torch.manual_seed(0)
        model, engine = tiny_model(), quiet_engine(max_epochs=1)
        engine.fit(model, datamodule=module)
        (metrics,) = engine.test(model, datamodule=module)
        losses.append(metrics)
        if root == roots[1]:
            assert module.train_data.views.max() < 1.1
            assert module.train_data.views.std() > 0.05
    assert losses[1] == pytest.approx(losses[0], abs=1e-3, nan_ok=True)


def test_labelled_anomalies(roots: tuple[Path, Path]) -> None:
    cut = []
    for root in roots:
        module = MVTecAD(root=root, **SETTINGS)
        module.setup()
        labelled = LabelledAnomalies(2, seed=0)
        labelled.find(module)
        cut.append(sorted(float(defect.image.mean()) for defect in labelled.defects))
    assert cut[1] == pytest.approx(cut[0], abs=1e-5)


def test_textures(tmp_path: Path) -> None:
    eight = write(tmp_path / "8.png", pixels())
    sixteen = write(tmp_path / "16.png", pixels() * DEEPER)
    torch.testing.assert_close(read_texture(sixteen, [32, 40]), read_texture(eight, [32, 40]), atol=0.005, rtol=0)


def test_folders_of_any_name(roots: tuple[Path, Path], tiny_model: Make, quiet_engine: Make) -> None:
    results = []
    for root in roots:
        module = Folder(
            name="part",
            root=root / "part",
            normal_dir="train/good",
            abnormal_dir="test/dent",
            mask_dir="ground_truth/dent",
            normal_test_dir="test/good",
            num_workers=0,
            val_split_mode="same_as_test",
        )
        torch.manual_seed(0)
        (metrics,) = quiet_engine().test(tiny_model(), datamodule=module)
        results.append(metrics)
    assert results[1] == pytest.approx(results[0], abs=1e-4, nan_ok=True)


def test_plain_loaders_are_read_by_their_range_as_well(
    roots: tuple[Path, Path], tiny_model: Make, quiet_engine: Make
) -> None:
    thresholds, scores = [], []
    for root in roots:
        module = MVTecAD(root=root, **SETTINGS)
        module.setup()
        collate = module.train_data.collate_fn
        part = Subset(module.test_data, range(4))
        train, test = (DataLoader(images, batch_size=2, collate_fn=collate) for images in (module.train_data, part))
        torch.manual_seed(0)
        model = tiny_model()
        quiet_engine().fit(model, train_dataloaders=train, val_dataloaders=test)
        thresholds.append(model.post_processor.image_threshold.item())
        batches = quiet_engine().predict(model, dataloaders=test, return_predictions=True)
        scores.append([float(score) for batch in batches for score in batch.raw_score])
    assert thresholds[1] == pytest.approx(thresholds[0], abs=1e-4)
    assert scores[1] == pytest.approx(scores[0], abs=1e-4)
