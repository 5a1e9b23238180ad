# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Tiles: places worked out by hand, and what must hold of maps of any size."""

import numpy as np
import pytest

from anomalib_inp.tiles import STEP, Tiles, merge_matrices, tile_starts

SIZES = [(56, 56), (57, 56), (100, 131), (301, 77), (63, 500)]


@pytest.mark.parametrize(
    ("length", "tile", "overlap", "expected"),
    [
        (10, 10, 0, [0]),
        (10, 5, 0, [0, 5]),
        (11, 5, 0, [0, 5, 6]),  # the last one is shifted inward
        (14, 6, 2, [0, 4, 8]),
        (13, 6, 2, [0, 4, 7]),
        (7, 6, 5, [0, 1]),
    ],
)
def test_places_of_tiles(length: int, tile: int, overlap: int, expected: list[int]) -> None:
    assert tile_starts(length, tile, overlap) == expected


def test_an_image_smaller_than_a_tile_is_refused() -> None:
    with pytest.raises(ValueError, match="An image of 9 pixels is smaller than a tile of 10"):
        tile_starts(9, 10, 2)


def test_weights_worked_out_by_hand() -> None:
    """Tiles of 4 pixels at 0 and 2 with one value each; of 6 pixels, the middle two are shared."""
    first, second = merge_matrices(6, 4, 2, 1, 6)[:, :, 0]
    # at 2.5, 1.5 pixels from the end of the first and 0.5 from the beginning of the second: 3/4 and 1/4
    np.testing.assert_allclose(first, [1, 1, 0.75, 0.25, 0, 0], atol=1e-7)
    np.testing.assert_allclose(second, [0, 0, 0.25, 0.75, 1, 1], atol=1e-7)


def test_values_stand_at_the_centres_of_their_patches() -> None:
    """Two values of a tile of 8 pixels stand at 2 and 6; between, it is interpolated, and outside it stays."""
    (matrix,) = merge_matrices(8, 8, 0, 2, 8)
    np.testing.assert_allclose(matrix @ [0, 1], [0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1], atol=1e-7)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("overlap", [0, 1, 14, 40])
def test_a_constant_map_stays_constant(size: tuple[int, int], overlap: int) -> None:
    tiles = Tiles((56, 56), overlap)
    rows, columns = tiles.merging(size, (4, 4)) if overlap else tiles.merging(size, (3, 7))
    merged = np.einsum("ipv,jqw->pq", rows, columns)
    assert merged.shape == (-(-size[0] // STEP), -(-size[1] // STEP))
    np.testing.assert_allclose(merged, 1, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_a_map_that_rises_evenly_has_no_seam(size: tuple[int, int]) -> None:
    """What tiles say of a plane is the plane: nothing but the outermost half patch knows of their borders."""
    tiles, values = Tiles((56, 56), 21), 8
    rows, columns = tiles.merging(size, (values, values))
    centres = (np.arange(values) + 0.5) * 56 / values
    merged = np.zeros(tiles.map_size(size))
    for top, row in zip(tiles.starts(size)[0], rows, strict=True):
        for left, column in zip(tiles.starts(size)[1], columns, strict=True):
            said = np.add.outer(2 * (top + centres), left + centres)
            merged += row @ said @ column.T
    y, x = ((np.arange(count) + 0.5) * length / count for count, length in zip(merged.shape, size, strict=True))
    plane, inner = np.add.outer(2 * y, x), np.s_[2:-2, 2:-2]
    assert np.abs(merged - plane)[inner].max() < 1.5  # of 2 x 300: where tiles end, half a patch says the same
    steps = np.abs(np.diff(merged, axis=0))[:, 2:-2]
    assert steps[2:-2].max() < 1.8 * steps[2:-2].mean()
