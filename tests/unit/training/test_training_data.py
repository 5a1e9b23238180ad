# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What stands in for the training images: in which order it comes, what a batch holds, what comes back."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from anomalib.data import ImageBatch, MVTecAD
from anomalib.engine import Engine
from anomalib.pre_processing import PreProcessor
from lightning import Callback, seed_everything
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_inp import InpFormer
from anomalib_inp.data.file_checks import DataError
from anomalib_inp.data.labelled import LabelledAnomalies
from anomalib_inp.data.pseudo_anomaly import PseudoAnomaly
from anomalib_inp.outputs import PatchFeatures, TrainingBatch
from anomalib_inp.preprocessing import IMAGENET_MEAN, IMAGENET_STD, InpPreProcessor
from anomalib_inp.training import training_data
from anomalib_inp.training.feature_cache import CachedFeatures, FeatureCache
from anomalib_inp.training.training_data import DerivedDataset, TrainingData

SIDE = 32


@pytest.fixture(scope="module")
def root(write_small_sample: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_sample(tmp_path_factory.mktemp("data"), categories=("brick",))


@pytest.fixture
def data(root: Path) -> MVTecAD:
    images = MVTecAD(root, "brick", 4, num_workers=0, augmentations=Resize((SIDE, SIDE)))
    images.setup()
    return images


class Cache(FeatureCache):
    """Keeps the number of each image instead of features."""

    def features_of(self, images: Any, trainer: Any, pl_module: Any) -> CachedFeatures:
        del trainer, pl_module
        return CachedFeatures(torch.arange(len(images) * 2.0).view(-1, 2, 1, 1), (1, 1))


def set_up(data: Any, **parts: Any) -> tuple[TrainingData, Any]:
    owner, trainer = TrainingData(**parts), SimpleNamespace(datamodule=data)
    owner.setup(trainer, SimpleNamespace(), "fit")
    return owner, trainer


# --- the owner --------------------------------------------------------------------------------------------------------


def test_labelled_comes_first_then_the_cache_then_pseudo_anomalies(
    data: MVTecAD, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def noted(owner: Any, name: str) -> None:
        method = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given: (order.append(name), method(*given))[1])

    labelled, cache, images, tested = LabelledAnomalies(1), Cache("memory"), data.train_data, len(data.test_data)
    noted(training_data, "texture_files")
    noted(labelled, "find")
    noted(labelled, "take_out")
    noted(cache, "features_of")
    pseudo = PseudoAnomaly(probability=1)
    parts = {"labelled": labelled, "cache": cache, "pseudo_anomaly": pseudo, "textures": root / "brick/train"}
    owner, trainer = set_up(data, **parts)
    assert order == ["texture_files", "find", "take_out", "features_of"]
    assert len(data.test_data) == tested - 1
    derived = data.train_data
    assert derived.images is images
    assert derived.samples is images.samples
    assert derived.pseudo_anomaly.defects == labelled.defects
    assert len(derived.pseudo_anomaly.textures) == 8
    assert pseudo.defects == pseudo.textures == []  # nothing of a training is saved with the model
    owner.teardown(trainer, SimpleNamespace(), "test")
    assert data.train_data is derived
    owner.teardown(trainer, SimpleNamespace(), "fit")
    assert data.train_data is images


def test_nothing_stands_in_for_what_is_trained_on_as_it_is(data: MVTecAD) -> None:
    images = data.train_data
    set_up(data)
    set_up(None)  # a plain DataLoader
    owner, trainer = set_up(data, labelled=LabelledAnomalies())
    owner.on_exception(trainer, SimpleNamespace(), RuntimeError())
    assert data.train_data is images


def test_only_a_training_replaces_images(data: MVTecAD) -> None:
    images, labelled = data.train_data, LabelledAnomalies(1)
    owner = TrainingData(Cache("memory"), PseudoAnomaly(), "no such folder", labelled)
    owner.setup(SimpleNamespace(datamodule=data), SimpleNamespace(), "test")
    assert data.train_data is images
    assert not labelled.digests


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"cache": Cache("memory"), "pseudo_anomaly": PseudoAnomaly()}, "The feature cache needs .*feature_cache off"),
        ({"pseudo_anomaly": PseudoAnomaly()}, "Pseudo-anomalies need a data module .*--model.head false"),
    ],
)
def test_what_stands_in_needs_the_images_of_a_data_module(parts: dict[str, Any], message: str) -> None:
    collates = SimpleNamespace(train_data=[0], external_collate_fn=lambda items: items)
    for images in (None, collates):
        with pytest.raises(DataError, match=message):
            set_up(images, **parts)


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("pseudo", [False, True])
def test_a_batch_holds_the_source_and_what_stands_beside_it(data: MVTecAD, cached: bool, pseudo: bool) -> None:
    features = Cache("memory").features_of(data.train_data, None, None) if cached else None
    dataset = DerivedDataset(data.train_data, features, PseudoAnomaly(probability=1) if pseudo else None)
    (batch,) = DataLoader(dataset, 3, sampler=[5, 0, 2], collate_fn=dataset.collate_fn)
    images = torch.stack([data.train_data[index].image for index in (5, 0, 2)])
    assert batch.source.batch_size == 3
    if cached:
        assert isinstance(batch.inputs, PatchFeatures)
        assert batch.source.groups[0].flatten().tolist() == [10, 0, 4]
    else:
        assert torch.equal(batch.inputs, images)
    assert [part.image.shape for part in batch.images] == [(3, 3, SIDE, SIDE)] * (2 - cached - (not pseudo))
    assert (batch.pseudo is None) == (not pseudo)
    if pseudo:
        changed = (batch.pseudo.image != images).any(dim=1)
        assert changed.flatten(1).any(dim=1).tolist() == batch.pseudo.gt_label.tolist()
        assert batch.pseudo.gt_label.any()


def test_what_a_loader_gives_becomes_a_training_batch_once() -> None:
    images = ImageBatch(image=torch.rand(2, 3, 4, 4))
    batch = TrainingBatch.of(images)
    assert batch.source is images
    assert batch.pseudo is None
    assert TrainingBatch.of(batch) is batch


@pytest.mark.parametrize("pseudo", [None, ImageBatch(image=torch.rand(2, 3, 4, 4))])
def test_a_batch_moves_to_a_device_with_all_it_holds(
    pseudo: ImageBatch | None, tiny_model: Callable[..., InpFormer]
) -> None:
    model = tiny_model()
    sources = (ImageBatch(image=torch.rand(2, 3, 4, 4)), PatchFeatures([torch.rand(2, 1, 4)] * 2, (1, 1)))
    for source in sources:
        moved = model.transfer_batch_to_device(TrainingBatch(source, pseudo), torch.device("meta"), 0)
        assert isinstance(moved, TrainingBatch)
        inputs = moved.inputs.groups if isinstance(moved.inputs, PatchFeatures) else [moved.inputs]
        assert all(tensor.device.type == "meta" for tensor in inputs)
        assert (moved.pseudo is None) == (pseudo is None)
        assert pseudo is None or moved.pseudo.image.device.type == "meta"


def test_both_parts_are_transformed_and_features_are_not() -> None:
    pre_processor, image = InpPreProcessor((4, 4)), torch.rand(2, 3, 8, 8)
    expected = pre_processor.transform(image)
    features = PatchFeatures([torch.rand(2, 1, 4)] * 2, (1, 1))
    for source in (ImageBatch(image=image), features):
        batch = TrainingBatch(source, ImageBatch(image=image, gt_mask=torch.ones(2, 8, 8)))
        pre_processor.on_train_batch_start(SimpleNamespace(), SimpleNamespace(), batch, 0)
        assert torch.equal(batch.pseudo.image, expected)
        assert batch.pseudo.gt_mask.shape == (2, 4, 4)
        assert batch.source is features or torch.equal(batch.source.image, expected)


# --- other ways to train ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["loader", "collate function", "anomalib's pre-processor"])
def test_plain_images_are_trained_on_whoever_loads_them(
    way: str, root: Path, tiny_model: Callable[..., InpFormer], quiet_engine: Callable[..., Engine]
) -> None:
    losses: list[float] = []

    class Record(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
            losses.append(outputs["loss"].item())

    def train(way: str) -> list[float]:
        losses.clear()
        seed_everything(0, verbose=False)
        images = MVTecAD(root, "brick", 4, num_workers=0, val_split_mode="none", augmentations=Resize((64, 64)))
        arguments: dict[str, Any] = {}
        if way == "anomalib's pre-processor":
            steps = [Resize((64, 64), antialias=True), Normalize(IMAGENET_MEAN, IMAGENET_STD)]
            arguments = {"pre_processor": PreProcessor(Compose(steps))}
        model = tiny_model(**arguments)
        given: dict[str, Any] = {"datamodule": images}
        images.setup()
        if way == "loader":
            loader = DataLoader(images.train_data, 4, shuffle=True, collate_fn=images.train_data.collate_fn)
            given = {"train_dataloaders": loader}
        elif way == "collate function":
            images.external_collate_fn = ImageBatch.collate
        quiet_engine(callbacks=[Record()], limit_val_batches=0).fit(model, **given)
        return list(losses)

    expected = train("data module")
    assert len(expected) == 2
    assert train(way) == pytest.approx(expected, rel=1e-5)
