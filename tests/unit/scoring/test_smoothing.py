# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from anomalib_inp.scoring.smoothing import ROWS, Smoothing


def smooth(smoothing: Smoothing, images: Tensor) -> Tensor:
    """Smooth images ``(B, 1, H, W)`` as if each of their pixels were a patch of one pixel."""
    return smoothing(images.squeeze(1), tuple(images.shape[-2:]))


def upsample(distances: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    return Smoothing(None, kernel_size=1)(distances.unflatten(1, grid), size)


def test_upsampling_aligns_corners() -> None:
    ours = upsample(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), (2, 2), (3, 5))
    expected = torch.tensor(
        [
            [0.0, 0.25, 0.5, 0.75, 1.0],
            [1.0, 1.25, 1.5, 1.75, 2.0],
            [2.0, 2.25, 2.5, 2.75, 3.0],
        ]
    )
    torch.testing.assert_close(ours, expected.view(1, 1, 3, 5))


@pytest.mark.parametrize("grid", [(2, 3), (3, 2), (4, 6)])
def test_upsampling_keeps_rows_and_columns(grid: tuple[int, int]) -> None:
    rows, columns = grid
    distances = torch.arange(2.0 * rows * columns).view(2, -1)
    size = (14 * (rows - 1) + 1, 14 * (columns - 1) + 1)
    ours = upsample(distances, grid, size)
    assert ours.shape == (2, 1, *size)
    # every 14th pixel lies on a patch
    torch.testing.assert_close(ours[:, 0, ::14, ::14], distances.view(2, rows, columns))


def test_kernel() -> None:
    kernel = Smoothing(None).kernel
    assert kernel.shape == (1, 1, 5, 5)
    assert kernel.sum().item() == pytest.approx(1, abs=1e-6)
    # exp(-(x * x + y * y) / (2 * 4 * 4))
    for y in range(5):
        for x in range(5):
            ratio = math.exp(-((x - 2) ** 2 + (y - 2) ** 2) / 32)
            assert (kernel[0, 0, y, x] / kernel[0, 0, 2, 2]).item() == pytest.approx(ratio, rel=1e-5)


def test_a_single_pixel_becomes_the_kernel() -> None:
    image = torch.zeros(1, 1, 11, 11)
    image[0, 0, 4, 6] = 1
    smoothing = Smoothing(None)
    blurred = smooth(smoothing, image)
    torch.testing.assert_close(blurred[..., 2:7, 4:9], smoothing.kernel)
    assert blurred.sum().item() == pytest.approx(1, abs=1e-6)
    assert (blurred > 0).sum() == 25


def test_border_is_padded_with_zeros() -> None:
    blurred = smooth(Smoothing(None), torch.ones(1, 1, 9, 9))[0, 0]
    near, far = math.exp(-1 / 32), math.exp(-4 / 32)
    # share of a one-dimensional kernel that lies inside, at the border and one pixel from it
    edge = (1 + near + far) / (1 + 2 * near + 2 * far)
    second = (1 + 2 * near + far) / (1 + 2 * near + 2 * far)
    profile = torch.tensor([edge, second, 1, 1, 1, 1, 1, second, edge])
    torch.testing.assert_close(blurred, profile.outer(profile))


def test_resizes_without_aligning_corners() -> None:
    resized = smooth(Smoothing((2, 4), kernel_size=1), torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]]))
    expected = torch.tensor([[0.0, 0.25, 0.75, 1.0], [2.0, 2.25, 2.75, 3.0]])
    torch.testing.assert_close(resized, expected.view(1, 1, 2, 4))


@pytest.mark.parametrize("map_size", [(20, 30), (64, 64), None])
@pytest.mark.parametrize("grid", [(3, 5), (1, 4)])
def test_two_matrices_do_what_two_resizings_do(grid: tuple[int, int], map_size: tuple[int, int] | None) -> None:
    """The published way: to the input's size, to the map's size, blurred by a convolution in two dimensions."""
    distances = torch.rand(2, grid[0] * grid[1], generator=torch.Generator().manual_seed(0))
    size = (14 * grid[0], 14 * grid[1])
    image = F.interpolate(distances.view(2, 1, *grid), size=size, mode="bilinear", align_corners=True)
    if map_size:
        image = F.interpolate(image, size=map_size, mode="bilinear", align_corners=False)
    square = (torch.arange(5.0) - 2) ** 2
    kernel = (-(square.view(5, 1) + square) / 32).exp()
    expected = F.conv2d(image, (kernel / kernel.sum()).view(1, 1, 5, 5), padding=2)
    torch.testing.assert_close(Smoothing(map_size)(distances.unflatten(1, grid), size), expected, atol=1e-6, rtol=0)


def test_keeps_precision_and_has_no_weights() -> None:
    smoothing = Smoothing((8, 8))
    assert smooth(smoothing, torch.rand(1, 1, 4, 4, dtype=torch.float64)).dtype == torch.float64
    assert not smoothing.state_dict()
    assert not list(smoothing.parameters())


def test_a_large_map_is_blurred_strip_by_strip() -> None:
    """What a convolution of the whole map gives, at seams too."""
    maps, smoothing = torch.rand(2, 1, 2 * ROWS + 3, 40), Smoothing(None)
    expected = F.conv2d(maps.double(), smoothing.kernel.double(), padding=smoothing.padding)
    torch.testing.assert_close(smoothing.blur(maps).double(), expected, atol=1e-6, rtol=0)
