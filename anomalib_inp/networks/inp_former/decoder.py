# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""INP-guided decoder: patch tokens rebuilt from the prototypes alone."""

from timm.layers import Mlp
from torch import Tensor, nn

from anomalib_inp.networks.inp_former.attention import PrototypeGuidance
from anomalib_inp.networks.inp_former.extractor import LAYER_NORM_EPS


class GuidedBlock(nn.Module):
    """One block of the decoder.

    No residual around the attention: it would let an anomalous token bypass the prototypes (paper, figure 2c).

    Args:
        dim: Width ``D``.
        num_heads: Attention heads; the encoder's.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = PrototypeGuidance(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, tokens: Tensor, prototypes: Tensor) -> Tensor:
        """Rebuild tokens ``(B, N, D)`` from prototypes ``(B, M, D)``; returns ``(B, N, D)``."""
        rebuilt = self.attn(self.norm1(tokens), self.norm1(prototypes))
        return rebuilt + self.mlp(self.norm2(rebuilt))


class InpGuidedDecoder(nn.Module):
    """Rebuilds the encoder's two groups, deepest first (paper, INP-Guided Decoder, figure 2).

    Args:
        dim: Width ``D``.
        num_heads: Attention heads; the encoder's.
        depth: Number of blocks, one per tapped block of the encoder; even.
    """

    def __init__(self, dim: int, num_heads: int, depth: int = 8) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(GuidedBlock(dim, num_heads) for _ in range(depth))

    def forward(self, tokens: Tensor, prototypes: Tensor) -> list[Tensor]:
        """Rebuild the groups of the encoder.

        Args:
            tokens: The bottleneck's output ``(B, N, D)``.
            prototypes: Prototypes ``(B, M, D)`` of the same images.

        Returns:
            The shallower and the deeper group, each ``(B, N, D)``. The first half of the blocks rebuilds the deeper
            one: the decoder mirrors the encoder.
        """
        half = len(self.blocks) // 2
        outputs: list[Tensor] = []
        for block in self.blocks:
            tokens = block(tokens, prototypes)
            outputs.append(tokens)
        deep, shallow = outputs[:half], outputs[half:]
        return [sum(group[1:], group[0]) / half for group in (shallow, deep)]
