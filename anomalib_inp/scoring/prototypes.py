# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Which prototype explains which patch, and what none of them does."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from anomalib_inp.distances import length
from anomalib_inp.outputs import Reconstruction

IN_USE = 0.01
"""Share of the patches from which on a prototype counts as one that is used."""


class Explained(NamedTuple):
    """What the prototypes of images explain.

    Attributes:
        nearest: Number of the prototype that each patch is nearest to by the cosine ``(B, h, w)``.
        left: Cosine distance to it ``(B, h, w)``: what is left over (the map ``prototype_distance``).
        shares: Share of the patches that each prototype is nearest to, of each image ``(B, M)``.
    """

    nearest: Tensor
    left: Tensor
    shares: Tensor


def explain(reconstruction: Reconstruction) -> Explained:
    """Find the nearest prototype of each fused token (paper, INP Coherence Loss)."""
    tokens, prototypes, grid = reconstruction.features.fused, reconstruction.prototypes, reconstruction.features.grid
    cosines = tokens @ F.normalize(prototypes, dim=-1).transpose(-2, -1) / length(tokens).unsqueeze(-1)  # (B, N, M)
    highest, nearest = cosines.max(dim=-1)
    shares = F.one_hot(nearest, cosines.shape[-1]).float().mean(dim=1)
    return Explained(nearest.unflatten(1, grid), (1 - highest).unflatten(1, grid), shares)


def count_in_use(shares: Tensor) -> int:
    """Count the prototypes that are used, by their shares ``(M,)``."""
    return int(torch.count_nonzero(shares >= IN_USE))
