# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""How badly the neighbours of a token explain it (GRNR, arXiv 2406.07333: one image alone, no training).

A token is pulled towards what is typical of its image, and the result is projected onto the span of its eight
neighbours. What is left of the token itself is its error.
"""

from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_inp.outputs import Reconstruction

AROUND = [(row, column) for row in (0, 1, 2) for column in (0, 1, 2) if (row, column) != (1, 1)]


class NeighbourhoodRegression(nn.Module):
    """Product, over the groups of blocks, of what the neighbours of each token leave unexplained.

    The defaults are for the patch grid of a Vision Transformer, and ours. What the authors' code does on a
    convolutional network is ``own_weight=1 / 201, num_typical=40, pooled=True``, with a little noise on the neighbours
    in the place of the ridge (reference, ``demo.py``).

    Args:
        own_weight: Weight of the token itself in what is projected; the rest is of the typical tokens.
        num_typical: How many tokens of the image are typical; ``None`` takes all of them.
        pooled: Average tokens over 3 x 3 patches first.
        ridge: Added to the normal matrix, as a share of its mean diagonal: neighbours may be alike.

    Raises:
        ValueError: The weight is not above 0 and at most 1.
    """

    def __init__(
        self, own_weight: float = 0.5, num_typical: int | None = None, pooled: bool = False, ridge: float = 1e-4
    ) -> None:
        super().__init__()
        if not 0 < own_weight <= 1:
            msg = f"own_weight must be above 0 and at most 1, got {own_weight}."
            raise ValueError(msg)
        self.own_weight = own_weight
        self.num_typical = num_typical
        self.pooled = pooled
        self.ridge = ridge

    def forward(self, reconstruction: Reconstruction) -> Tensor:
        """Explain the tokens of each image by their neighbours: ``(B, h, w)``.

        Raises:
            ValueError: The image is less than two patches high or wide, so that its border has nothing to mirror.
        """
        features = reconstruction.features
        if min(features.grid) < 2:
            msg = (
                f"Neighbours are those of a grid of 2 x 2 patches at least, got {features.grid[0]}x{features.grid[1]}."
            )
            raise ValueError(msg)
        return reduce(torch.mul, [self.error(tokens, features.grid) for tokens in features.groups])

    def error(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Explain tokens ``(B, N, D)`` of a grid by their neighbours: lengths ``(B, h, w)`` of what is left."""
        tokens = pool(tokens, grid) if self.pooled else tokens
        typical = tokens if self.num_typical is None else typical_tokens(tokens, self.num_typical)
        wanted = regularised(tokens, typical, self.own_weight)
        return unexplained(tokens, neighbours(tokens, grid), wanted, self.ridge).unflatten(1, grid)


def pool(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Average tokens ``(B, N, D)`` over 3 x 3 patches; the zeros around the grid count (reference, ``demo.py``)."""
    pooled = F.avg_pool2d(tokens.transpose(-2, -1).unflatten(2, grid), kernel_size=3, stride=1, padding=1)
    return pooled.flatten(2).transpose(-2, -1)


def typical_tokens(tokens: Tensor, count: int) -> Tensor:
    """Choose the tokens of each image that are nearest to all others of it, on average.

    Args:
        tokens: Patch tokens ``(B, N, D)``.
        count: How many.

    Returns:
        Typical tokens ``(B, count, D)``, the most typical first.
    """
    nearest = torch.cdist(tokens, tokens).mean(dim=-1).argsort(dim=-1)[:, :count]  # the 0 to itself is in all of them
    return tokens.gather(1, nearest.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def regularised(tokens: Tensor, typical: Tensor, own_weight: float) -> Tensor:
    """Pull tokens ``(B, N, D)`` towards the mean of typical ones ``(B, K, D)``: ``(B, N, D)``.

    With lambda and K of the paper's regression, ``own_weight`` is ``1 / (1 + lambda K)``.
    """
    return torch.lerp(typical.mean(dim=1, keepdim=True), tokens, own_weight)


def neighbours(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """List the eight neighbours of each token ``(B, N, D)``, row by row, mirrored at the border: ``(B, N, 8, D)``."""
    (height, width), maps = grid, tokens.transpose(-2, -1).unflatten(2, grid)
    around = F.pad(maps, (1, 1, 1, 1), mode="reflect")
    shifted = [around[..., row : row + height, column : column + width] for row, column in AROUND]
    return torch.stack(shifted, dim=1).flatten(3).permute(0, 3, 1, 2)


def unexplained(tokens: Tensor, around: Tensor, wanted: Tensor, ridge: float = 0.0) -> Tensor:
    """Project what is wanted onto the span of the neighbours, and measure what it leaves of the tokens.

    Args:
        tokens: Patch tokens ``(B, N, D)``.
        around: Their neighbours ``(B, N, K, D)``.
        wanted: What is projected ``(B, N, D)``.
        ridge: Added to the normal matrix, as a share of its mean diagonal.

    Returns:
        Lengths ``(B, N)``.
    """
    normal = around @ around.transpose(-2, -1)  # (B, N, K, K)
    diagonal = around.square().sum(dim=-1).mean(dim=-1)[..., None, None]  # OpenVINO has no rule for taking it out
    identity = torch.eye(normal.shape[-1], dtype=normal.dtype, device=normal.device)
    weights = solve(normal + ridge * diagonal * identity, around @ wanted.unsqueeze(-1))  # (B, N, K, 1)
    explained = (weights.transpose(-2, -1) @ around).squeeze(-2)  # (B, N, D)
    return torch.linalg.vector_norm(tokens - explained, dim=-1)


def solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve small positive definite systems by elimination, in plain operations: ONNX has no solver.

    Args:
        matrix: ``(..., K, K)``, positive definite: no pivoting is needed.
        right: Right side ``(..., K, 1)``.

    Returns:
        Solutions ``(..., K, 1)``.
    """
    size = matrix.shape[-1]
    system = torch.cat([matrix, right], dim=-1)  # (..., K, K + 1)
    identity = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
    for step in range(size):
        row = system[..., step : step + 1, :] / system[..., step : step + 1, step : step + 1]
        column = system[..., :, step : step + 1] - identity[:, step : step + 1]  # leaves the row itself in its place
        system = system - column * row
    return system[..., size:]
