# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Neighbourhood regression against the numbers of the authors' code; ``tests/golden/README.md`` says what each is."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from anomalib_inp.scoring.neighbourhood import (
    NeighbourhoodRegression,
    neighbours,
    pool,
    regularised,
    solve,
    typical_tokens,
    unexplained,
)

FOLDER = Path(__file__).parent.parent / "golden" / "siblings" / "grnr_tiny"
LAMBDA, NUM_TYPICAL, NOISE = 5, 40, 0.001
PRECISIONS = ("float32", "float64")


def read(precision: str) -> dict[str, Tensor]:
    # The noise is drawn in float32, whatever is computed from it.
    noise = load_file(FOLDER / "expected.safetensors")
    noise = {name: value.to(getattr(torch, precision)) for name, value in noise.items() if name.startswith("noise")}
    name = "expected" if precision == "float32" else "expected_float64"
    return load_file(FOLDER / f"{name}.safetensors") | noise


class Scale:
    """One scale of the golden file: tokens, neighbours with their noise, and what is expected of them."""

    def __init__(self, precision: str, scale: int) -> None:
        self.expected = {
            name.removesuffix(f".{scale}"): value
            for name, value in read(precision).items()
            if name.endswith(str(scale))
        }
        maps = self.expected["features"]
        self.grid = tuple(maps.shape[-2:])
        self.tokens = pool(maps.flatten(2).mT, self.grid)
        noise = self.expected["noise"].permute(0, 2, 1)[:, [0, 1, 2, 3, 5, 6, 7, 8]]
        self.around = neighbours(self.tokens, self.grid) + NOISE * noise

    def error(self, typical: Tensor, weight: float = 1 / (1 + LAMBDA * NUM_TYPICAL)) -> Tensor:
        wanted = regularised(self.tokens, typical, weight)
        return unexplained(self.tokens, self.around, wanted)[0].unflatten(0, self.grid)


def inside(grid: Tensor) -> Tensor:
    """Leave out the outermost ring, which is rounding noise in float32."""
    return grid[1:-1, 1:-1]


@pytest.fixture(params=[(precision, scale) for precision in PRECISIONS for scale in (0, 1)], ids=str)
def case(request) -> tuple[str, Scale]:
    precision, scale = request.param
    return precision, Scale(precision, scale)


def compare(found: Tensor, expected: Tensor, precision: str, float32: float) -> None:
    torch.testing.assert_close(
        inside(found), inside(expected), rtol=0, atol=float32 if precision == "float32" else 1e-9
    )
    if precision == "float64":
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_pooling(case) -> None:
    precision, scale = case
    expected = scale.expected["pooled"].flatten(2).mT
    tolerance = {"float32": 1e-5, "float64": 1e-8}[precision] * expected.abs().max().item()
    torch.testing.assert_close(scale.tokens, expected, rtol=0, atol=tolerance)


def test_typical_tokens(case) -> None:
    _, scale = case
    chosen = typical_tokens(scale.tokens, NUM_TYPICAL)
    assert torch.equal(chosen[0], scale.tokens[0, scale.expected["typical.global_index"]])


def test_the_error_as_meant(case) -> None:
    precision, scale = case
    found = scale.error(typical_tokens(scale.tokens, NUM_TYPICAL))
    compare(found, scale.expected["typical.error_grid"], precision, 1e-3)


def test_the_error_as_published_with_the_tokens_that_its_code_takes_for_typical(case) -> None:
    precision, scale = case
    found = scale.error(scale.tokens[:, scale.expected["as_published.global_index"]])
    compare(found, scale.expected["as_published.error_grid"], precision, 1e-3)


def test_the_error_without_typical_tokens(case) -> None:
    precision, scale = case
    found = scale.error(scale.tokens, weight=1.0)
    compare(found, scale.expected["no_global.error_grid"], precision, 1e-5)


def test_the_weights_of_the_neighbours(case) -> None:
    precision, scale = case
    if precision == "float32":
        pytest.skip("the weights are compared in float64 alone")
    wanted = regularised(scale.tokens, typical_tokens(scale.tokens, NUM_TYPICAL), 1 / 201)
    weights = solve(scale.around @ scale.around.mT, scale.around @ wanted.unsqueeze(-1))
    # relative: at the border they are as large as 25
    torch.testing.assert_close(weights[0].mT, scale.expected["typical.weights"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("ridge", "tolerance"), [(1e-4, 3e-2), (1e-6, 1e-3)])
def test_a_ridge_in_the_place_of_the_noise(case, ridge: float, tolerance: float) -> None:
    """The whole reading; the noise is what the authors' code makes the border invertible by."""
    _, scale = case
    reading = NeighbourhoodRegression(1 / (1 + LAMBDA * NUM_TYPICAL), NUM_TYPICAL, pooled=True, ridge=ridge)
    found = reading.error(scale.expected["features"].flatten(2).mT, scale.grid)[0]
    expected = scale.expected["no_noise_inside.error_grid"]
    torch.testing.assert_close(inside(found), inside(expected), rtol=0, atol=tolerance)
