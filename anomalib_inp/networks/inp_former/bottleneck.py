# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The MLP between encoder and decoder."""

from timm.layers import Mlp


def bottleneck(dim: int) -> Mlp:
    """Build the MLP between encoder and decoder, ``D -> 4D -> D`` without residual (paper, figure 2a)."""
    return Mlp(dim, 4 * dim)
