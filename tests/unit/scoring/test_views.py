# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What the network sees at a time, compared with a merge pixel by pixel."""

import pytest
import torch
from anomalib.data import InferenceBatch
from torch import Tensor, nn

from anomalib_inp.outputs import PatchFeatures, Reconstruction
from anomalib_inp.scoring.detector import Detector
from anomalib_inp.scoring.smoothing import Smoothing
from anomalib_inp.scoring.views import TiledImage
from anomalib_inp.tiles import STEP, Tiles

PATCH = 8


class MeanOfPatch(nn.Module):
    """A network whose tokens are the means of patches."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, images: Tensor) -> Reconstruction:
        self.seen.append(len(images))
        means = nn.functional.avg_pool2d(images, PATCH).flatten(2).transpose(1, 2)  # (B, N, 3)
        grid = (images.shape[-2] // PATCH, images.shape[-1] // PATCH)
        return Reconstruction(PatchFeatures([means], grid))


def first_channel(reconstruction: Reconstruction) -> Tensor:
    return reconstruction.features.fused[..., 0].unflatten(1, reconstruction.features.grid)


def two_maps(reconstruction: Reconstruction) -> Tensor:
    tokens = reconstruction.features.fused
    return torch.stack([tokens[..., place].unflatten(1, reconstruction.features.grid) for place in (1, 2)])


def detector(tiles: Tiles, *readings) -> Detector:
    made = Detector(MeanOfPatch(), {"map": readings})
    made.view = TiledImage(tiles)
    return made


@pytest.mark.parametrize("size", [(32, 32), (45, 70), (99, 40)])
def test_tiles_are_cut_and_joined_as_worked_out_pixel_by_pixel(size: tuple[int, int]) -> None:
    """Each pixel: the weighted mean of what the tiles that hold it say, where their patches' centres are."""
    tiles, images = Tiles((32, 24), 10), torch.rand(3, 3, *size)
    made = detector(tiles, first_channel)
    found: InferenceBatch = made(images)
    rows, columns = tiles.starts(size)
    expected = torch.zeros(3, -(-size[0] // STEP), -(-size[1] // STEP))
    for y in range(expected.shape[1]):
        for x in range(expected.shape[2]):
            centre = [
                (place + 0.5) * side / count
                for place, side, count in zip((y, x), size, expected.shape[1:], strict=True)
            ]
            total, said = 0.0, torch.zeros(3)
            for top in rows:
                for left in columns:
                    inside = centre[0] - top, centre[1] - left
                    if not all(0 <= at <= side for at, side in zip(inside, (32, 24), strict=True)):
                        continue
                    weight = 1.0
                    for at, side in zip(inside, (32, 24), strict=True):
                        weight *= min(1.0, max(1e-6, min(at, side - at) / 10))
                    tile = nn.functional.avg_pool2d(images[:, :1, top : top + 32, left : left + 24], PATCH)
                    grid = torch.tensor([[[[2 * inside[1] / 24 - 1, 2 * inside[0] / 32 - 1]]]]).expand(3, -1, -1, -1)
                    value = nn.functional.grid_sample(tile, grid, padding_mode="border", align_corners=False)
                    said += weight * value[:, 0, 0, 0]
                    total += weight
            expected[:, y, x] = said / total
    torch.testing.assert_close(found.anomaly_map, Smoothing(None).blur(expected.unsqueeze(1)), atol=2e-6, rtol=0)


def channel(place: int):
    return lambda reconstruction: reconstruction.features.fused[..., place].unflatten(1, reconstruction.features.grid)


def test_images_of_a_batch_do_not_mix() -> None:
    images = torch.rand(2, 3, 30, 41)
    made = detector(Tiles((16, 16), 4), first_channel)
    both = made(images)
    for place in range(2):
        alone = made(images[place : place + 1])
        torch.testing.assert_close(both.anomaly_map[place], alone.anomaly_map[0])
        torch.testing.assert_close(both.pred_score[place], alone.pred_score[0])


def test_a_map_is_the_mean_of_its_readings_and_may_have_another_for_the_score() -> None:
    tiles, images = Tiles((16, 16), 4), torch.rand(2, 3, 30, 41)
    first, second = (detector(tiles, channel(place))(images) for place in (1, 2))
    mean = detector(tiles, channel(1), channel(2))(images)
    torch.testing.assert_close(mean.anomaly_map, (first.anomaly_map + second.anomaly_map) / 2)
    both = detector(tiles, two_maps)(images)
    torch.testing.assert_close(both.anomaly_map, first.anomaly_map)
    torch.testing.assert_close(both.pred_score, second.pred_score)


def test_the_whole_image_is_fused_with_its_tiles() -> None:
    """A quarter of each pixel is what is said of the image resized to a tile, between the centres of its patches."""
    tiles, images = Tiles((16, 24), 4), torch.rand(2, 3, 40, 61)
    alone = detector(tiles, first_channel)
    both = detector(tiles._replace(second_scale=True), first_channel)
    for made in (alone, both):
        made.smoothing = Smoothing(None, kernel_size=1)
    small = nn.functional.avg_pool2d(
        nn.functional.interpolate(images, (16, 24), mode="bilinear", antialias=True), PATCH
    )
    spread = nn.functional.interpolate(small[:, :1], (20, 31), mode="bilinear", align_corners=False)
    expected = 0.75 * alone(images).anomaly_map + 0.25 * spread
    torch.testing.assert_close(both(images).anomaly_map, expected, atol=1e-6, rtol=0)
    assert sum(both.network.seen) == sum(alone.network.seen) + 2


def test_the_network_sees_few_tiles_at_once() -> None:
    made = detector(Tiles((16, 16), 4), first_channel)
    made(torch.rand(2, 3, 200, 160))
    assert max(made.network.seen) == 2 * 16
    assert sum(made.network.seen) == 2 * 17 * 13
