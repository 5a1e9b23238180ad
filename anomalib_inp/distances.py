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
