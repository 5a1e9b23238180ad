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

from anomalib_inp.data.file_checks import DataError
from anomalib_inp.data.layout import check_layout

Make = Callable[..., Any]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_part(tmp_path / "data")


@pytest.fixture
def datamodule(root: Path) -> MVTecAD:
    return MVTecAD(root=root, category="part", num_workers=0, train_batch_size=1, val_split_mode="same_as_test")


def test_complete_data_pass(datamodule: MVTecAD, root: Path) -> None:
    check_layout(datamodule)
    # What anomalib does not read does no harm.
    (root / "part/test/dent/notes.txt").write_text("seen on Tuesday")
    (root / "part/test/Thumbs.db").write_bytes(b"")
    (root / "part/ground_truth/.DS_Store").write_bytes(b"")
    check_layout(datamodule)


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
        check_layout(datamodule)
    assert str(caught.value).count("has no mask") == 5
    assert "Folder" not in str(caught.value)
    shutil.rmtree(root / "part/ground_truth")
    with pytest.raises(DataError, match="without any masks are read by the data module Folder"):
        check_layout(datamodule)


@pytest.mark.parametrize(("kind", "category"), [(MVTecLOCO, "pushpins"), (AutoVI, "tank_screw")])
def test_masks_in_a_folder_per_image_are_no_fault(kind: type, category: str, tmp_path: Path) -> None:
    for name in ("train/good/000.png", "test/good/000.png", "test/dent/000.png", "ground_truth/dent/000/000.png"):
        write(tmp_path / category / name)
    check_layout(kind(root=tmp_path, category=category))


def test_normal_images_by_another_name_are_no_fault(tmp_path: Path) -> None:
    for name in ("train/ok/000.png", "test/ok/000.png", "test/ko/001.png", "ground_truth/ko/001.png"):
        write(tmp_path / "01" / name)
    check_layout(BTech(root=tmp_path, category="01"))
    check_layout(Folder(name="01", root=tmp_path / "01", normal_dir="train/ok", abnormal_dir="test/ko"))


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
        check_layout(Folder(name="part", root=tmp_path, **named))
    write(tmp_path / "masks/001.png")
    check_layout(Folder(name="part", root=tmp_path, **named))
    # folders in full, and no masks at all
    check_layout(Folder(name="part", normal_dir=tmp_path / "ok", abnormal_dir=tmp_path / "ko"))


def test_images_that_anomalib_does_not_read_are_called_out(
    datamodule: MVTecAD, root: Path, recwarn: pytest.WarningsRecorder
) -> None:
    check_layout(datamodule)
    assert not recwarn
    Image.new("RGB", (8, 8)).save(root / "part/train/good/100.jpg")
    check_layout(datamodule)
    assert "reads only .png and .PNG: 1 files (.jpg) of" in str(recwarn[0].message)
    for folder in ("train", "test", "ground_truth"):
        for path in [*root.glob(f"part/{folder}/*/*.png")]:
            path.rename(path.with_suffix(".jpg"))
        if folder != "train":
            with pytest.raises(DataError, match=r"reads only .*: .* \(\.jpg\) of .* to the data module Folder"):
                check_layout(datamodule)


def test_no_data_module_is_no_fault() -> None:
    check_layout(None)


# --- files in other places -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "train/good/more/100.png",
        "train/100.png",
        "train/bad/100.png",
        "test/100.png",
        "test/dent/.thumbnails/000.png",
        "test/.ipynb_checkpoints/000-checkpoint.png",
        "train/good/._000.png",
        "ground_truth/100.png",
        "ground_truth/good/000_mask.png",
        "ground_truth/dent/more/000_mask.png",
        "overview.png",
    ],
)
def test_files_in_no_place_of_the_layout_are_named_before_anomalib_reads_them(
    datamodule: MVTecAD, root: Path, tiny_model: Make, quiet_engine: Make, name: str
) -> None:
    write(root / "part" / name)
    with pytest.raises(DataError) as caught:
        quiet_engine().fit(tiny_model(), datamodule=datamodule)
    assert f"of {root / 'part'}, but there are others: {name}. Move or remove them." in str(caught.value)


def test_a_folder_called_like_an_image_is_named(datamodule: MVTecAD, root: Path) -> None:
    (root / "part/train/good/000.PNG").mkdir()
    with pytest.raises(DataError, match=r"there are others: train/good/000\.PNG"):
        check_layout(datamodule)


@pytest.mark.parametrize("name", ["000.png", "000_mask.PNG"])
def test_masks_of_either_name_are_paired(datamodule: MVTecAD, root: Path, name: str) -> None:
    (root / "part/ground_truth/dent/000_mask.png").rename(root / "part/ground_truth/dent" / name)
    check_layout(datamodule)
    datamodule.setup()
    pairs = datamodule.test_data.samples.set_index("image_path").mask_path
    assert pairs[str(root / "part/test/dent/000.png")] == str(root / "part/ground_truth/dent" / name)


def test_two_masks_of_an_image_are_named(datamodule: MVTecAD, root: Path) -> None:
    write(root / "part/ground_truth/dent/000.png")
    with pytest.raises(DataError, match=r"dent/000\.png has two masks"):
        check_layout(datamodule)


def test_names_whose_order_would_mix_up_the_masks_are_named(datamodule: MVTecAD, root: Path) -> None:
    """Of 1.png and 10.png, the masks come in the order 10_mask.png, 1_mask.png."""
    for folder, suffix in (("test", ""), ("ground_truth", "_mask")):
        for old, new in (("001", "1"), ("002", "10")):
            (root / f"part/{folder}/dent/{old}{suffix}.png").rename(root / f"part/{folder}/dent/{new}{suffix}.png")
    with pytest.raises(DataError, match=r"1\.png would be given the mask 10_mask\.png: fill numbers up with zeros"):
        check_layout(datamodule)


# --- links -----------------------------------------------------------------------------------------------------------


def linked(path: Path, store: Path) -> None:
    """Move a file or folder away, and leave a link to it."""
    store.mkdir(exist_ok=True)
    target = path.rename(store / path.name)
    path.symlink_to(target, target_is_directory=target.is_dir())


def test_linked_images_that_anomalib_leaves_out_are_named(datamodule: MVTecAD, root: Path, tmp_path: Path) -> None:
    linked(root / "part/train/good/001.png", tmp_path / "store")
    with pytest.warns(UserWarning, match=r"1 images are links, .* MVTecAD leaves out: .*good/001\.png\. Copy them"):
        check_layout(datamodule)
    datamodule.setup()
    assert len(datamodule.train_data) == 1  # else the warning would be none


def test_linked_folders_of_named_folders_are_named(root: Path, tmp_path: Path) -> None:
    (root / "part/train/good/more").mkdir()
    for index in range(2):
        write(root / f"part/train/good/more/{index}.png")
    linked(root / "part/train/good/more", tmp_path / "store")
    module = Folder("part", "train/good", root / "part", val_split_mode="none", test_split_mode="none")
    with pytest.warns(UserWarning, match=r"2 images are links, or in linked folders, which Folder leaves out"):
        check_layout(module)
    module.setup()
    assert len(module.train_data) == 2


def test_links_within_the_data_set_are_no_fault(
    datamodule: MVTecAD, root: Path, recwarn: pytest.WarningsRecorder
) -> None:
    (root / "part/train/good/100.png").symlink_to(root / "part/train/good/000.png")
    check_layout(datamodule)
    assert not recwarn


def test_hidden_files_of_named_folders_are_named(root: Path) -> None:
    write(root / "part/train/good/.ipynb_checkpoints/000.png")
    with pytest.raises(DataError, match=r"Folder reads hidden files as well: \.ipynb_checkpoints/000\.png in .*good"):
        check_layout(Folder("part", "train/good", root / "part"))


def test_hidden_folders_above_are_no_fault(root: Path) -> None:
    hidden = root.rename(root.parent / ".data")
    check_layout(Folder("part", "train/good", hidden / "part"))
    check_layout(MVTecAD(hidden, "part"))


def test_a_path_that_anomalib_does_not_open_is_named(
    root: Path, tmp_path: Path, tiny_model: Make, quiet_engine: Make
) -> None:
    beyond = root.rename(tmp_path / "größe")
    module = {"category": "part", "num_workers": 0, "train_batch_size": 1, "val_split_mode": "same_as_test"}
    with pytest.raises(DataError, match=r"letters beyond ASCII, such as .*größe/part"):
        quiet_engine().fit(tiny_model(), datamodule=MVTecAD(beyond, **module))
    (tmp_path / "link").symlink_to(beyond, target_is_directory=True)
    quiet_engine().fit(tiny_model(), datamodule=MVTecAD(tmp_path / "link", **module))
