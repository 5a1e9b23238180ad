# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The two attentions of INP-Former: prototypes gather from tokens, tokens are rebuilt from prototypes."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _CrossAttention(nn.Module):
    """Projections shared by both attentions; ``D`` is split into heads of equal width."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def split_heads(self, tokens: Tensor) -> Tensor:
        """``(B, T, D)`` -> ``(B, heads, T, D / heads)``."""
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def project(self, queries: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project queries ``(B, Q, D)`` and keys and values ``(B, K, D)``, split into heads."""
        keys, values = self.kv(source).chunk(2, dim=-1)
        return self.split_heads(self.q(queries)), self.split_heads(keys), self.split_heads(values)

    def merge_heads(self, heads: Tensor) -> Tensor:
        """``(B, heads, T, D / heads)`` -> ``(B, T, D)``, through the output projection."""
        return self.proj(heads.transpose(1, 2).flatten(2))


class PrototypeAggregation(_CrossAttention):
    """Softmax cross-attention in which queries gather the patch tokens (paper, INP Extractor, figure 2b).

    Args:
        dim: Width ``D``.
        num_heads: Attention heads; must divide ``D``.
    """

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """Gather tokens ``(B, N, D)`` into queries ``(B, M, D)``; returns ``(B, M, D)``."""
        q, k, v = self.project(queries, tokens)
        return self.merge_heads(F.scaled_dot_product_attention(q, k, v))


class PrototypeGuidance(_CrossAttention):
    """Cosine attention with ReLU in which tokens are rebuilt from prototypes (paper, INP-Guided Decoder, figure 2c).

    ReLU instead of softmax: a token unlike every prototype may receive nothing at all.

    Args:
        dim: Width ``D``.
        num_heads: Attention heads; must divide ``D``.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__(dim, num_heads)
        self.learn_scale = nn.Parameter(torch.ones(num_heads, 1, 1))

    def forward(self, tokens: Tensor, prototypes: Tensor) -> Tensor:
        """Rebuild tokens ``(B, N, D)`` from prototypes ``(B, M, D)``; returns ``(B, N, D)``."""
        q, k, v = self.project(tokens, prototypes)
        similarity = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)  # (B, heads, N, M)
        return self.merge_heads(F.relu(self.learn_scale * similarity) @ v)
