# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import io
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.data import AutoVI, BTech, Folder, MVTecAD, MVTecLOCO
from anomalib.engine import Engine
from PIL import Image

from anomalib_inp import InpFormer
from anomalib_inp.data.file_checks import DataError, check_masks
from anomalib_inp.training import data_check

SIZE = 96


def pixels(index: int = 0) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (SIZE, SIZE), dtype=np.uint8)


def write(path: Path, image: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels() if image is None else image).save(path)
    return path


def mask(rows: slice, columns: slice) -> np.ndarray:
    image = np.zeros((SIZE, SIZE), dtype=np.uint8)
    image[rows, columns] = 255
    return image


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A category in the layout of MVTec AD: 2 training, 1 normal and 3 anomalous test images, their masks apart."""
    root = tmp_path / "data"
    for index in range(2):
        write(root / "part/train/good" / f"{index:03}.png", pixels(index))
    write(root / "part/test/good/000.png", pixels(2))
    corners = [(slice(0, 12), slice(0, 12)), (slice(0, 40), slice(70, 96)), (slice(40, 60), slice(40, 60))]
    for index, corner in enumerate(corners):
        write(root / "part/test/dent" / f"{index:03}.png", pixels(3 + index))
        write(root / "part/ground_truth/dent" / f"{index:03}_mask.png", mask(*corner))
    return root


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(
        default_root_dir=tmp_path / "results",
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@pytest.fixture
def datamodule(root: Path) -> MVTecAD:
    return MVTecAD(root=root, category="part", num_workers=0, train_batch_size=1, val_split_mode="same_as_test")


def tiny(encoder_file: Path, crop_size: int | None = None) -> InpFormer:
    torch.manual_seed(0)
    return InpFormer(
        encoder="test_vit",
        encoder_weights=str(encoder_file),
        image_size=SIZE,
        crop_size=crop_size,
        map_size=32,
        visualizer=False,
        evaluator=False,
    )


# --- images and masks -------------------------------------------------------------------------------------------------


def test_complete_data_pass(datamodule: MVTecAD, root: Path) -> None:
    check_masks(datamodule)
    # What anomalib does not read does no harm.
    (root / "part/test/dent/notes.txt").write_text("seen on Tuesday")
    (root / "part/test/Thumbs.db").write_bytes(b"")
    (root / "part/ground_truth/.DS_Store").write_bytes(b"")
    check_masks(datamodule)


def test_an_image_without_mask_is_named(
    engine: Engine, datamodule: MVTecAD, root: Path, tiny_encoder_file: Path
) -> None:
    (root / "part/ground_truth/dent/001_mask.png").unlink()
    with pytest.raises(DataError) as caught:
        engine.fit(tiny(tiny_encoder_file), datamodule=datamodule)
    assert f"{root / 'part/test/dent/001.png'} has no mask. Add what is missing" in str(caught.value)


def test_a_mask_without_image_is_named(
    engine: Engine, datamodule: MVTecAD, root: Path, tiny_encoder_file: Path
) -> None:
    (root / "part/test/dent/002.png").unlink()
    with pytest.raises(DataError) as caught:
        engine.test(tiny(tiny_encoder_file), datamodule=datamodule)
    assert f"the mask {root / 'part/ground_truth/dent/002_mask.png'} has no image." in str(caught.value)


def test_images_without_a_folder_of_masks_are_named(datamodule: MVTecAD, root: Path) -> None:
    for index in range(7):
        write(root / f"part/test/hole/{index:03}.png")
    with pytest.raises(DataError, match="and 2 more") as caught:
        check_masks(datamodule)
    assert str(caught.value).count("has no mask") == 5
    assert "Folder" not in str(caught.value)
    shutil.rmtree(root / "part/ground_truth")
    with pytest.raises(DataError, match="without any masks are read by the data module Folder"):
        check_masks(datamodule)


@pytest.mark.parametrize(("kind", "category"), [(MVTecLOCO, "pushpins"), (AutoVI, "tank_screw")])
def test_masks_in_a_folder_per_image_are_no_fault(kind: type, category: str, tmp_path: Path) -> None:
    for name in ("train/good/000.png", "test/good/000.png", "test/dent/000.png", "ground_truth/dent/000/000.png"):
        write(tmp_path / category / name)
    check_masks(kind(root=tmp_path, category=category))


def test_normal_images_by_another_name_are_no_fault(tmp_path: Path) -> None:
    for name in ("train/ok/000.png", "test/ok/000.png", "test/ko/001.png", "ground_truth/ko/001.png"):
        write(tmp_path / "01" / name)
    check_masks(BTech(root=tmp_path, category="01"))
    check_masks(Folder(name="01", root=tmp_path / "01", normal_dir="train/ok", abnormal_dir="test/ko"))


def test_masks_of_normal_images_are_not_looked_for(engine: Engine, tiny_encoder_file: Path, tmp_path: Path) -> None:
    for index, name in enumerate(("train/ok/000.png", "train/ok/001.png", "test/ok/000.png", "test/ko/001.png")):
        write(tmp_path / "01" / name, pixels(index))
    write(tmp_path / "01/ground_truth/ko/001.png", mask(slice(0, 40), slice(0, 40)))
    images = BTech(root=tmp_path, category="01", train_batch_size=1, eval_batch_size=1, num_workers=0)
    engine.train(InpFormer("test_vit", str(tiny_encoder_file), image_size=64), datamodule=images)
    missing = images.train_data.samples.mask_path
    assert not any(Path(path).is_file() for path in missing)  # else this shows nothing


def test_images_and_masks_of_named_folders_are_counted(tmp_path: Path) -> None:
    for name in ("ok/000.png", "ko/000.png", "more/001.png", "masks/000.png"):
        write(tmp_path / name)
    named = {"normal_dir": "ok", "abnormal_dir": ["ko", "more"], "mask_dir": "masks"}
    with pytest.raises(DataError, match=r"\['ko', 'more'\] have 2 images and masks have 1 masks, below"):
        check_masks(Folder(name="part", root=tmp_path, **named))
    write(tmp_path / "masks/001.png")
    check_masks(Folder(name="part", root=tmp_path, **named))
    # folders in full, and no masks at all
    check_masks(Folder(name="part", normal_dir=tmp_path / "ok", abnormal_dir=tmp_path / "ko"))


def test_images_that_anomalib_does_not_read_are_called_out(
    datamodule: MVTecAD, root: Path, recwarn: pytest.WarningsRecorder
) -> None:
    check_masks(datamodule)
    assert not recwarn
    Image.new("RGB", (8, 8)).save(root / "part/train/good/100.jpg")
    check_masks(datamodule)
    assert "reads .png and .PNG alone: 1 files (.jpg) of" in str(recwarn[0].message)
    for folder in ("train", "test", "ground_truth"):
        for path in [*root.glob(f"part/{folder}/*/*.png")]:
            path.rename(path.with_suffix(".jpg"))
        if folder != "train":
            with pytest.raises(DataError, match=r"reads .* alone: .* \(\.jpg\) of .* to the data module Folder"):
                check_masks(datamodule)


def test_no_data_module_is_no_fault() -> None:
    check_masks(None)


# --- files that are no images -----------------------------------------------------------------------------------------


def test_an_empty_training_folder_is_named(
    engine: Engine, datamodule: MVTecAD, root: Path, tiny_encoder_file: Path
) -> None:
    for path in (root / "part/train/good").iterdir():
        path.unlink()
    with pytest.raises(DataError) as caught:
        engine.fit(tiny(tiny_encoder_file), datamodule=datamodule)
    assert f"There are no training images in {root / 'part'}. " in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no image"], ids=["empty", "text"])
@pytest.mark.parametrize("name", ["train/good/001.png", "test/dent/001.png", "ground_truth/dent/001_mask.png"])
def test_a_file_that_is_no_image_is_named_before_training(
    content: bytes,
    name: str,
    engine: Engine,
    datamodule: MVTecAD,
    root: Path,
    tiny_encoder_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = root / "part" / name
    path.write_bytes(content)
    model, steps = tiny(tiny_encoder_file), []
    monkeypatch.setattr(model, "training_step", lambda *_: steps.append(1))
    with pytest.raises(DataError) as caught:
        engine.fit(model, datamodule=datamodule)
    assert f"Files are no images that can be used: {path} (UnidentifiedImageError). Replace, convert or remove" in str(
        caught.value
    )
    assert not steps


def test_every_run_looks_at_its_own_images(
    engine: Engine, datamodule: MVTecAD, root: Path, tiny_encoder_file: Path
) -> None:
    (root / "part/train/good/001.png").write_bytes(b"")
    model = tiny(tiny_encoder_file)
    engine.validate(model, datamodule=datamodule)
    with pytest.raises(DataError, match=r"train/good/001\.png"):
        engine.fit(model, datamodule=datamodule)


def truncated() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels()).save(buffer, "PNG")
    return buffer.getvalue()[: buffer.tell() // 2]


def with_broken_chunk() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels()).save(buffer, "PNG")
    content = bytearray(buffer.getvalue())
    start = content.index(b"IDAT") - 4
    # Two data chunks, the second of which has no valid name.
    length = int.from_bytes(content[start : start + 4], "big")
    data = bytes(content[start + 8 : start + 8 + length])
    return bytes(content[:start]) + chunk(b"IDAT", data[:50]) + chunk(b"\0\1\2\3", data[50:])


def chunk(name: bytes, data: bytes) -> bytes:
    import zlib

    return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")


@pytest.mark.parametrize("broken", [truncated, with_broken_chunk])
@pytest.mark.parametrize("name", ["train/good/001.png", "test/dent/001.png", "ground_truth/dent/001_mask.png"])
def test_an_image_that_cannot_be_decoded_is_named(
    broken, name: str, engine: Engine, datamodule: MVTecAD, root: Path, tiny_encoder_file: Path
) -> None:
    path = root / "part" / name
    path.write_bytes(broken())
    with pytest.raises(DataError) as caught:
        engine.fit(tiny(tiny_encoder_file), datamodule=datamodule)
    assert f"Images cannot be decoded: {path} (" in str(caught.value)
    assert str(caught.value).count(str(root)) == 1
    assert isinstance(caught.value.__cause__, OSError | SyntaxError)


def test_other_errors_stay_what_they_are(
    engine: Engine, datamodule: MVTecAD, tiny_encoder_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    model = tiny(tiny_encoder_file)
    monkeypatch.setattr(model, "training_step", fail)
    for error in (OSError("disk full"), RuntimeError("no memory")):
        with pytest.raises(type(error), match=str(error)):
            engine.fit(model, datamodule=datamodule)


# --- what a crop leaves out -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", ["fit", "validate", "test"])
def test_a_crop_is_announced_and_what_it_misses_is_counted(
    run: str, engine: Engine, datamodule: MVTecAD, tiny_encoder_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(data_check, "rank_zero_info", said.append)
    subset = "test" if run == "test" else "validation"
    expected = f"1 of the 3 anomalous {subset} images have their whole mask outside the inspected centre"
    model = tiny(tiny_encoder_file, crop_size=64)
    # Of a training, two epochs here, the last validation is reported.
    with pytest.warns(UserWarning, match=expected) as caught:
        getattr(engine, run)(model, datamodule=datamodule)
    assert len([warning for warning in caught if "whole mask outside" in str(warning.message)]) == 1
    assert said == [
        "Only the centre of each image is inspected: 16.7 to 83.3 % of its width, 16.7 to 83.3 % of its height."
    ]


def test_without_a_crop_nothing_is_missed(
    engine: Engine, datamodule: MVTecAD, tiny_encoder_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(data_check, "rank_zero_info", said.append)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        engine.test(tiny(tiny_encoder_file), datamodule=datamodule)
    assert not [warning for warning in caught if "mask outside" in str(warning.message)]
    assert not said


def test_a_crop_that_misses_nothing_says_so_by_silence(
    engine: Engine, datamodule: MVTecAD, root: Path, tiny_encoder_file: Path
) -> None:
    write(root / "part/ground_truth/dent/000_mask.png", mask(slice(0, 20), slice(0, 20)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        engine.test(tiny(tiny_encoder_file, crop_size=64), datamodule=datamodule)
    assert not [warning for warning in caught if "mask outside" in str(warning.message)]
