# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Cosine distances, in the one form that both the losses and the exported graph can use.

They are products divided by lengths: OpenVINO has no rule for ``cosine_similarity``, and normalising the vectors first
would copy whole feature maps.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

TINY = 1e-12
"""Least length that is divided by, as in ``F.normalize``: a vector of zeros is at distance 1 from everything."""


def length(vectors: Tensor) -> Tensor:
    """Lengths of vectors ``(..., D)``, never zero: ``(...)``."""
    return torch.linalg.vector_norm(vectors, dim=-1).clamp(min=TINY)


def cosine_distance(first: Tensor, second: Tensor) -> Tensor:
    """``1 - cos`` along the last dimension.

    Args:
        first: Vectors ``(..., D)``.
        second: Vectors ``(..., D)``.

    Returns:
        Distances ``(...)`` in [0, 2]; 0 means the same direction.
    """
    return 1 - (first * second).sum(dim=-1) / (length(first) * length(second))


def prototype_distance(tokens: Tensor, prototypes: Tensor) -> Tensor:
    """Cosine distance from each patch token to its nearest prototype (paper, INP Coherence Loss).

    Args:
        tokens: Patch tokens ``(B, N, D)``.
        prototypes: Prototypes ``(B, M, D)`` of the same images.

    Returns:
        Distances ``(B, N)`` in [0, 2].
    """
    nearest = (tokens @ F.normalize(prototypes, dim=-1).transpose(-2, -1)).amax(dim=-1)  # (B, N, M) -> (B, N)
    return 1 - nearest / length(tokens)


def soft_prototype_distance(tokens: Tensor, prototypes: Tensor) -> Tensor:
    """Cosine distance from each patch token to its soft combination of prototypes (INP-Former++, zero-shot).

    Args:
        tokens: Patch tokens ``(B, N, D)``.
        prototypes: Prototypes ``(B, M, D)`` of the same images.

    Returns:
        Distances ``(B, N)`` in [0, 2].
    """
    product, combined = soft_combination(tokens, prototypes)
    return 1 - product / (length(tokens) * combined)


def soft_combination(tokens: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """Compare each token with its soft combination of prototypes (INP-Former++, soft INP coherence).

    The combination of token ``F`` is the sum of all prototypes, weighted by the softmax of their cosines with ``F``. It
    is never written down, which would take a copy of the feature map: products of tokens and prototypes, and of
    prototypes among themselves, say all that is asked of it.

    Args:
        tokens: Patch tokens ``(B, N, D)``.
        prototypes: Prototypes ``(B, M, D)`` of the same images.

    Returns:
        The inner product of each token with its combination, and the length of the combination, each ``(B, N)``.
    """
    products = tokens @ prototypes.transpose(-2, -1)  # (B, N, M)
    cosines = products / (length(tokens).unsqueeze(-1) * length(prototypes).unsqueeze(-2))
    weights = cosines.softmax(dim=-1)
    squared = (weights @ (prototypes @ prototypes.transpose(-2, -1)) * weights).sum(dim=-1)
    return (weights * products).sum(dim=-1), squared.clamp(min=TINY**2).sqrt()
