# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from anomalib.data import AutoVI, BTech, Folder, MVTecAD, MVTecLOCO
from part import mask, pixels, write, write_part
from PIL import Image

from anomalib_inp.data.file_checks import DataError, check_masks

Make = Callable[..., Any]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_part(tmp_path / "data")


@pytest.fixture
def datamodule(root: Path) -> MVTecAD:
    return MVTecAD(root=root, category="part", num_workers=0, train_batch_size=1, val_split_mode="same_as_test")


def test_complete_data_pass(datamodule: MVTecAD, root: Path) -> None:
    check_masks(datamodule)
    # What anomalib does not read does no harm.
    (root / "part/test/dent/notes.txt").write_text("seen on Tuesday")
    (root / "part/test/Thumbs.db").write_bytes(b"")
    (root / "part/ground_truth/.DS_Store").write_bytes(b"")
    check_masks(datamodule)


def test_an_image_without_mask_is_named(datamodule: MVTecAD, root: Path, tiny_model: Make, quiet_engine: Make) -> None:
    (root / "part/ground_truth/dent/001_mask.png").unlink()
    with pytest.raises(DataError) as caught:
        quiet_engine().fit(tiny_model(), datamodule=datamodule)
    assert f"{root / 'part/test/dent/001.png'} has no mask. Add what is missing" in str(caught.value)


def test_a_mask_without_image_is_named(datamodule: MVTecAD, root: Path, tiny_model: Make, quiet_engine: Make) -> None:
    (root / "part/test/dent/002.png").unlink()
    with pytest.raises(DataError) as caught:
        quiet_engine().test(tiny_model(), datamodule=datamodule)
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


def test_masks_of_normal_images_are_not_looked_for(tiny_model: Make, quiet_engine: Make, tmp_path: Path) -> None:
    for index, name in enumerate(("train/ok/000.png", "train/ok/001.png", "test/ok/000.png", "test/ko/001.png")):
        write(tmp_path / "01" / name, pixels(index))
    write(tmp_path / "01/ground_truth/ko/001.png", mask(slice(0, 40), slice(0, 40)))
    images = BTech(root=tmp_path, category="01", train_batch_size=1, eval_batch_size=1, num_workers=0)
    quiet_engine().train(tiny_model(), datamodule=images)
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
    assert "reads only .png and .PNG: 1 files (.jpg) of" in str(recwarn[0].message)
    for folder in ("train", "test", "ground_truth"):
        for path in [*root.glob(f"part/{folder}/*/*.png")]:
            path.rename(path.with_suffix(".jpg"))
        if folder != "train":
            with pytest.raises(DataError, match=r"reads only .*: .* \(\.jpg\) of .* to the data module Folder"):
                check_masks(datamodule)


def test_no_data_module_is_no_fault() -> None:
    check_masks(None)
