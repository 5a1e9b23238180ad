# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

from typing import Any

import pytest
import torch
from torch import Tensor

from anomalib_inp.scoring.image_score import image_score


def scattered(highest: int, side: int = 256) -> Tensor:
    """Maps of zeros with so many ones at random places ``(2, 1, side, side)``."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.zeros(2, side * side)
    for row in maps:
        row[torch.randperm(side * side, generator=generator)[:highest]] = 1
    return maps.view(2, 1, side, side)


def test_known_top_1_percent() -> None:
    maps = torch.stack([torch.arange(400.0).view(1, 20, 20), -torch.arange(400.0).view(1, 20, 20)])
    # 4 of 400 pixels: 399, 398, 397, 396 and 0, -1, -2, -3
    torch.testing.assert_close(image_score(maps), torch.tensor([397.5, -1.5]))


@pytest.mark.parametrize(("highest", "score"), [(655, 1.0), (656, 1.0), (654, 654 / 655), (131, 0.2)])
def test_takes_655_of_65536_pixels(highest: int, score: float) -> None:
    torch.testing.assert_close(image_score(scattered(highest)), torch.tensor([score, score]))


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (9, 11)])
def test_takes_at_least_one_pixel(shape: tuple[int, int]) -> None:
    maps = torch.randn(3, 1, *shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(image_score(maps), maps.amax(dim=(1, 2, 3)))


def test_place_of_a_pixel_does_not_matter() -> None:
    maps = torch.rand(2, 1, 50, 40, generator=torch.Generator().manual_seed(0))
    shuffled = maps.flatten(1)[:, torch.randperm(2000, generator=torch.Generator().manual_seed(1))].view_as(maps)
    torch.testing.assert_close(image_score(shuffled), image_score(maps))


def test_does_not_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full sort of 65,536 values costs more than the rest of the score."""

    def never(*_: Any, **__: Any) -> Tensor:
        msg = "The score sorts all pixels."
        raise AssertionError(msg)

    for owner in (torch, torch.Tensor):
        for name in ("sort", "argsort", "msort"):
            monkeypatch.setattr(owner, name, never)
    image_score(scattered(655))
    with pytest.raises(AssertionError, match="sorts"):
        torch.rand(2).sort()
