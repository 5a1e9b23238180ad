# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Cosine distances, in the one form that both the losses and the exported graph can use.

They are written as products of normalised vectors because OpenVINO has no rule for ``cosine_similarity``.
"""

from torch import Tensor
from torch.nn import functional as F


def cosine_distance(first: Tensor, second: Tensor) -> Tensor:
    """``1 - cos`` along the last dimension.

    Args:
        first: Vectors ``(..., D)``.
        second: Vectors ``(..., D)``.

    Returns:
        Distances ``(...)`` in [0, 2]; 0 means the same direction.
    """
    return 1 - (F.normalize(first, dim=-1) * F.normalize(second, dim=-1)).sum(dim=-1)


def prototype_distance(tokens: Tensor, prototypes: Tensor) -> Tensor:
    """Cosine distance from each patch token to its nearest prototype (paper, INP Coherence Loss).

    Args:
        tokens: Patch tokens ``(B, N, D)``.
        prototypes: Prototypes ``(B, M, D)`` of the same images.

    Returns:
        Distances ``(B, N)`` in [0, 2].
    """
    similarity = F.normalize(tokens, dim=-1) @ F.normalize(prototypes, dim=-1).transpose(-2, -1)  # (B, N, M)
    return 1 - similarity.amax(dim=-1)
