# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import math
from pathlib import Path

import pytest
import torch
from anomalib.data import MVTecAD
from torch import Tensor
from torchvision.transforms.v2 import Resize

from anomalib_inp.data.few_shot import NUM_VIEWS, FewShotViews, few_shot_views
from anomalib_inp.data.sample import write_sample_data
from anomalib_inp.preprocessing import InpPreProcessor

ROTATIONS = slice(1, 9)
TRANSLATIONS = slice(9, 17)
FLIP, GREY = 17, 18
TURNS = slice(19, 22)


TOLERANCE = 2e-5  # that of tests/golden/README.md for the views


def image(height: int = 20, width: int = 20, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(0), dtype=dtype)


def moved(original: Tensor, left: int, up: int) -> Tensor:
    """The image moved by whole pixels; what comes in is its mirror image."""
    height, width = original.shape[-2:]
    padded = torch.cat([original.flip(1), original, original.flip(1)], dim=1)
    padded = torch.cat([padded.flip(2), padded, padded.flip(2)], dim=2)
    return padded[:, height + up : 2 * height + up, width + left : 2 * width + left]


@pytest.mark.parametrize("size", [(20, 20), (20, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_and_precision(size: tuple[int, int], dtype: torch.dtype) -> None:
    original = image(*size, dtype=dtype)
    views = few_shot_views(original)
    assert views.shape == (22, 3, *size)
    assert views.dtype == dtype
    assert views.isfinite().all()


def test_first_view_is_the_image_and_the_image_stays_as_it_was() -> None:
    original = image()
    views = few_shot_views(original)
    assert torch.equal(views[0], image())
    views.zero_()
    assert torch.equal(original, image())


def test_views_are_different() -> None:
    views = few_shot_views(image()).flatten(1)
    distance = torch.cdist(views, views) + torch.eye(22, dtype=views.dtype)
    assert distance.min() > 0.5


@pytest.mark.parametrize("size", [(20, 20), (20, 40)])
def test_translations_move_by_tenths_and_twentieths_of_the_side(size: tuple[int, int]) -> None:
    original = image(*size)
    views = few_shot_views(original)[TRANSLATIONS]
    height, width = size
    shares = [(1, 1), (-1, 1), (-1, -1), (1, -1)]
    shifts = [(a * width // part, b * height // part) for part in (10, 20) for a, b in shares]
    assert shifts[0] == (width // 10, height // 10)
    for view, (left, up) in zip(views, shifts, strict=True):
        torch.testing.assert_close(view, moved(original, left, up))


def test_flip_is_an_involution() -> None:
    flipped = few_shot_views(image())[FLIP]
    assert torch.equal(few_shot_views(flipped)[FLIP], image())
    assert torch.equal(flipped[:, :, 0], image()[:, :, -1])


def test_grey() -> None:
    original = image()
    grey = few_shot_views(original)[GREY]
    assert torch.equal(grey[0], grey[1])
    assert torch.equal(grey[0], grey[2])
    torch.testing.assert_close(grey[0], 0.299 * original[0] + 0.587 * original[1] + 0.114 * original[2])


def test_quarter_turns() -> None:
    original = image()
    for quarters, view in enumerate(few_shot_views(original)[TURNS], start=1):
        torch.testing.assert_close(view, torch.rot90(original, quarters, dims=(1, 2)), atol=TOLERANCE, rtol=0)


def test_half_turn_of_a_non_square_image() -> None:
    original = image(20, 40)
    torch.testing.assert_close(few_shot_views(original)[20], original.flip(1, 2), atol=TOLERANCE, rtol=0)


def test_a_positive_angle_turns_counter_clockwise() -> None:
    """A spot at the top moves left; by 45 degrees it comes to lie on the diagonal."""
    spot = torch.zeros(3, 41, 41, dtype=torch.float64)
    spot[:, 10, 20] = 1  # 10 pixels above the centre: its mirror images stay outside the frame
    axis = torch.arange(41, dtype=torch.float64) - 20
    angles = (-45.0, -33.75, -22.5, -11.25, 11.25, 22.5, 33.75, 45.0)
    for angle, view in zip(angles, few_shot_views(spot)[ROTATIONS], strict=True):
        mass = view[0] / view[0].sum()
        across, down = (mass.sum(dim=0) * axis).sum().item(), (mass.sum(dim=1) * axis).sum().item()
        assert across == pytest.approx(-10 * math.sin(math.radians(angle)), abs=0.2)
        assert down == pytest.approx(-10 * math.cos(math.radians(angle)), abs=0.2)


def test_rotations_of_the_mirror_image_are_mirrored_and_opposite() -> None:
    views, mirrored = few_shot_views(image()), few_shot_views(image().flip(2))
    torch.testing.assert_close(mirrored[ROTATIONS], views[ROTATIONS].flip(0).flip(3))


def test_no_view_has_empty_corners() -> None:
    flat = torch.tensor([0.3, -0.5, 1.0], dtype=torch.float64).view(3, 1, 1).expand(3, 20, 30)
    views = few_shot_views(flat)
    geometric = [index for index in range(22) if index != GREY]
    torch.testing.assert_close(views[geometric], flat.expand(21, -1, -1, -1))


@pytest.mark.parametrize("shape", [(1, 20, 20), (2, 3, 20, 20), (20, 20)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"one image with three channels, \(3, H, W\), got \("):
        few_shot_views(torch.zeros(shape))


@pytest.mark.parametrize("crop", [None, (42, 28)])
def test_views_reach_the_model_as_they_are(tmp_path: Path, crop: tuple[int, int] | None) -> None:
    root = write_sample_data(tmp_path / "sample", categories=("brick",))
    data = MVTecAD(root, "brick", num_workers=0)
    data.setup()
    images = data.train_data.subsample([3, 30])
    images.augmentations = Resize((56, 57), antialias=True)
    pre_processor = InpPreProcessor((56, 57), crop)
    views = FewShotViews(images, pre_processor)
    assert len(views) == 2 * NUM_VIEWS
    for number in range(2):
        expected = few_shot_views(pre_processor.transform(images[number].image))
        path = images.samples.image_path[number]
        rows = [row for row in range(len(views)) if views.samples.image_path[row] == path]
        rows.sort(key=lambda row: views.samples["view"][row])
        items = [views[row] for row in rows]
        assert all(item.image_path == path and item.gt_label == 0 and not item.gt_mask.any() for item in items)
        assert all(item.image.shape == (3, 56, 57) for item in items)
        seen = torch.stack([pre_processor.transform(item.image) for item in items])
        torch.testing.assert_close(seen, expected, atol=1e-6, rtol=1e-6)
    assert views.collate_fn([views[0], views[1]]).image.shape == (2, 3, 56, 57)
