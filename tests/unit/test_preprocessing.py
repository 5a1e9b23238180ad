# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch, ImageItem, MVTecAD
from anomalib.data.transforms import ExportableCenterCrop
from anomalib.data.utils import read_image
from anomalib.engine import Engine
from anomalib.pre_processing import PreProcessor
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import CenterCrop, Compose, Normalize, Pad, RandomCrop, RandomHorizontalFlip, Resize

from anomalib_inp import InpFormer
from anomalib_inp.exporting.convert import metadata_of
from anomalib_inp.frame import WHOLE_IMAGE
from anomalib_inp.preprocessing import IMAGENET_MEAN, IMAGENET_STD, InpPreProcessor, crop_box_of

# Height and width of images; the model's are 64 x 96.
LARGE, SMALL, MIXED = (150, 210), (40, 50), (30, 300)


def write_image(path: Path, size: tuple[int, int], channels: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (*size, channels), dtype=np.uint8)
    Image.fromarray(pixels.squeeze()).save(path)
    return path


def by_hand(
    image: Tensor, image_size: tuple[int, int], crop: tuple[slice, slice] = (slice(None), slice(None)), **kwargs: bool
) -> Tensor:
    resized = F.interpolate(image, image_size, mode="bilinear", align_corners=False, **kwargs)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (resized[..., crop[0], crop[1]] - mean) / std


# --- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crop_size", [(80, 64), (64, 112)])
def test_a_crop_larger_than_the_image(crop_size: tuple[int, int]) -> None:
    with pytest.raises(
        ValueError, match=r"must fit into the resized image.*Enlarge image_size, or leave crop_size out"
    ):
        InpPreProcessor((64, 96), crop_size)


@pytest.mark.parametrize("sizes", [((0, 64), None), ((64, 64), (64, -16))])
def test_sizes_are_positive(sizes: tuple) -> None:
    with pytest.raises(ValueError, match="Sizes must be positive"):
        InpPreProcessor(*sizes)


def test_a_model_resolves_its_sizes(tiny_model: Callable[..., InpFormer]) -> None:
    assert tiny_model(image_size=None).pre_processor.image_size == (384, 384)
    cropped = tiny_model(image_size=None, crop_size=384).pre_processor
    assert (cropped.image_size, cropped.crop_size) == ((448, 448), (384, 384))


# --- the transform ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crop_size", [None, (48, 32)])
@pytest.mark.parametrize("size", [LARGE, SMALL, MIXED, (64, 96)])
def test_forward_resizes_with_antialiasing_crops_and_normalises(
    size: tuple[int, int], crop_size: tuple[int, int] | None
) -> None:
    image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    crop = (slice(None), slice(None)) if crop_size is None else (slice(8, 56), slice(32, 64))
    result = InpPreProcessor((64, 96), crop_size)(image)
    torch.testing.assert_close(result, by_hand(image, (64, 96), crop, antialias=True), atol=1e-5, rtol=0)
    plain = by_hand(image, (64, 96), crop, antialias=False)
    shrinks = size[0] > 64 or size[1] > 96
    assert ((result - plain).abs().max() > 0.5) == shrinks


@pytest.mark.parametrize("crop_size", [None, (48, 32)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [LARGE, SMALL, MIXED])
def test_the_exported_transform_is_the_one_of_the_engine(
    size: tuple[int, int],
    channels: int,
    crop_size: tuple[int, int] | None,
    tmp_path: Path,
    tiny_model: Callable[..., InpFormer],
    quiet_engine: Callable[..., Engine],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for split in ("train", "test"):
        path = write_image(tmp_path / "data/part" / split / "good/000.png", size, channels)
    model = tiny_model(image_size=(64, 96), crop_size=crop_size)
    seen: list[Tensor] = []

    def predict_step(batch: ImageBatch, *_: object) -> ImageBatch:
        seen.append(batch.image.as_subclass(Tensor).clone())
        return batch.update(pred_score=torch.zeros(1), anomaly_map=torch.zeros(1, 1, 8, 8))

    monkeypatch.setattr(model, "predict_step", predict_step)
    datamodule = MVTecAD(root=tmp_path / "data", category="part", num_workers=0, val_split_mode="same_as_test")
    engine = quiet_engine()
    engine.predict(model, datamodule=datamodule)  # resizes while it loads
    engine.predict(model, data_path=path)  # resizes the batch
    assert len(seen) == 2
    exported = model.pre_processor(read_image(path, as_tensor=True)[None])
    for image in seen:
        torch.testing.assert_close(image, exported, atol=1e-5, rtol=0)


# --- the inspected part -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        (((448, 448), (392, 392)), (0.0625, 0.0625, 0.9375, 0.9375)),
        (((100, 200), (60, 90)), (0.275, 0.2, 0.725, 0.8)),
        (((392, 560), None), (0, 0, 1, 1)),
        (((64, 96), (64, 32)), (1 / 3, 0, 2 / 3, 1)),
    ],
)
def test_crop_box_by_hand(sizes: tuple, expected: tuple[float, ...]) -> None:
    assert InpPreProcessor(*sizes).crop_box == pytest.approx(expected)


def test_the_whole_image_is_the_whole_image() -> None:
    assert InpPreProcessor((392, 280)).crop_box == WHOLE_IMAGE


@pytest.mark.parametrize("image_size", [(101, 96), (64, 97), (103, 99)])
def test_crop_box_is_what_the_transform_leaves(image_size: tuple[int, int]) -> None:
    """Odd margins: which side loses a pixel more must be the same here and there."""
    pre_processor = InpPreProcessor(image_size, (48, 32))
    height, width = image_size
    rows = torch.arange(height).view(-1, 1).expand(height, width)
    columns = torch.arange(width).expand(height, width)
    image = torch.stack([rows, columns, torch.zeros_like(rows)]).float()[None]
    box = pre_processor.crop_box
    for result in (pre_processor(image), pre_processor.transform(image)):
        pixels = result * torch.tensor(IMAGENET_STD).view(3, 1, 1) + torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
        top, left = pixels[0, :2, 0, 0].tolist()
        bottom, right = pixels[0, :2, -1, -1].tolist()
        found = (left / width, top / height, (right + 1) / width, (bottom + 1) / height)
        assert found == pytest.approx(tuple(box), abs=1e-4)


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crop_size", [None, (48, 32)])
def test_configuration_survives_a_checkpoint(crop_size: tuple[int, int] | None, tmp_path: Path) -> None:
    trained = InpPreProcessor((64, 96), crop_size)
    torch.save(trained.checkpoint_config(), tmp_path / "config.ckpt")
    restored = InpPreProcessor((32, 32))
    restored.load_checkpoint_config(torch.load(tmp_path / "config.ckpt", weights_only=True))

    assert restored.image_size == (64, 96)
    assert restored.crop_size == (crop_size or (64, 96))
    assert restored.crop_box == trained.crop_box
    for transform in (restored.transform, restored.export_transform):
        assert [step.antialias for step in transform.transforms if isinstance(step, Resize)] == [True]
    # torchvision's own crop does not survive tracing.
    assert not any(isinstance(step, CenterCrop) for step in restored.export_transform.transforms)
    image = torch.rand(1, 3, *LARGE)
    assert torch.equal(restored(image), trained(image))
    assert torch.equal(restored.transform(image), trained.transform(image))


# --- values ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scored(tiny_model: Callable[..., InpFormer]) -> Callable[[torch.Tensor], torch.Tensor]:
    model = tiny_model(target_layers=[1, 2], image_size=(64, 80), map_size=32).eval()

    def score(images: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return model(images).pred_score

    return score


BYTES = torch.randint(0, 256, (2, 3, 40, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
BYTES[:, :, 0, 0] = 255


@pytest.mark.parametrize(
    "images",
    [BYTES, BYTES.permute(0, 2, 3, 1), (BYTES.int() * 257).to(torch.uint16), BYTES.double().div(255).float()],
    ids=["uint8", "channels last", "uint16", "float"],
)
def test_a_model_takes_the_tensors_of_images(scored: Callable, images: torch.Tensor) -> None:
    torch.testing.assert_close(scored(images), scored(BYTES / 255), atol=1e-6, rtol=0)
    torch.testing.assert_close(scored(images[0]), scored(BYTES[:1] / 255), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (BYTES.float(), "got 0 to 255"),
        (BYTES.long(), "got int64"),
        (BYTES > 9, "got bool"),
        (BYTES[0, 0], r"got shape \(40, 50\)"),
        (BYTES[:, :1], r"got shape \(2, 1, 40, 50\)"),
        (BYTES / 255 * torch.nan, "nan"),
        ((BYTES / 255 - 0.45) / 0.22, "do not normalise"),
    ],
)
def test_a_model_refuses_what_is_no_image(scored: Callable, images: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scored(images)


@pytest.mark.parametrize("stage", ["validate", "test", "predict", "fit"])
def test_tensors_that_are_no_images_end_the_engine(
    tiny_model: Callable[..., InpFormer], quiet_engine: Callable[..., Engine], stage: str
) -> None:
    """A batch of anomalib turns uint8 into floating-point numbers up to 255."""

    def items() -> list[ImageItem]:
        mask = torch.zeros(64, 64, dtype=torch.bool)
        pixels = torch.full((3, 64, 64), 200.0)
        return [ImageItem(image=pixels, gt_label=torch.tensor(0), gt_mask=mask, image_path=f"{n}.png") for n in (0, 1)]

    loader = DataLoader(items(), batch_size=2, collate_fn=ImageBatch.collate)
    engine, model = quiet_engine(max_epochs=1), tiny_model(target_layers=[1, 2], image_size=64)
    arguments = {"train_dataloaders": loader} if stage == "fit" else {"dataloaders": loader}
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got 200 to 200"):
        getattr(engine, stage)(model, **arguments)


# --- other pre-processors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([], (0, 0, 1, 1)),
        ([Resize((96, 128))], (0, 0, 1, 1)),
        ([Resize(96), Normalize([0.5], [0.5])], (0, 0, 1, 1)),
        ([Resize((96, 128)), CenterCrop((64, 96))], (16 / 128, 16 / 96, 112 / 128, 80 / 96)),
        (
            [Compose([Resize((96, 128)), CenterCrop(64)]), Normalize([0.5], [0.5])],
            (32 / 128, 16 / 96, 96 / 128, 80 / 96),
        ),
        ([Resize((100, 100)), CenterCrop(80), Resize((64, 64)), CenterCrop(32)], (0.3, 0.3, 0.7, 0.7)),
        ([Resize((100, 100)), ExportableCenterCrop(80)], (0.1, 0.1, 0.9, 0.9)),
    ],
)
def test_the_crop_of_any_pre_processor_is_seen(steps: list[Any], expected: tuple[float, ...]) -> None:
    box = crop_box_of(PreProcessor(Compose(steps) if steps else None))
    assert box == pytest.approx(expected)
    if not steps:
        return
    # Of an image whose values are the places of its pixels, what is left says where it lay.
    y, x = np.meshgrid(*((np.arange(1024) + 0.5) / 1024 for _ in range(2)), indexing="ij")
    kept = [step for step in Compose(steps).transforms if not isinstance(step, Normalize)]
    kept = [part for step in kept for part in (step.transforms if isinstance(step, Compose) else [step])]
    left = Compose([step for step in kept if not isinstance(step, Normalize)])(
        torch.from_numpy(np.stack([x, y, y])).float()
    )
    half = (np.array([box.right - box.left, box.bottom - box.top]) / left.shape[:-3:-1]) / 2
    assert left[0, 0, 0].item() - half[0] == pytest.approx(box.left, abs=2e-3)
    assert left[0, 0, -1].item() + half[0] == pytest.approx(box.right, abs=2e-3)
    assert left[1, 0, 0].item() - half[1] == pytest.approx(box.top, abs=2e-3)
    assert left[1, -1, 0].item() + half[1] == pytest.approx(box.bottom, abs=2e-3)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([Resize(96), CenterCrop(64)], "CenterCrop cannot be told"),
        ([CenterCrop(64), Resize((96, 96))], "CenterCrop cannot be told"),
        ([Resize((96, 96)), RandomCrop(64)], "RandomCrop cannot be told"),
        ([Pad(8), Resize((64, 64))], "Pad cannot be told"),
        ([RandomHorizontalFlip(), Resize((64, 64))], "RandomHorizontalFlip cannot be told"),
        ([Resize((64, 64)), CenterCrop(96)], "which pads"),
    ],
)
def test_a_crop_that_cannot_be_told_is_refused_with_the_model(
    tiny_model: Callable[..., InpFormer], steps: list[Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model(pre_processor=PreProcessor(Compose(steps)))


def test_pictures_and_exports_show_the_crop_of_another_pre_processor(
    tiny_model: Callable[..., InpFormer], quiet_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    steps = [Resize((96, 96)), CenterCrop(64), Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    write_image(tmp_path / "images/000.png", LARGE)
    pictures, boxes = [], []
    for number, own in enumerate(
        ({"pre_processor": PreProcessor(Compose(steps))}, {"image_size": (96, 96), "crop_size": (64, 64)})
    ):
        torch.manual_seed(0)
        model = tiny_model(visualizer=True, **own)
        quiet_engine(tmp_path / str(number)).predict(model, data_path=tmp_path / "images")
        (picture,) = (tmp_path / str(number)).rglob("*000.png")
        pictures.append(np.asarray(Image.open(picture)))
        boxes.append(metadata_of(model).crop_box)
    assert boxes[0] == boxes[1] == pytest.approx((1 / 6, 1 / 6, 5 / 6, 5 / 6))
    np.testing.assert_array_equal(*pictures)
