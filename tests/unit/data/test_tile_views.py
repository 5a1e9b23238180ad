# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Training images as tiles: their pixels and places, compared with cutting by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.data import Folder
from PIL import Image
from torchvision.transforms.v2 import Resize

from anomalib_inp.data.file_checks import DataError
from anomalib_inp.data.tile_views import TileViews
from anomalib_inp.tiles import Tiles

SIZES = {"a.png": (40, 60), "b.png": (50, 33)}  # height and width
TILES = Tiles((32, 24), 8)


@pytest.fixture
def pixels(tmp_path: Path) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made = {name: rng.integers(0, 256, (*size, 3), dtype=np.uint8) for name, size in SIZES.items()}
    (tmp_path / "good").mkdir()
    for name, image in made.items():
        Image.fromarray(image).save(tmp_path / "good" / name)
    return made


@pytest.fixture
def images(pixels, tmp_path: Path):
    data = Folder(
        "data", root=tmp_path, normal_dir="good", val_split_mode="none", test_split_mode="none", num_workers=0
    )
    data.setup()
    return data.train_data


def test_every_tile_is_an_image(images, pixels) -> None:
    views = TileViews(images, TILES)
    assert len(views) == 2 * 4 + 2 * 2
    expected = {
        name: [(row, column) for row in rows for column in columns]
        for name, rows, columns in (("a.png", [0, 8], [0, 16, 32, 36]), ("b.png", [0, 18], [0, 9]))
    }
    for index in range(len(views)):
        sample, item = views.samples.iloc[index], views[index]
        name, row, column = Path(sample.image_path).name, sample["row"], sample["column"]
        assert (row, column) in expected[name]
        expected[name].remove((row, column))
        cut = pixels[name][row : row + 32, column : column + 24]
        torch.testing.assert_close(torch.as_tensor(item.image), torch.from_numpy(cut).permute(2, 0, 1) / 255)
        assert item.gt_mask.shape == (32, 24)
        assert not item.gt_label
    assert not any(expected.values())
    batch = views.collate_fn([views[0], views[5]])
    assert batch.image.shape == (2, 3, 32, 24)


def test_whole_images_are_resized_before_they_are_cut(images, pixels) -> None:
    views = TileViews(images, TILES, Resize((64, 48), antialias=True), (64, 48))
    whole = Resize((64, 48), antialias=True)(torch.from_numpy(pixels["b.png"]).permute(2, 0, 1)[None] / 255)[0]
    places = views.samples[views.samples.image_path.str.endswith("b.png")]
    assert sorted(places[["row", "column"]].to_numpy().tolist()) == [
        [row, column] for row in (0, 24, 32) for column in (0, 16, 24)
    ]
    (index,) = places.index[(places["row"] == 24) & (places["column"] == 16)]
    torch.testing.assert_close(torch.as_tensor(views[index].image), whole[:, 24:56, 16:40], atol=1e-6, rtol=0)


def test_drawn_tiles_stay_or_lie_elsewhere_each_time(images) -> None:
    kept, anew = (TileViews(images, TILES, per_image=5, anew=anew) for anew in (False, True))
    assert len(kept) == len(anew) == 10
    for index in range(10):
        assert torch.equal(kept[index].image, kept[index].image)
    again = [torch.equal(anew[index].image, anew[index].image) for index in range(10)]
    assert sum(again) < 5
    rows, columns = kept.samples["row"], kept.samples["column"]
    assert (rows >= 0).all()
    assert (columns >= 0).all()


def test_the_whole_image_is_one_more_tile(images, pixels) -> None:
    views = TileViews(images, TILES._replace(second_scale=True))
    assert len(views) == 2 * 4 + 2 * 2 + 2
    whole = views.samples.index[views.samples["row"] == -1]
    assert sorted(Path(views.samples.image_path[index]).name for index in whole) == ["a.png", "b.png"]
    for index in whole:
        pixel = pixels[Path(views.samples.image_path[index]).name]
        expected = Resize((32, 24), antialias=True)(torch.from_numpy(pixel).permute(2, 0, 1) / 255)
        torch.testing.assert_close(torch.as_tensor(views[index].image), expected, atol=1e-6, rtol=0)


def test_an_image_is_read_once_for_its_tiles(images, monkeypatch: pytest.MonkeyPatch) -> None:
    from anomalib_inp.data import tile_views

    read = []
    original = tile_views.read_pixels
    monkeypatch.setattr(tile_views, "read_pixels", lambda path: read.append(path) or original(path))
    views = TileViews(images, TILES)
    for index in range(len(views)):
        views[index]
    assert sorted(read) == sorted(images.samples.image_path)


def test_images_smaller_than_a_tile_are_named(images) -> None:
    with pytest.raises(DataError, match=r"1 images are smaller than a tile of 24 x 48 pixels: .*a\.png \(60 x 40\)"):
        TileViews(images, Tiles((48, 24), 8))
