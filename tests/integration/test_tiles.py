# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Models that see tiles: trained, tested, kept and loaded, at the native size of images and at others."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch, MVTecAD
from lightning.pytorch import Callback
from PIL import Image
from torch.nn import functional as F

from anomalib_inp import InpFormer, InpFormerPlusPlus, MultiCategory, SelfSimilarity, TokenMemory
from anomalib_inp.checkpoints.own import read_checkpoint
from anomalib_inp.data.file_checks import DataError
from anomalib_inp.models.encoder_model import evaluation_step
from anomalib_inp.models.learning import learn
from anomalib_inp.outputs import TrainingBatch
from anomalib_inp.results.records import read_records

TILES = {"size": 64, "overlap": 16}


@pytest.fixture(scope="module")
def root(write_small_sample, tmp_path_factory) -> Path:
    """Sample data, of which one image is of another size."""
    root = write_small_sample(tmp_path_factory.mktemp("data"), categories=("brick",))
    for path in (root / "brick/test/hole/001.png", root / "brick/ground_truth/hole/001_mask.png"):
        with Image.open(path) as image:
            image.crop((0, 0, 168, 131)).save(path)
    return root


@pytest.fixture
def datamodule(root: Path) -> MVTecAD:
    return MVTecAD(root, "brick", train_batch_size=4, eval_batch_size=1, num_workers=0, val_split_mode="same_as_test")


def arguments(kind: type) -> dict:
    return {"memory_size": 30} if kind is TokenMemory else {}


@pytest.mark.parametrize("kind", [InpFormer, InpFormerPlusPlus, TokenMemory, SelfSimilarity])
def test_a_model_is_trained_tested_and_loaded(kind, tiny_model, datamodule, quiet_engine) -> None:
    tiles = {**TILES, "second_scale": kind is not InpFormer}
    model = tiny_model(kind, tiles=tiles, image_size="native", **arguments(kind))
    run = quiet_engine()
    run.train(model, datamodule=datamodule)
    assert len(datamodule.train_data) == 8  # the images are given back
    folder = Path(run.trainer.default_root_dir)
    (journal,) = folder.rglob("predictions.jsonl")
    records = {record["path"]: record for record in read_records(journal)}
    assert records["hole/001.png"]["size"] == [168, 131]
    assert all(region["box"][3] <= 131 for region in records["hole/001.png"]["regions"])

    (checkpoint,) = folder.rglob("finished.ckpt")
    loaded = kind.load_from_checkpoint(checkpoint).eval()
    for name in ("hole/000.png", "hole/001.png"):
        with torch.no_grad():
            found = loaded(
                torch.from_numpy(np.asarray(Image.open(datamodule.root / "brick/test" / name).convert("RGB")))
            )
        height, width = records[name]["size"][::-1]
        assert found.anomaly_map.shape == (1, 1, -(-height // 2), -(-width // 2))
        assert found.pred_score.item() == pytest.approx(records[name]["score"], abs=1e-5)


def test_pixels_of_an_evaluated_image_are_let_go_of(tiny_model, datamodule, quiet_engine) -> None:
    """The next image is read before Lightning forgets the last one."""
    seen: list = []

    class Later(Callback):
        def on_test_batch_end(self, trainer, pl_module, outputs, batch, *_) -> None:
            seen.append((batch.image.shape[-1], batch.anomaly_map.shape[-1]))

        def on_test_batch_start(self, trainer, pl_module, batch, *_) -> None:
            self.batch = batch

        def on_test_epoch_end(self, *_) -> None:
            seen.append(self.batch.image.shape[-1])

    run = quiet_engine(callbacks=[Later()])
    run.test(tiny_model(SelfSimilarity, tiles=TILES, image_size=None), datamodule=datamodule)
    *batches, last = seen
    assert all(width > 100 for width, _ in batches)  # those of other callbacks are whole
    assert last == 1


def test_training_on_tiles_is_training_on_images_that_are_cut_by_hand(tiny_model, datamodule, quiet_engine) -> None:
    """And what a cache holds of them trains the same."""
    losses = []
    for cache in ("off", "memory"):
        torch.manual_seed(0)
        model = tiny_model(InpFormer, tiles=TILES, image_size=None, feature_cache=cache)
        seen: list[int] = []
        step = model.training_step
        model.training_step = lambda batch, *rest, step=step, seen=seen: (
            seen.append(TrainingBatch.of(batch).source.batch_size) or step(batch)
        )
        run = quiet_engine(limit_train_batches=6)
        torch.manual_seed(1)
        run.fit(model, datamodule=datamodule)
        losses.append(float(run.trainer.callback_metrics["train_loss"]))
        assert set(seen) == {4}
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_whole_image_of_one_tile_gives_what_the_network_gives(tiny_model) -> None:
    """Nothing but the place of patches in the map, which is published otherwise."""
    whole, tiled = (
        tiny_model(InpFormer, spread=5, **given).eval() for given in ({}, {"tiles": TILES, "image_size": 64})
    )
    tiled.model.network.load_state_dict(whole.model.network.state_dict())
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        (reading,) = whole.model.readings_of(images)
        expected = F.interpolate(reading[0].unsqueeze(1), size=(32, 32), mode="bilinear", align_corners=False)
        found = tiled.model(images)
    torch.testing.assert_close(found.anomaly_map, tiled.model.smoothing.blur(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("cache", ["off", "memory", "disk"])
def test_tiles_of_resized_images_are_trained_on(cache: str, tiny_model, datamodule, quiet_engine, tmp_path) -> None:
    """anomalib resizes whole images by an augmentation, which would enlarge each tile to the size of an image."""
    given = {} if cache == "off" else {"feature_cache": cache, "feature_cache_dir": str(tmp_path)}
    model = tiny_model(InpFormer, tiles=TILES, image_size=(90, 130), **given)
    sizes: set = set()
    model.model.network.encoder.register_forward_pre_hook(lambda _, images: sizes.add(tuple(images[0].shape[1:])))
    run = quiet_engine(limit_val_batches=0)
    run.fit(model, datamodule=datamodule)
    assert sizes == {(3, 64, 64)}
    if cache == "disk":  # of other tiles, other features
        others = tiny_model(InpFormer, tiles={"size": 64, "overlap": 0}, image_size=(90, 130), **given)
        quiet_engine(limit_val_batches=0).fit(others, datamodule=datamodule)
        assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_images_of_several_sizes_are_evaluated_one_at_a_time(tiny_model, root, quiet_engine) -> None:
    """In a batch, anomalib would bring them to one size."""
    scores = []
    for batch_size in (1, 8):
        data = MVTecAD(root, "brick", eval_batch_size=batch_size, num_workers=0, val_split_mode="same_as_test")
        run = quiet_engine()
        torch.manual_seed(0)
        run.test(tiny_model(SelfSimilarity, tiles=TILES, image_size=None), datamodule=data)
        assert data.eval_batch_size == batch_size  # given back
        (journal,) = Path(run.trainer.default_root_dir).rglob("predictions.jsonl")
        scores.append({record["path"]: record["raw_score"] for record in read_records(journal)})
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_a_checkpoint_notes_the_images_and_not_their_tiles(tiny_model, datamodule, quiet_engine) -> None:
    run = quiet_engine()
    run.fit(
        tiny_model(TokenMemory, tiles=TILES, image_size=None, augment={"light": 0.1}, memory_size=30),
        datamodule=datamodule,
    )
    (checkpoint,) = Path(run.trainer.default_root_dir).rglob("finished.ckpt")
    noted = read_checkpoint(checkpoint)["images"]
    assert len(noted["train"]) == 8
    assert len({row[0] for row in noted["train"]}) == 8


def test_a_thin_defect_stays_in_the_mask_of_a_map(tiny_model) -> None:
    model = tiny_model(SelfSimilarity, tiles=TILES, image_size=None)
    mask = torch.zeros(1, 90, 101, dtype=torch.bool)
    mask[0, 10:30, 33] = mask[0, 89, 100] = True
    batch = ImageBatch(image=torch.rand(1, 3, 90, 101), gt_mask=mask, gt_label=torch.tensor([1]))
    found = evaluation_step(model.model.eval(), batch).gt_mask
    expected = torch.zeros(1, 45, 51, dtype=torch.bool)
    expected[0, 5:15, 16] = expected[0, 44, 50] = True
    assert torch.equal(found.bool(), expected)


def test_labelled_anomalies_keep_their_size(tiny_model, datamodule, quiet_engine, tmp_path) -> None:
    """The defects of a folder are pasted onto tiles as large as they are in their images."""
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)).save(tmp_path / "images/a.png")
    mask = np.zeros((300, 400), np.uint8)
    mask[100:112, 200:212] = 255
    Image.fromarray(mask).save(tmp_path / "masks/a.png")
    model = tiny_model(InpFormerPlusPlus, tiles=TILES, image_size=None, labelled_anomalies=str(tmp_path))
    quiet_engine(limit_val_batches=0).fit(model, datamodule=datamodule)
    (defect,) = model.labelled.defects
    assert int(defect.mask.sum()) == 144


@pytest.mark.parametrize("other", [{"overlap": 0}, {"second_scale": True}, {"scored_area": 40}])
def test_other_tiles_than_those_of_the_thresholds_are_said(other, tiny_model, datamodule, quiet_engine) -> None:
    run = quiet_engine()
    run.train(tiny_model(SelfSimilarity, tiles=TILES, image_size=None), datamodule=datamodule)
    (checkpoint,) = Path(run.trainer.default_root_dir).rglob("finished.ckpt")
    with pytest.warns(UserWarning, match=f"{next(iter(other)).split('_')[0]}.* instead of"):
        SelfSimilarity.load_from_checkpoint(checkpoint, tiles={**TILES, **other})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SelfSimilarity.load_from_checkpoint(checkpoint)


def test_few_shot_views_of_tiles_are_refused_before_they_are_made(tiny_model, root, quiet_engine) -> None:
    data = MultiCategory(root=str(root), categories=["brick"], shots=1, num_workers=0)
    with pytest.raises(DataError, match="leave tiles, or shots, out"):
        quiet_engine().fit(tiny_model(InpFormer, tiles=TILES, image_size=None), datamodule=data)


def test_an_image_is_scored_by_an_area(tiny_model) -> None:
    """The mean of as many of the highest values of the map as the area has pixels of it, 4 of the image each."""
    model = tiny_model(InpFormer, spread=5, tiles={**TILES, "scored_area": 40}, image_size=None).eval()
    with torch.no_grad():
        found = model.model(torch.rand(2, 3, 90, 101))
    highest = found.anomaly_map.flatten(1).sort(dim=1).values[:, -10:]
    torch.testing.assert_close(found.pred_score, highest.mean(dim=1))


@pytest.mark.parametrize("given", [{"tiles": {**TILES, "per_image": 2}, "image_size": None}, {}])
def test_training_in_other_light(given: dict, tiny_model, datamodule, quiet_engine) -> None:
    """Drawn anew in each epoch, or four views of each where features are kept; the images are given back."""
    images = 16 if given else 8
    for cache, num_images in (("off", images), ("memory", 4 * images)):
        model = tiny_model(InpFormer, augment={"light": 0.3}, feature_cache=cache, **given)
        run = quiet_engine()
        run.fit(model, datamodule=datamodule)
        assert run.trainer.num_training_batches == num_images / 4
        assert len(datamodule.train_data) == 8
    memory = tiny_model(TokenMemory, augment={"light": 0.3, "noise": 0.02}, memory_size=30, **given)
    quiet_engine().train(memory, datamodule=datamodule)


def test_a_memory_learns_from_tiles(tiny_model, datamodule, quiet_engine) -> None:
    run = quiet_engine()
    run.train(tiny_model(TokenMemory, tiles=TILES, image_size=None, memory_size=30), datamodule=datamodule)
    (checkpoint,) = Path(run.trainer.default_root_dir).rglob("finished.ckpt")
    image = datamodule.root / "brick/test/stain/000.png"
    pixels = torch.from_numpy(np.asarray(Image.open(image).convert("RGB")))
    with torch.no_grad():
        before = TokenMemory.load_from_checkpoint(checkpoint).eval()(pixels)
        learnt = learn(checkpoint, [image], [])
        after = TokenMemory.load_from_checkpoint(checkpoint).eval()(pixels)
    assert learnt.images == ["stain/000.png"]
    assert after.pred_score < before.pred_score


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tiles": {"size": 60}}, r"multiple of the encoder's patch size 16 .* got \(60, 60\)"),
        ({"tiles": {"size": 64, "overlap": 64}}, "from 0 to 63, got 64"),
        ({"tiles": {"size": 64, "overlap": 0.5}}, "number of pixels from 0 to 63, got 0.5"),
        ({"tiles": {"overlap": 8}}, "tiles needs a size"),
        ({"tiles": {"size": None}}, "tiles needs a size"),
        ({"tiles": 64}, "tiles must be settings, for example .* got 64"),
        ({"tiles": {"size": float("nan")}}, "positive number of pixels, or height and width, got nan"),
        ({"tiles": {"size": 64, "overlap": True}}, "number of pixels from 0 to 63, got True"),
        ({"tiles": TILES, "image_size": "Native"}, "positive number of pixels, or height and width, got 'Native'"),
        ({"augment": 0.3}, "augment must be settings, for example .* got 0.3"),
        ({"tiles": {"size": 64, "stride": 8}}, "got stride"),
        ({"tiles": {"size": 64, "per_image": 0}}, "number of tiles from 1 on, got 0"),
        ({"tiles": {"size": 64, "scored_area": 0.1}}, "number of pixels from 1 on, got 0.1"),
        ({"tiles": {"size": 64, "second_scale": "yes"}}, "second_scale must be true or false, got 'yes'"),
        ({"augment": {"light": 3}}, "light must be a number from 0 to below 1, got 3"),
        ({"image_size": "native"}, "image_size native needs tiles"),
        ({"tiles": TILES, "crop_size": 32}, "crop_size and tiles exclude each other"),
        ({"tiles": TILES, "image_size": 50}, "An image of 50 pixels is smaller than a tile of 64"),
        ({"tiles": TILES, "pre_processor": False}, "leave pre_processor out"),
    ],
)
def test_what_does_not_fit_is_refused(tiny_model, given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model(InpFormer, **{"image_size": None, **given})


def test_a_model_that_learns_nothing_is_not_augmented(tiny_model) -> None:
    with pytest.raises(ValueError, match="leave augment out"):
        tiny_model(SelfSimilarity, augment={"light": 0.1})


def test_images_that_are_too_small_are_named_before_anything_is_trained(tiny_model, datamodule, quiet_engine) -> None:
    model = tiny_model(InpFormer, tiles={"size": 144}, image_size=None)
    with pytest.raises(DataError, match=r"1 images are smaller than a tile of 144 x 144 pixels: .*hole.001\.png"):
        quiet_engine().fit(model, datamodule=datamodule)


def test_checkpoints_of_whole_images_and_of_tiles_are_told_apart(tiny_model, datamodule, quiet_engine) -> None:
    run = quiet_engine()
    run.fit(tiny_model(InpFormer, tiles=TILES, image_size=None), datamodule=datamodule)
    (checkpoint,) = Path(run.trainer.default_root_dir).rglob("finished.ckpt")
    with pytest.raises(ValueError, match="trained on tiles of 64 x 64, but the model is built for whole images"):
        InpFormer.load_from_checkpoint(checkpoint, tiles=None, image_size=64)
    with pytest.raises(ValueError, match="built for tiles of 80 x 80"):
        InpFormer.load_from_checkpoint(checkpoint, tiles={"size": 80})
