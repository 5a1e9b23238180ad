# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Training images in other light and with noise."""

from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.data import Folder
from PIL import Image

from anomalib_inp.data.changed_views import NUM_VIEWS, Augment, ChangedViews


@pytest.fixture
def images(tmp_path: Path):
    (tmp_path / "good").mkdir()
    for number in range(3):
        pixels = np.full((20, 30, 3), 60 + 40 * number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "good" / f"{number}.png")
    data = Folder(
        "data", root=tmp_path, normal_dir="good", val_split_mode="none", test_split_mode="none", num_workers=0
    )
    data.setup()
    return data.train_data


def test_light_changes_as_a_whole_and_evenly_across() -> None:
    """What is left of a grey image is a plane: its mean within 1 ± light, its ends within 1 ± 2 light."""
    grey, seen = torch.full((3, 41, 61), 0.4), []
    for seed in range(200):
        changed = Augment(light=0.3)(grey, torch.Generator().manual_seed(seed)) / 0.4
        assert torch.equal(changed[0], changed[1])
        assert torch.diff(changed[0], n=2, dim=0).abs().max() < 1e-5
        assert torch.diff(changed[0], n=2, dim=1).abs().max() < 1e-5
        seen.append((float(changed.mean()), float(changed.max() - changed.min())))
    means, slopes = np.array(seen).T
    assert 0.7 <= means.min() < 0.72
    assert 1.28 < means.max() <= 1.3 + 1e-5
    assert 0.5 < slopes.max() <= 0.6
    assert slopes.min() < 0.02


def test_noise_is_as_strong_as_said_at_most() -> None:
    grey = torch.full((3, 100, 100), 0.5)
    strengths = [float(Augment(noise=0.05)(grey, torch.Generator().manual_seed(seed)).std()) for seed in range(100)]
    assert 0.045 < max(strengths) < 0.0515
    assert min(strengths) < 0.005
    assert abs(np.mean(strengths) - 0.025) < 0.005


def test_values_stay_in_range() -> None:
    changed = Augment(noise=0.5, light=0.9)(torch.rand(3, 30, 30))
    assert changed.min() >= 0
    assert changed.max() <= 1


def test_views_that_are_kept_are_the_image_and_others_always_the_same(images) -> None:
    views = ChangedViews(images, Augment(0.02, 0.3), anew=False)
    assert len(views) == NUM_VIEWS * len(images)
    for path, of_image in views.samples.groupby("image_path"):
        read = [views[index] for index in of_image.index]
        original = torch.from_numpy(np.asarray(Image.open(path))).permute(2, 0, 1) / 255
        assert {item.image_path for item in read} == {path}
        assert sum(torch.allclose(item.image, original, rtol=0, atol=1e-6) for item in read) == 1
        assert len({float(item.image.sum()) for item in read}) == NUM_VIEWS
        assert all(
            torch.equal(views[index].image, item.image) for index, item in zip(of_image.index, read, strict=True)
        )
    digests = {
        ChangedViews(images, augment, anew=False).samples.to_json() for augment in (Augment(0.02), Augment(0.03))
    }
    assert len(digests) == 2  # a cache on disk tells them apart


def test_views_are_drawn_anew(images) -> None:
    views = ChangedViews(images, Augment(light=0.3))
    assert len(views) == len(images)
    first, second = ([views[index].image for index in range(3)] for _ in range(2))
    assert not any(torch.equal(*pair) for pair in zip(first, second, strict=True))
    batch = views.collate_fn([views[0], views[1]])
    assert batch.image.shape == (2, 3, 20, 30)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"light": 1.2}, "light must be a number from 0 to below 1, got 1.2"),
        ({"noise": -0.1}, "noise must be a number from 0 to below 1, got -0.1"),
        ({"noise": True}, "noise must be a number from 0 to below 1, got True"),
        ({"noise": "0.1"}, "got '0.1'"),
        ({"hue": 0.1}, "augment has noise and light, got hue"),
        ({}, "augment changes nothing"),
        ({"noise": 0, "light": 0}, "augment changes nothing"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augment.of(settings)
