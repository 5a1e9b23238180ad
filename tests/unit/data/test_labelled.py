# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.data import AnomalibDataModule, Folder, MVTecAD, MVTecLOCO
from PIL import Image
from torchvision.transforms.v2 import Resize

from anomalib_inp import MultiCategory
from anomalib_inp.data.file_checks import DataError
from anomalib_inp.data.labelled import LabelledAnomalies
from anomalib_inp.data.sample import write_sample_data

SIDE = 64
"""Pixels of the training images, and so of the defects."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample_data(tmp_path_factory.mktemp("data") / "sample", categories=("brick",))


@pytest.fixture
def datamodule(root: Path) -> Callable[..., MVTecAD]:
    def make(folder: Path = root, **kwargs: Any) -> MVTecAD:
        return ready(MVTecAD(folder, "brick", num_workers=0, augmentations=Resize((SIDE, SIDE)), **kwargs))

    return make


def ready(data: AnomalibDataModule) -> Any:
    data.prepare_data()
    data.setup()
    return data


def trained(data: AnomalibDataModule, labelled: LabelledAnomalies) -> LabelledAnomalies:
    """Do what a training does before its first step."""
    labelled.find(data)
    labelled.take_out(data)
    return labelled


# --- drawn from the test images ---------------------------------------------------------------------------------------


def test_another_seed_draws_others(datamodule) -> None:
    data, drawn = datamodule(), []
    for seed in (0, 1, 0):
        labelled = trained(data, LabelledAnomalies(3, seed))
        assert len(data.test_data) == 33  # what the last model held out is back
        drawn.append(set(labelled.digests))
    assert drawn[0] == drawn[2] != drawn[1]


def test_a_second_training_forgets_nothing_of_the_first(datamodule) -> None:
    data, labelled = datamodule(), LabelledAnomalies(3)
    first = set(trained(data, labelled).digests)
    labelled.seed = 1
    trained(data, labelled)
    assert first < set(labelled.digests)
    assert len(data.test_data) == 36 - len(labelled.digests)
    assert labelled.defects
    assert pickle.loads(pickle.dumps(labelled)).defects == []  # noqa: S301 - no pixels of them go along


def test_images_of_the_same_name_in_other_data_are_tested(datamodule, root: Path, tmp_path: Path) -> None:
    labelled = trained(datamodule(), LabelledAnomalies(3))
    copy = tmp_path / "copy" / "brick"
    shutil.copytree(root / "brick", copy)
    for path in copy.glob("test/*/*.png"):
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    others = datamodule(tmp_path / "copy")
    labelled.take_out(others)
    assert len(others.test_data) == 36


def test_drawing_from_images_without_anomalies(root: Path) -> None:
    normal = ready(Folder("brick", "train/good", root / "brick", num_workers=0))
    with pytest.raises(DataError, match="Folder has no anomalous ones"):
        LabelledAnomalies(2).find(normal)


def test_drawing_more_than_there_are(datamodule) -> None:
    with pytest.raises(DataError, match=r"leaves no anomalous image .* there are 24"):
        LabelledAnomalies(24).find(datamodule())


def test_data_without_masks(root: Path) -> None:
    folders = {"normal_dir": "train/good", "normal_test_dir": "test/good", "abnormal_dir": "test/hole"}
    with pytest.raises(DataError, match="need masks"):
        LabelledAnomalies(2).find(ready(Folder("brick", root=root / "brick", num_workers=0, **folders)))


def test_they_are_of_what_is_trained_on(write_small_sample: Callable[..., Path], tmp_path: Path) -> None:
    root = write_small_sample(tmp_path)

    def drawn(**kwargs: Any) -> set[str]:
        data = ready(MultiCategory("MVTecAD", str(root), num_workers=0, **kwargs))
        return {Path(path).parts[0] for path in trained(data, LabelledAnomalies(1)).digests}

    with pytest.warns(UserWarning, match="no labelled anomalies of brick, which are trained on but not tested on"):
        assert drawn(train_on=["brick", "grass"], test_on=["grass", "gravel"]) == {"grass"}
    with pytest.raises(DataError, match="but none of that is tested on"):
        drawn(train_on=["brick", "grass"], test_on=["gravel"])


@pytest.mark.parametrize("joined", [False, True])
def test_of_several_masks_of_an_image_all_are_pasted(root: Path, tmp_path: Path, joined: bool) -> None:
    """In MVTec LOCO each image has a folder of masks."""
    box = tmp_path / "pushpins"
    for place in ("train/good", "validation/good", "test/good"):
        (box / place).mkdir(parents=True)
        shutil.copy(root / "brick/train/good/000.png", box / place)
    for index in range(2):
        (box / f"ground_truth/logical_anomalies/{index:03}").mkdir(parents=True)
        (box / "test/logical_anomalies").mkdir(exist_ok=True)
        shutil.copy(root / f"brick/test/hole/{index:03}.png", box / "test/logical_anomalies")
        for number, corner in enumerate((slice(0, 84), slice(84, 168))):
            mask = np.zeros((168, 168), dtype=np.uint8)
            mask[corner, corner] = 255
            Image.fromarray(mask).save(box / f"ground_truth/logical_anomalies/{index:03}/{number:03}.png")
    if joined:
        data = ready(MultiCategory("MVTecLOCO", str(tmp_path), num_workers=0, augmentations=Resize((SIDE, SIDE))))
    else:
        data = ready(MVTecLOCO(tmp_path, "pushpins", num_workers=0, augmentations=Resize((SIDE, SIDE))))
    labelled = trained(data, LabelledAnomalies(1))
    (defect,) = labelled.defects
    both = torch.zeros(SIDE, SIDE)
    both[: SIDE // 2, : SIDE // 2] = both[SIDE // 2 :, SIDE // 2 :] = 1
    assert torch.equal(defect.mask, both)
    assert len(data.test_data) == 2  # one normal, one anomalous
    # a mask of another size is named, not the first of them
    for path in box.glob("ground_truth/*/*/001.png"):
        Image.new("L", (100, 100)).save(path)
    with pytest.raises(DataError, match=r"001\.png has another size than"):
        LabelledAnomalies(1).find(data)


# --- of a folder ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(root: Path, tmp_path: Path) -> Path:
    """Two labelled anomalies, copies of test images."""
    folder = tmp_path / "labelled"
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for index in range(2):
        shutil.copy(root / f"brick/test/hole/{index:03}.png", folder / f"images/{index}.png")
        shutil.copy(root / f"brick/ground_truth/hole/{index:03}_mask.png", folder / f"masks/{index}_mask.png")
    return folder


def test_labelled_anomalies_of_a_folder(datamodule, folder: Path) -> None:
    labelled = trained(datamodule(), LabelledAnomalies(str(folder)))
    assert len(labelled.defects) == 2
    mask = np.asarray(Image.open(folder / "masks/0_mask.png")) > 0
    share = labelled.defects[0].mask.sum().item() / SIDE**2
    assert share == pytest.approx(mask.mean(), rel=0.1)
    # They are copies of test images, by other names: these are not tested on.
    again = datamodule()
    labelled.take_out(again)
    assert len(again.test_data) == 34


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no mask", r"no mask for .*1\.png"),
        ("empty mask", r"1\.png are empty"),
        ("size", "another size"),
        ("nothing", "found no image"),
        ("32 bits", r"1\.png \(mode F; expected 8 bits per channel"),
        ("truncated", r"cannot be decoded, .*1\.png"),
        ("same name", r"1\.jpg and .*1\.png belongs"),
        ("two masks", r"1\.png has two masks"),
    ],
)
def test_labelled_anomalies_that_cannot_be_used(datamodule, folder: Path, fault: str, message: str) -> None:
    mask = folder / "masks/1_mask.png"
    if fault == "no mask":
        mask.unlink()
    elif fault == "nothing":
        shutil.rmtree(folder / "images")
    elif fault == "32 bits":
        Image.fromarray(np.zeros((168, 168), dtype=np.float32)).save(folder / "images/1.png", format="TIFF")
    elif fault == "truncated":
        whole = (folder / "images/1.png").read_bytes()
        (folder / "images/1.png").write_bytes(whole[: len(whole) // 2])
    elif fault == "two masks":
        shutil.copy(mask, folder / "masks/1.png")
    elif fault == "same name":
        Image.new("RGB", (168, 168)).save(folder / "images/1.jpg")
    else:
        side = 168 if fault == "empty mask" else 100
        Image.fromarray(np.zeros((side, side), dtype=np.uint8)).save(mask)
    with pytest.raises(DataError, match=message):
        LabelledAnomalies(str(folder)).find(datamodule())


@pytest.mark.parametrize("place", [0, 81, 167])
def test_the_smallest_defect_is_not_lost(datamodule, folder: Path, place: int) -> None:
    mask = np.zeros((168, 168), dtype=np.uint8)
    mask[place, place] = 255
    Image.fromarray(mask).save(folder / "masks/0_mask.png")
    labelled = LabelledAnomalies(str(folder))
    labelled.find(datamodule())
    assert labelled.defects[0].mask.sum() == 1
