# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from pandas import DataFrame
from PIL import Image
from torch.nn.functional import avg_pool2d, cosine_similarity
from torch.utils.data import DataLoader

from anomalib_inp import InpFormer, InpFormerPlusPlus, MultiCategory, TokenMemory
from anomalib_inp.data.file_checks import DataError
from anomalib_inp.encoder.frozen import Windows, default_target_layers, windows
from anomalib_inp.outputs import PatchFeatures
from anomalib_inp.scoring.memory import NormalMemory
from anomalib_inp.training.memory_fill import MemoryFill, _numbers

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def data(write_small_sample: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_sample(tmp_path_factory.mktemp("data"), categories=("brick",))


@pytest.fixture
def datamodule(data: Path) -> Make:
    return partial(
        MVTecAD,
        data,
        "brick",
        train_batch_size=4,
        num_workers=0,
        val_split_mode="same_as_test",
        test_split_mode="from_dir",
    )


@pytest.fixture
def fitted(tiny_model: Make, quiet_engine: Make, datamodule: Make) -> Make:
    def make(kind: type = TokenMemory, **kwargs: Any) -> Any:
        torch.manual_seed(3)
        size = {"memory_size": 20} if kind is TokenMemory or "memory" in kwargs else {}
        model = tiny_model(kind, **size | kwargs)
        torch.manual_seed(4)
        quiet_engine(limit_val_batches=0).fit(model, datamodule=datamodule())
        return model

    return make


def memory_of(model: Any) -> NormalMemory:
    return model.model.head_of(NormalMemory)


def test_every_image_is_compared_with_all_others_and_never_with_itself(fitted: Make, datamodule: Make) -> None:
    """Statistics by hand: all tokens of 8 images are remembered, and each image is left out in turn."""
    memory = memory_of(model := fitted(memory_size=10_000, depths="equal"))
    images = datamodule()
    images.setup()
    encoder, transform = model.model.network.encoder, model.pre_processor.transform
    with torch.no_grad():
        encoded = [encoder(transform(images.train_data[i].image.unsqueeze(0))).depths for i in range(8)]
    assert memory.tokens.shape == (len(encoded[0]), 8 * 16, 64 + 1)
    for depth in range(len(encoded[0])):
        tokens = torch.stack([image[depth][0] for image in encoded])  # (8, 16, 64)
        distances = []
        for left_out in range(8):
            others = torch.cat([tokens[other] for other in range(8) if other != left_out])
            cosines = cosine_similarity(tokens[left_out].unsqueeze(1), others.unsqueeze(0), dim=-1)
            cosine, squared = 1 - cosines.max(dim=1).values, torch.cdist(tokens[left_out], others).amin(dim=1) ** 2
            distances.append(torch.stack([cosine, squared if depth >= 2 else cosine]))
        expected = torch.stack(distances)  # (8, 2, 16)
        mean, spread = expected.mean(dim=(0, 2)), expected.std(dim=(0, 2))
        for found, value in ((memory.mean[depth], mean), (memory.spread[depth], spread)):
            assert found[0].item() == pytest.approx(value[0].item(), abs=2e-4)
            assert found[1].item() == pytest.approx(value[1].item(), rel=2e-3, abs=2e-4)
    torch.testing.assert_close(memory.weights, torch.full((len(encoded[0]),), 1 / len(encoded[0])))
    assert memory.average_precision.isnan().all()


@pytest.mark.parametrize("kind", [InpFormer, InpFormerPlusPlus])
def test_a_cache_fills_the_same_memory(fitted: Make, kind: type, tmp_path: Path) -> None:
    plain = memory_of(fitted(kind, memory=True)).state_dict()
    for store in ("memory", "disk", "disk"):
        cached = fitted(kind, memory=True, feature_cache=store, feature_cache_dir=str(tmp_path))
        for name, value in memory_of(cached).state_dict().items():
            torch.testing.assert_close(value, plain[name], rtol=0, atol=2e-3, msg=f"{store} {name}")
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def test_the_training_is_the_same_with_and_without_a_memory(fitted: Make) -> None:
    without, beside = fitted(InpFormer).model.network, fitted(InpFormer, memory=True).model.network
    for name, weight in without.state_dict().items():
        assert torch.equal(weight, beside.state_dict()[name]), name


def test_depths_that_see_pseudo_anomalies_are_heavier(
    tiny_model: Make, quiet_engine: Make, datamodule: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an encoder whose first depth is the colour of a patch, and whose second is noise."""
    model = tiny_model(TokenMemory, memory_size=200)
    encoder = model.model.network.encoder

    def encode(images: torch.Tensor) -> PatchFeatures:
        colour = avg_pool2d(images, 4).flatten(2).transpose(1, 2)  # (B, 256, 3)
        return PatchFeatures([torch.randn_like(colour)], (16, 16), [colour])

    monkeypatch.setattr(encoder, "forward", encode)
    monkeypatch.setattr(type(encoder), "depth_names", property(lambda _: ["colour", "noise"]))
    quiet_engine(limit_val_batches=0).fit(model, datamodule=datamodule())
    memory = memory_of(model)
    assert memory.average_precision[0] > 2 * memory.average_precision[1]
    assert memory.weights[0] > 0.95
    assert memory.describe(["colour", "noise"]).startswith(
        "Weights of the depths (pixel AP on pseudo-anomalies): colour"
    )


def test_weights_can_be_given(fitted: Make) -> None:
    memory = memory_of(fitted(depths=[1, 0, 0, 3]))
    assert memory.weights.tolist() == [0.25, 0, 0, 0.75]


def test_views_of_an_image_go_together_and_those_of_one_alone_do_not(
    tiny_model: Make, quiet_engine: Make, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for shots, said in ((1, "20 tokens of 22 views of 1 images"), (2, "20 tokens of 44 views of 2 images")):
        images = MultiCategory("MVTecAD", data, "all", shots=shots, train_batch_size=4, num_workers=0)
        model = tiny_model(TokenMemory, memory_size=20)
        quiet_engine(limit_val_batches=0).fit(model, datamodule=images)
        assert said in caplog.text
        assert (memory_of(model).mean > 0).all()


def test_what_is_compared_with_what() -> None:
    paths = ["a", "a", "b", "b", "c", "c"]
    assert _numbers(DataFrame({"image_path": paths})).tolist() == [0, 0, 1, 1, 2, 2]
    assert _numbers(DataFrame({"image_path": ["a", "a", "a"]})).tolist() == [0, 1, 2]
    # c is the one image of its category
    several = DataFrame({"image_path": paths, "category": [*"xxxx", *"yy"]}, index=[3, 4, 5, 6, 7, 8])
    assert _numbers(several).tolist() == [0, 0, 1, 1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"memory_size": 0}, "memory_size must be at least 1 token at each depth, got 0"),
        ({"depths": "shallow"}, "depths must be auto, equal or a list of weights, got 'shallow'"),
        ({"depths": [0, 0, 0, 0]}, "must be finite and not negative, nor all 0"),
        ({"depths": [1, -1, 1, 1]}, "must be finite and not negative, nor all 0"),
        ({"depths": [1, float("nan"), 1, 1]}, "must be finite and not negative, nor all 0"),
    ],
)
def test_arguments_that_do_not_fit(tiny_model: Make, arguments: dict[str, Any], message: str) -> None:
    for kind, switch in ((TokenMemory, {}), (InpFormer, {"memory": True})):
        with pytest.raises(ValueError, match=message):
            tiny_model(kind, **switch, **arguments)


@pytest.mark.parametrize("arguments", [{"memory_size": 20}, {"depths": "equal"}])
def test_what_is_said_of_a_memory_needs_one(tiny_model: Make, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="memory_size and depths are for a memory"):
        tiny_model(InpFormer, **arguments)


def test_weights_of_any_size_are_shares(tiny_model: Make, fitted: Make) -> None:
    weights = memory_of(fitted(depths=[1e39, 0, 0, 3e39])).weights
    torch.testing.assert_close(weights, torch.tensor([0.25, 0, 0, 0.75]))
    with pytest.raises(ValueError, match="must be finite and not negative"):
        tiny_model(TokenMemory, depths=[1e308, 1e308, 0, 0])


def test_data_that_do_not_fit(
    tiny_model: Make, quiet_engine: Make, datamodule: Make, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"a weight for each of 4 depths \(block 0, block 1, blocks 1-2, blocks 3-4\)"):
        quiet_engine().fit(tiny_model(TokenMemory, depths=[1, 1]), datamodule=datamodule())
    images = datamodule()
    images.setup()
    loader = DataLoader(images.train_data, batch_size=4, collate_fn=images.train_data.collate_fn)
    with pytest.raises(
        DataError,
        match=r"What is measured on the training images needs a data module with train_data.*got plain data loaders",
    ):
        quiet_engine().fit(tiny_model(TokenMemory), train_dataloaders=loader)
    single = tmp_path / "single" / "brick"
    for folder in ("train/good", "test/good"):
        (single / folder).mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(single / folder / "0.png")
    alone = MVTecAD(single.parent, "brick", num_workers=0, val_split_mode="same_as_test")
    with pytest.raises(DataError, match=r"there is 1\. For so few: --data MultiCategory --data.shots 1"):
        quiet_engine().fit(tiny_model(TokenMemory), datamodule=alone)


def test_a_checkpoint_with_a_memory_and_a_model_without(tiny_model: Make, quiet_engine: Make, datamodule: Make) -> None:
    run = quiet_engine(limit_val_batches=0)
    run.fit(tiny_model(InpFormer, memory=True, memory_size=20), datamodule=datamodule())
    (checkpoint,) = Path(run.trainer.default_root_dir).rglob("finished.ckpt")
    with pytest.raises(ValueError, match=r"has a memory: build the model with --model\.memory true"):
        quiet_engine().test(tiny_model(InpFormer), datamodule=datamodule(), ckpt_path=checkpoint)
    run = quiet_engine(limit_val_batches=0)
    run.fit(tiny_model(InpFormer), datamodule=datamodule())
    (checkpoint,) = Path(run.trainer.default_root_dir).rglob("finished.ckpt")
    with pytest.raises(ValueError, match=r"has no memory: build the model with --model\.memory false"):
        quiet_engine().test(tiny_model(InpFormer, memory=True), datamodule=datamodule(), ckpt_path=checkpoint)


def test_labelled_anomalies_are_measured_on_and_not_tested_on(
    tiny_model: Make, quiet_engine: Make, datamodule: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    pasted = []
    measure = MemoryFill._measure

    def spy(self: MemoryFill, *arguments: Any) -> torch.Tensor:
        pasted.append(len(arguments[-1].defects))
        return measure(self, *arguments)

    monkeypatch.setattr(MemoryFill, "_measure", spy)
    run: Engine = quiet_engine(limit_val_batches=0)
    images, model = datamodule(), tiny_model(TokenMemory, memory_size=20, labelled_anomalies=2)
    run.fit(model, datamodule=images)
    assert pasted == [2]
    before = len(images.test_data.samples)
    (checkpoint,) = Path(run.trainer.default_root_dir).rglob("finished.ckpt")
    fresh = datamodule()
    quiet_engine().test(tiny_model(TokenMemory), datamodule=fresh, ckpt_path=checkpoint)
    assert len(fresh.test_data.samples) == before


def test_what_each_depth_sees_is_drawn(tiny_model: Make, quiet_engine: Make, datamodule: Make) -> None:
    for kind, switch in ((TokenMemory, {}), (InpFormer, {"memory": True})):
        run = quiet_engine(limit_val_batches=0)
        run.fit(tiny_model(kind, memory_size=20, visualizer=True, **switch), datamodule=datamodule())
        with Image.open(Path(run.trainer.default_root_dir) / "depths.png") as picture:
            assert picture.height > 4 * 128
    run = quiet_engine(limit_val_batches=0)
    run.fit(tiny_model(TokenMemory, memory_size=20), datamodule=datamodule())  # without a visualizer
    assert not list(Path(run.trainer.default_root_dir).rglob("depths.png"))


class TestTargetLayersAuto:
    def test_the_encoder_taps_what_sees_pseudo_anomalies_best(
        self, tiny_model: Make, quiet_engine: Make, datamodule: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With windows of which the second alone sees colours."""

        def see(self: Windows, images: torch.Tensor) -> PatchFeatures:
            colour = avg_pool2d(images, 4).flatten(2).transpose(1, 2)
            return PatchFeatures([torch.randn_like(colour), colour, torch.randn_like(colour)], (16, 16))

        monkeypatch.setattr(Windows, "forward", see)
        model = tiny_model(InpFormer, target_layers="auto", feature_cache="memory", memory=True, memory_size=20)
        assert len(model.model.network.encoder.backbone.blocks) == 6
        assert Windows(model.model.network.encoder).windows == [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5]]
        run = quiet_engine(limit_val_batches=0)
        run.fit(model, datamodule=datamodule())
        encoder = model.model.network.encoder
        assert encoder.target_layers == [1, 2, 3, 4]
        assert len(encoder.backbone.blocks) == 5
        (checkpoint,) = Path(run.trainer.default_root_dir).rglob("finished.ckpt")
        images = torch.rand(1, 3, 64, 64)
        model.eval()
        for loaded in (
            InpFormer.load_from_checkpoint(checkpoint),
            self.loaded_by_a_test(tiny_model, quiet_engine, datamodule, checkpoint),
        ):
            assert loaded.model.network.encoder.target_layers == [1, 2, 3, 4]
            with torch.no_grad():
                assert torch.equal(loaded.eval()(images).anomaly_map, model(images).anomaly_map)

    @staticmethod
    def loaded_by_a_test(tiny_model: Make, quiet_engine: Make, datamodule: Make, checkpoint: Path) -> Any:
        model = tiny_model(InpFormer, target_layers="auto", memory=True)
        quiet_engine().test(model, datamodule=datamodule(), ckpt_path=checkpoint)
        return model

    @pytest.mark.parametrize("kind", [InpFormer, InpFormerPlusPlus])
    def test_it_chooses_by_itself_too(self, kind: type, tiny_model: Make, quiet_engine: Make, datamodule: Make) -> None:
        model = tiny_model(kind, target_layers="auto")
        quiet_engine(limit_val_batches=0).fit(model, datamodule=datamodule())
        assert model.model.network.encoder.target_layers in [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5]]
        assert not model.model.network.encoder.undecided

    def test_a_model_that_reconstructs_nothing_has_nothing_to_choose(self, tiny_model: Make) -> None:
        with pytest.raises(ValueError, match="target_layers auto is for models that reconstruct what is tapped"):
            tiny_model(TokenMemory, target_layers="auto")


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        (12, [list(range(first, first + 8)) for first in range(5)]),
        (24, [list(range(first, first + 15, 2)) for first in (0, 2, 4, 6, 8)]),
    ],
)
def test_windows_hold_the_published_choice(depth: int, expected: list[list[int]]) -> None:
    assert windows(depth) == expected
    assert default_target_layers(depth) in expected
