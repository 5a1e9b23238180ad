# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""INP coherence: the tokens of a normal image should be close to the image's prototypes."""

import torch
from torch import Tensor

from anomalib_inp.distances import TINY, length, prototype_distance, soft_combination


def coherence_loss(tokens: Tensor, prototypes: Tensor) -> Tensor:
    """Mean cosine distance from each token to its nearest prototype (paper, INP Coherence Loss).

    Args:
        tokens: Fused patch tokens ``(B, N, D)``.
        prototypes: Prototypes ``(B, M, D)`` of the same images.

    Returns:
        The loss, a scalar in [0, 2].
    """
    return prototype_distance(tokens, prototypes).mean()


def soft_coherence_loss(tokens: Tensor, prototypes: Tensor) -> Tensor:
    """Cosine distance of an image's tokens, taken as one vector, and their soft combinations of its prototypes.

    All prototypes take part in every token, so that none is left without a gradient, as happens to those that are
    nearest to no token (INP-Former++, soft INP coherence loss).

    Args:
        tokens: Fused patch tokens ``(B, N, D)``.
        prototypes: Prototypes ``(B, M, D)`` of the same images.

    Returns:
        The loss, a scalar in [0, 2]: mean over the images.
    """
    product, combined = soft_combination(tokens, prototypes)
    own, other = (torch.linalg.vector_norm(lengths, dim=-1).clamp(min=TINY) for lengths in (length(tokens), combined))
    return (1 - product.sum(dim=-1) / (own * other)).mean()
