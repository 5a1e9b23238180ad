# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from anomalib.data import MVTecAD
from PIL import Image

from anomalib_inp.data import sample
from anomalib_inp.data.sample import CATEGORIES, DEFECTS, MIN_CHANGE, WINDOW, write_sample_data


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample_data(tmp_path_factory.mktemp("sample") / "new" / "data")


@pytest.mark.parametrize("category", CATEGORIES)
def test_layout_is_that_of_mvtec_ad(root: Path, category: str) -> None:
    folders = {"train/good": 40, "test/good": 12}
    folders |= {f"{part}/{kind}": 6 for part in ("test", "ground_truth") for kind in DEFECTS}
    found = [path.parent.relative_to(root / category).as_posix() for path in (root / category).rglob("*.png")]
    assert {folder: found.count(folder) for folder in found} == folders

    for image in (root / category / "test").rglob("*.png"):
        assert Image.open(image).mode == "L"
        assert Image.open(image).size == (WINDOW, WINDOW)
        if image.parent.name != "good":
            mask = root / category / "ground_truth" / image.parent.name / f"{image.stem}_mask.png"
            assert np.unique(np.asarray(Image.open(mask))).tolist() == [0, 255]


def test_root_holds_the_data_and_nothing_temporary(root: Path) -> None:
    assert sorted(path.name for path in root.iterdir()) == sorted([*CATEGORIES, "README.txt", sample.MARKER])
    assert list(root.parent.iterdir()) == [root]
    readme = (root / "README.txt").read_text(encoding="utf-8")
    for text in ("Simulated defects on real photographs", "CC0", "say nothing about real defects", *CATEGORIES):
        assert text in readme


def test_loads_as_mvtec_ad(root: Path) -> None:
    datamodule = MVTecAD(root=root, category="brick", num_workers=0)
    datamodule.prepare_data()
    datamodule.setup()
    assert len(datamodule.train_data) == 40
    assert len(datamodule.test_data) == 12 + 4 * 6
    assert datamodule.test_data.task == "segmentation"

    for item in datamodule.test_data:
        assert item.image.shape == (3, WINDOW, WINDOW)
        path = Path(item.image_path)
        assert bool(item.gt_label) == (path.parent.name != "good")
        if item.gt_label:
            mask = sample._defect_sample("brick", path.parent.name, int(path.stem), seed=0)[2]
            np.testing.assert_array_equal(item.gt_mask.numpy().astype(bool), mask)
        else:
            assert not item.gt_mask.any()


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize("kind", DEFECTS)
def test_mask_is_exactly_what_the_defect_changed(root: Path, category: str, kind: str) -> None:
    for index in range(6):
        clean, defective, mask = sample._defect_sample(category, kind, index, seed=0)
        change = np.abs(defective.astype(int) - clean.astype(int))
        np.testing.assert_array_equal(change >= MIN_CHANGE, mask)
        np.testing.assert_array_equal(change > 0, mask)
        assert 0.005 < mask.mean() < 0.1
        # Visible on the whole and not only by the smallest change that counts.
        assert change[mask].mean() > 15
        # The whole defect is in the picture.
        assert not mask[[0, -1]].any()
        assert not mask[:, [0, -1]].any()

        stored = np.asarray(Image.open(root / category / "test" / kind / f"{index:03}.png"))
        np.testing.assert_array_equal(stored, defective)


@pytest.mark.parametrize("index", range(6))
def test_stains_are_dark_and_bright_in_turn(index: int) -> None:
    clean, defective, mask = sample._defect_sample("grass", "stain", index, seed=0)
    change = defective[mask].mean() - clean[mask].mean()
    assert change < -15 if index % 2 == 0 else change > 15


def test_unchanged_pixels_of_a_defect_are_moved_enough_to_count() -> None:
    clean = np.arange(256, dtype=np.uint8).reshape(16, 16)
    footprint = np.ones((16, 16), dtype=bool)
    footprint[:, 0] = False
    change = np.abs(sample.apply_change(clean, clean + 1.0, footprint).astype(int) - clean)
    np.testing.assert_array_equal(change, footprint * MIN_CHANGE)


def test_training_and_test_pixels_are_disjoint(monkeypatch: pytest.MonkeyPatch) -> None:
    # Every pixel tells which part of the photograph it is from, whatever the exposure.
    photograph = np.full((512, 512), 200, dtype=np.uint8)
    photograph[sample.TRAIN_ROWS] = 50
    monkeypatch.setattr(sample, "photograph", lambda category: photograph)

    files = [file for category in CATEGORIES for file in sample._files(category, seed=0)]
    train = [image for path, image in files if path.startswith("train/")]
    # Patches are foreign pixels too, but from test rows; the other defects are drawn.
    test = [image for path, image in files if path.startswith(("test/good/", "test/patch/"))]
    test += [sample._defect_sample("grass", kind, index, seed=0)[0] for kind in DEFECTS for index in range(6)]
    assert max(image.max() for image in train) < 100
    assert min(image.min() for image in test) > 150


def test_same_seed_gives_the_same_bytes_and_another_seed_others(root: Path, tmp_path: Path) -> None:
    first = contents(root / "grass")
    # Alone: what is written for one category does not depend on the others.
    assert contents(write_sample_data(tmp_path / "same", categories=["grass"]) / "grass") == first
    other = contents(write_sample_data(tmp_path / "other", categories=["grass"], seed=1) / "grass")
    assert other.keys() == first.keys()
    assert all(other[path] != first[path] for path in first)


def test_images_differ(root: Path) -> None:
    for category in CATEGORIES:
        images = [data for path, data in contents(root / category).items() if not path.startswith("ground_truth")]
        assert len(set(images)) == len(images)


def test_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*args: object) -> None:
        msg = "The photographs must come from the installed files."
        raise AssertionError(msg)

    monkeypatch.setattr(socket.socket, "connect", connect)
    sample.photograph.cache_clear()
    for category in CATEGORIES:
        assert sample.photograph(category).shape == (512, 512)


@pytest.mark.parametrize("categories", [CATEGORIES, ("grass",)])
def test_second_call_writes_nothing(root: Path, categories: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(*args: object) -> None:
        msg = "Nothing should be drawn."
        raise AssertionError(msg)

    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    monkeypatch.setattr(sample, "_files", draw)
    assert write_sample_data(str(root), categories=categories) == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_refuses_a_foreign_folder(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="holds other files"):
        write_sample_data(tmp_path, categories=["brick"])
    assert contents(tmp_path) == {"thesis.txt": b"precious"}


def test_refuses_other_sample_data(root: Path, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match=r"'seed': 7.*holds.*'seed': 0"):
        write_sample_data(root, seed=7)
    target = tmp_path / "data"
    target.mkdir()
    write_sample_data(target, categories=["brick"])
    with pytest.raises(FileExistsError, match=r"\['brick'\]"):
        write_sample_data(target, categories=["brick", "grass"])


def test_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(category: str, seed: int) -> Iterator[tuple[str, np.ndarray]]:
        yield "train/good/000.png", np.zeros((WINDOW, WINDOW), dtype=np.uint8)
        raise KeyboardInterrupt

    monkeypatch.setattr(sample, "_files", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_sample_data(tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("categories", [(), ("brick", "bottle"), "brick"])
def test_unknown_or_no_categories(tmp_path: Path, categories: tuple[str, ...] | str) -> None:
    with pytest.raises(ValueError, match="must be some of"):
        write_sample_data(tmp_path / "data", categories=categories)
