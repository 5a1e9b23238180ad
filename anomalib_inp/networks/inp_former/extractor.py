# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""INP extractor: the intrinsic normal prototypes of an image, gathered from its own patch tokens."""

import torch
from timm.layers import Mlp
from torch import Tensor, nn

from anomalib_inp.networks.inp_former.attention import PrototypeAggregation

LAYER_NORM_EPS = 1e-8  # reference, models/uad.py; the encoder's is 1e-6


class InpExtractor(nn.Module):
    """Turns learned queries into the prototypes of each image (paper, INP Extractor, figure 2b).

    Args:
        dim: Width ``D``.
        num_heads: Attention heads; the encoder's.
        num_prototypes: Prototypes per image ``M``.

    Raises:
        ValueError: No prototypes.
    """

    def __init__(self, dim: int, num_heads: int, num_prototypes: int = 6) -> None:
        super().__init__()
        if num_prototypes < 1:
            msg = f"num_prototypes must be at least 1, got {num_prototypes}."
            raise ValueError(msg)
        self.queries = nn.Parameter(torch.randn(num_prototypes, dim))
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = PrototypeAggregation(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Extract the prototypes ``(B, M, D)`` of fused patch tokens ``(B, N, D)``."""
        queries = self.queries.expand(tokens.shape[0], -1, -1)
        gathered = queries + self.attn(self.norm1(queries), self.norm1(tokens))
        return gathered + self.mlp(self.norm2(gathered))
