# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""INP coherence: every token of a normal image should be close to one of the image's prototypes."""

from torch import Tensor

from anomalib_inp.distances import prototype_distance


def coherence_loss(tokens: Tensor, prototypes: Tensor) -> Tensor:
    """Mean cosine distance from each token to its nearest prototype (paper, INP Coherence Loss).

    Args:
        tokens: Fused patch tokens ``(B, N, D)``.
        prototypes: Prototypes ``(B, M, D)`` of the same images.

    Returns:
        The loss, a scalar in [0, 2].
    """
    return prototype_distance(tokens, prototypes).mean()
