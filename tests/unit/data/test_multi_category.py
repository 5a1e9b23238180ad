# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import pytest
import torch
from anomalib.data import MVTecAD
from lightning.pytorch.strategies import SingleDeviceStrategy
from PIL import Image
from torchvision.transforms.v2 import RandomHorizontalFlip

from anomalib_inp.data import MultiCategory, Source
from anomalib_inp.data.file_checks import DataError
from anomalib_inp.data.sample import CATEGORIES
from anomalib_inp.data.subset import Subset
from anomalib_inp.training.data_check import DataCheck


@pytest.fixture(scope="module")
def root(write_small_sample: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_sample(tmp_path_factory.mktemp("multi"))


@pytest.fixture
def own(root: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(root, tmp_path / "own"))


def ready(*args, **kwargs) -> MultiCategory:
    data = MultiCategory(*args, num_workers=0, **kwargs)
    data.prepare_data()
    data.setup()
    return data


def plain_folder(root: Path) -> Source:
    """The same images as folders without masks."""
    arguments = {"normal_dir": "train/good", "normal_test_dir": "test/good", "abnormal_dir": ["test/defect"]}
    return Source("Folder", str(root), ["parts"], arguments)


def make_parts(root: Path, folder: Path) -> Path:
    shutil.copytree(root / CATEGORIES[0] / "train", folder / "parts" / "train")
    shutil.copytree(root / CATEGORIES[0] / "test" / "good", folder / "parts" / "test" / "good")
    (folder / "parts" / "test" / "defect").mkdir()
    defects = [path for path in sorted((root / CATEGORIES[0] / "test").rglob("*.png")) if path.parent.name != "good"]
    for index, path in enumerate(defects):
        shutil.copy(path, folder / "parts" / "test" / "defect" / f"{index:03d}.png")
    return folder


def test_all_categories_of_a_folder(root: Path) -> None:
    data = ready("MVTecAD", str(root), val_split_mode="from_train", val_split_ratio=0.25, seed=3)
    for subset in ("train_data", "val_data", "test_data"):
        together = getattr(data, subset)
        alone = []
        for category in CATEGORIES:
            module = MVTecAD(root, category, val_split_mode="from_train", val_split_ratio=0.25, seed=3)
            module.setup()
            alone.append(getattr(module, subset))
        assert dict(Counter(together.samples.category)) == {
            name: len(part) for name, part in zip(CATEGORIES, alone, strict=True)
        }
        assert set(together.samples.image_path) == {path for part in alone for path in part.samples.image_path}
    for index in range(0, len(data.test_data), 5):
        item, row = data.test_data[index], data.test_data.samples.iloc[index]
        assert item.image_path == row.image_path
        assert item.gt_label == row.label_index
        assert bool(item.gt_mask.any()) == bool(row.label_index)


def test_different_classes_join_and_missing_masks_are_empty(root: Path, tmp_path: Path) -> None:
    folder = plain_folder(make_parts(root, tmp_path))
    data = ready(sources=(Source("MVTecAD", str(root), list(CATEGORIES[1:])), folder))
    assert sorted(set(data.test_data.samples.category)) == [
        "Folder/parts",
        *(f"MVTecAD/{name}" for name in sorted(CATEGORIES[1:])),
    ]
    with pytest.raises(TypeError):  # anomalib's own sum
        data.modules["Folder/parts"].train_data + data.modules["MVTecAD/grass"].train_data
    rows = [int((data.test_data.samples.category == name).argmax()) for name in ("Folder/parts", "MVTecAD/grass")]
    for order in (rows, rows[::-1]):
        batch = data.test_data.collate_fn([data.test_data[row] for row in order])
        assert batch.gt_mask.shape[0] == 2
        assert not batch.gt_mask[order.index(rows[0])].any()
    alone = data.test_data.collate_fn([data.test_data[rows[0]]])
    assert alone.gt_mask is None
    for batch in data.test_dataloader():
        assert len(batch.image) == len(batch.image_path)


def test_training_on_some_and_testing_on_others(root: Path) -> None:
    data = ready("MVTecAD", str(root), train_on=["brick", "grass"], test_on=["gravel"])
    assert set(data.train_data.samples.category) == {"brick", "grass"}
    assert set(data.test_data.samples.category) == set(data.val_data.samples.category) == {"gravel"}
    sources = [Source("MVTecAD", str(root), [name], name=name) for name in CATEGORIES]
    data = ready(sources=sources, train_on=["brick"], test_on=["grass", "gravel/gravel"])
    assert set(data.train_data.samples.category) == {"brick/brick"}
    assert set(data.test_data.samples.category) == {"grass/grass", "gravel/gravel"}


def test_sampling(root: Path, own: Path) -> None:
    for image in sorted((own / "brick" / "train" / "good").iterdir())[2:]:
        image.unlink()

    def share(sampling: str) -> float:
        torch.manual_seed(0)
        data = ready("MVTecAD", str(own), sampling=sampling, train_batch_size=3)
        paths = [path for _ in range(20) for batch in data.train_dataloader() for path in batch.image_path]
        assert len(paths) == 20 * 18  # incomplete batches are dropped
        return sum("/brick/" in path for path in paths) / len(paths)

    assert share("natural") == pytest.approx(2 / 18)
    assert share("balanced") == pytest.approx(1 / 3, abs=0.1)


def test_shots_are_drawn_with_a_seed_and_listed(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        data = ready("MVTecAD", str(root), shots=2, seed=1)
    drawn = data.train_data.samples
    assert dict(Counter(drawn.category)) == dict.fromkeys(CATEGORIES, 2)
    assert all(path in caplog.text for path in drawn.image_path)
    assert (
        ready("MVTecAD", str(root), shots=2, seed=1).train_data.samples.image_path.tolist() == drawn.image_path.tolist()
    )
    others = [ready("MVTecAD", str(root), shots=2, seed=seed).train_data.samples.image_path.tolist() for seed in (2, 3)]
    assert drawn.image_path.tolist() not in others
    assert len(data.test_data) == len(ready("MVTecAD", str(root)).test_data)


def test_all_faults_are_named_at_once(root: Path, own: Path) -> None:
    with pytest.raises(ValueError, match=r"no image data module Nope") as caught:
        MultiCategory(
            sources=(
                Source("Nope"),
                Source("MVTecAD", str(root), ["brick", "nut", "bolt"]),
                Source("Folder", str(root), ["grass"]),
            )
        )
    assert "no category nut, bolt; there is" in str(caught.value)
    assert "Folder/grass: " in str(caught.value)
    assert "normal_dir" in str(caught.value)

    shutil.rmtree(own / "brick" / "ground_truth")
    shutil.rmtree(own / "grass" / "train")
    (own / "grass" / "train" / "good").mkdir(parents=True)
    for image in (own / "gravel" / "test").rglob("*.png"):
        image.unlink()
    data = MultiCategory("MVTecAD", str(own), list(CATEGORIES), num_workers=0)
    shutil.rmtree(own / "gravel" / "ground_truth")
    data.prepare_data()
    with pytest.raises(DataError, match=r"brick: Every image in test/<defect> needs its mask") as caught:
        data.setup()
    assert "grass: there are no images to train on" in str(caught.value)
    assert "gravel: there are no anomalous images to test on" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shots": 0}, "shots must be a number of normal images"),
        ({"shots": 100}, "shots=100 normal images of each category, but brick has 8, grass has 8, gravel has 8"),
        ({"sampling": "even"}, "sampling must be natural or balanced"),
        ({"categories": []}, "no categories of MVTecAD are asked for"),
        ({"train_on": ["nut"]}, "train_on must name categories or sources, got nut\n- there are brick"),
        ({"train_on": ["nut"], "test_on": ["bolt"]}, "got nut\n- test_on must .* got bolt\n- there are brick, grass"),
        ({"sources": [Source("MVTecAD")], "categories": ["brick"]}, "belong to one source: name them in each"),
        ({"shots": 1.5}, "shots must be a number of normal images"),
        ({"shots": True}, "shots must be a number of normal images"),
        ({"shots": 2, "train_augmentations": RandomHorizontalFlip()}, "the same in every epoch. Leave out train_augm"),
        ({"seed": -1}, "seed must be a whole number that is not negative, got -1"),
        ({"val_split_mode": "from_train", "val_split_ratio": 2}, "val_split_ratio must be a share of the images"),
        ({"test_split_ratio": 0.0}, "test_split_ratio must be a share of the images"),
        ({"categories": "brick,grass"}, r"no category brick,grass; .*; several are given as a list, '\[one, other\]'"),
        ({"arguments": {"category": "brick"}}, "brick: category cannot be among the arguments: give root and"),
        ({"sources": [Source("Visa", "visa")]}, "source=MVTecAD in root=.* is none of the sources, Visa in visa: give"),
        ({"root": None, "sources": [Source("MVTecAD", name="a/b")]}, "a source cannot be called a/b"),
        ({"sources": [{"source": "Visa"}]}, "sources must be one anomalib_inp.data.Source at least"),
        ({"sources": []}, "sources must be one anomalib_inp.data.Source at least"),
        ({"source": "MVTec3D"}, "there is no image data module MVTec3D; anomalib has AutoVI, BMAD, BTech"),
        ({"categories": ["nut"]}, "no category nut; there is brick, grass, gravel$"),
        ({"test_on": []}, "test_on must name categories or sources, got none"),
        ({"source": "Kolektor", "val_split_mode": "nonsense"}, "nonsense"),
        ({"source": "RealIAD", "val_split_ratio": 0.5, "categories": ["usb"]}, "RealIAD has no val_split_ratio"),
    ],
)
def test_what_makes_no_sense_is_refused(root: Path, arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ready(**{"source": "MVTecAD", "root": str(root), **arguments})


def test_a_root_beside_sources_is_one_of_theirs(root: Path) -> None:
    # what stacked settings come to: configs/data names one root, configs/setting several
    sources = [Source("MVTecAD", str(root), [name], name=name) for name in CATEGORIES[:2]]
    assert len(MultiCategory("MVTecAD", str(root), sources=sources).modules) == 2
    with pytest.raises(ValueError, match="source=MPDD in root=None is none of the sources"):
        MultiCategory("MPDD", sources=sources)


def test_one_name_need_not_be_a_list(root: Path) -> None:
    data = MultiCategory("MVTecAD", str(root), train_on="brick", test_on="grass")
    assert (list(data.trained), list(data.tested)) == (["brick"], ["grass"])


def test_few_images_are_a_batch_in_each_of_several_processes(root: Path) -> None:
    data = ready("MVTecAD", str(root), ["brick"], train_batch_size=5)
    assert len(data.train_data) == 8
    assert len(data.train_dataloader()) == 1  # the incomplete one is dropped
    data.trainer = SimpleNamespace(world_size=2)
    assert not data.train_dataloader().drop_last  # each has 4 images
    data.train_batch_size = 4
    assert data.train_dataloader().drop_last


@pytest.mark.parametrize("folder", ["empty", "missing"])
def test_validation_images_cannot_be_split_off_nothing(own: Path, folder: str) -> None:
    shutil.rmtree(own / "grass" / "train")
    if folder == "empty":
        (own / "grass" / "train" / "good").mkdir(parents=True)
    only = {"train_on": ["brick"], "test_on": ["brick", "grass"]}
    for mode in ("same_as_test", "from_test"):
        images = ready("MVTecAD", str(own), val_split_mode=mode, **only)
        assert set(images.test_data.samples.category) == {"brick", "grass"}
    with pytest.raises(DataError, match="grass: there are no images to train on"):
        ready("MVTecAD", str(own))
    for arguments in ({}, only):
        message = "- grass: there are no normal training images, of which val_split_mode=from_train takes some; same_as"
        with pytest.raises(DataError, match=message):
            ready("MVTecAD", str(own), val_split_mode="from_train", val_split_ratio=0.25, **arguments)


@pytest.mark.parametrize("mode", ["from_train", "from_test", "synthetic", "same_as_test"])
def test_without_validation_all_images_are_for_training_and_test(root: Path, mode: str) -> None:
    """Whoever asks for the split: the data module by default, or the arguments of its source."""
    source = Source("MVTecAD", str(root), ["brick"], {"val_split_mode": mode, "val_split_ratio": 0.5})
    data = MultiCategory(sources=(source,), num_workers=0).without_validation()
    data.setup()
    assert (len(data.train_data), len(data.test_data)) == (8, 10)


def test_an_image_is_of_one_category(root: Path) -> None:
    same = [Source("MVTecAD", str(root), ["brick"], name=name) for name in ("one", "other")]
    with pytest.raises(DataError, match=r"tested in several categories \(one/brick, other/brick\).*brick/test"):
        ready(sources=same)


def test_no_category_is_called_as_the_mean_is(own: Path) -> None:
    (own / "brick").rename(own / "mean")
    with pytest.raises(ValueError, match="a category cannot be called mean"):
        MultiCategory("MVTecAD", str(own))


def test_what_is_neither_there_nor_to_be_had(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(_: MVTecAD) -> None:
        msg = "no network"
        raise URLError(msg)

    monkeypatch.setattr(MVTecAD, "prepare_data", offline)
    with pytest.raises(DataError, match=f"bottle: it is not in {own}, and cannot be downloaded: no network"):
        MultiCategory("MVTecAD", str(own), ["bottle"]).prepare_data()


def test_a_data_set_that_is_one_category_needs_no_name() -> None:
    assert list(MultiCategory("Kolektor", "nowhere").modules) == ["Kolektor"]


def test_before_a_download_all_are_those_of_the_data_set(tmp_path: Path) -> None:
    assert len(MultiCategory("MVTecAD", str(tmp_path)).modules) == 15
    assert len(MultiCategory("Visa", str(tmp_path)).modules) == 12
    assert len(MultiCategory("RealIAD", str(tmp_path)).modules) == 30


@pytest.mark.parametrize(("source", "below"), [("Visa", "visa_pytorch"), ("RealIAD", "realiad_256")])
def test_all_are_those_in_the_folder(source: str, below: str, tmp_path: Path) -> None:
    names = {"Visa": ["candle", "cashew"], "RealIAD": ["audiojack", "usb"]}[source]
    for name in names:
        (tmp_path / below / name).mkdir(parents=True)
    assert list(MultiCategory(source, str(tmp_path)).modules) == names


def test_mvtec_ad_2_is_read_with_its_normal_test_images(root: Path, tmp_path: Path) -> None:
    can = tmp_path / "can"
    defects = sorted((root / "brick" / "ground_truth").glob("*/*_mask.png"))[:2]
    for place in ("train/good", "validation/good", "test_public/good"):
        shutil.copytree(root / "brick" / "train" / "good", can / place)
    for mask in defects:
        for part, file in (
            ("bad", mask.parents[2] / "test" / mask.parent.name / mask.name.replace("_mask", "")),
            ("ground_truth/bad", mask),
        ):
            (can / "test_public" / part).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, can / "test_public" / part / file.name)
    data = ready("MVTecAD2", str(tmp_path))
    masks = [bool(data.test_data[index].gt_mask.any()) for index in range(len(data.test_data))]
    assert sum(masks) == len(defects) == data.test_data.samples.label_index.sum()
    assert len(data.train_data) == len(data.val_data) == len(masks) - len(defects)


def test_mvtec_loco_is_read_with_all_masks_of_an_image(root: Path, tmp_path: Path) -> None:
    box = tmp_path / "breakfast_box"
    mask = next((root / "brick" / "ground_truth").glob("*/000_mask.png"))
    for place in ("train/good", "validation/good", "test/good", "test/logical_anomalies"):
        shutil.copytree(root / "brick" / "train" / "good", box / place)
    defects = sorted((box / "test" / "logical_anomalies").iterdir())
    for defect in defects:
        masks = box / "ground_truth" / "logical_anomalies" / defect.stem
        masks.mkdir(parents=True)
        shutil.copy(mask, masks / "000.png")
        Image.open(mask).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(masks / "001.png")
    data = ready("MVTecLOCO", str(tmp_path))
    item = data.test_data[int(data.test_data.samples.label_index.argmax())]
    assert torch.equal(item.gt_mask, item.gt_mask.flip(-1))
    assert item.gt_mask.any()
    assert item.mask_path is None  # the visualizer draws the masks themselves, not the first file
    assert Subset(data.test_data.samples).has_masks == [True]
    (masks / "001.png").write_bytes(b"no image")
    data.trainer = SimpleNamespace(datamodule=data, strategy=SingleDeviceStrategy("cpu"))
    module = SimpleNamespace(pre_processor=None, model=None)
    with pytest.raises(DataError, match=r"001\.png"):
        DataCheck().setup(data.trainer, module, "test")


def test_all_warns_of_what_is_missing(own: Path, recwarn: pytest.WarningsRecorder) -> None:
    (own / "brick").rename(own / "bottle")
    assert "bottle" in MultiCategory("MVTecAD", str(own)).modules
    assert any("the categories cable, capsule" in str(warning.message) for warning in recwarn)


@pytest.mark.parametrize("name", ["train_batch_size", "num_workers", "test_augmentations"])
def test_what_all_categories_share_is_no_argument_of_a_source(root: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} cannot be among the arguments of a source: .* of MultiCategory"):
        MultiCategory("MVTecAD", str(root), arguments={name: 2})
