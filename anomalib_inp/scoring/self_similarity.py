# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""How unlike the rest of its image a token is."""

from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_inp.outputs import Reconstruction


class SelfDistance(nn.Module):
    """Product, over the groups of blocks, of the distance of each token to those of its image that are most like it.

    Args:
        nearest: Share of the image's tokens that are most like it, rounded to at least one; itself is none of them.

    Raises:
        ValueError: The share is not above 0 and below 1.
    """

    def __init__(self, nearest: float = 0.05) -> None:
        super().__init__()
        if not 0 < nearest < 1:
            msg = f"nearest must be a share of an image's tokens, above 0 and below 1, got {nearest}."
            raise ValueError(msg)
        self.nearest = nearest

    def forward(self, reconstruction: Reconstruction) -> Tensor:
        """Compare the tokens of each image with each other: ``(B, h, w)``, within [0, 2] to the power of the groups."""
        features = reconstruction.features
        count = max(1, round(self.nearest * features.grid[0] * features.grid[1]))
        distances = [self_distance(tokens, count) for tokens in features.groups]
        return reduce(torch.mul, distances).unflatten(1, features.grid)


def self_distance(tokens: Tensor, count: int) -> Tensor:
    """One less the mean cosine of each token with the others of its image that are most like it.

    Args:
        tokens: Patch tokens ``(B, N, D)``.
        count: How many are the most like it; of an image with no more, all others are.

    Returns:
        Distances ``(B, N)`` in [0, 2]; of an image of one token, 0.
    """
    directions = F.normalize(tokens, dim=-1)
    cosines = directions @ directions.transpose(-2, -1)  # (B, N, N)
    others = cosines.shape[-1] - 1
    if others == 0:
        return torch.zeros_like(cosines[..., 0])
    itself = torch.eye(cosines.shape[-1], dtype=cosines.dtype, device=cosines.device)
    # -4 is below every cosine less itself, so that no token is compared with itself
    return 1 - (cosines - 4 * itself).topk(min(count, others), dim=-1).values.mean(dim=-1)
