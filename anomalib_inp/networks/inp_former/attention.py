# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The two attentions of INP-Former: prototypes gather from tokens, tokens are rebuilt from prototypes.

In both, one side is a handful of prototypes and the other a thousand tokens. Projections are linear, so wherever one
may be applied on either side of the attention weights, it is applied to the few: the same numbers for less work.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_inp.distances import length


class _CrossAttention(nn.Module):
    """Projections shared by both attentions; ``D`` is split into heads of equal width ``d = D / heads``."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def split_heads(self, tokens: Tensor) -> Tensor:
        """``(..., T, D)`` -> ``(..., heads, T, d)``."""
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)

    def split_rows(self, weight: Tensor) -> Tensor:
        """Split the outputs of a projection into heads: ``(D, K)`` -> ``(heads, d, K)``."""
        return weight.unflatten(0, (self.num_heads, -1))


class PrototypeAggregation(_CrossAttention):
    """Softmax cross-attention in which queries gather the patch tokens (paper, INP Extractor, figure 2b).

    Args:
        dim: Width ``D``.
        num_heads: Attention heads; must divide ``D``.
    """

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """Gather tokens ``(B, N, D)`` into queries ``(B, M, D)``; returns ``(B, M, D)``."""
        key, value = self.kv.weight.chunk(2)
        # The keys' bias adds the same to all weights of a query, which softmax ignores.
        q = self.split_heads(self.q(queries)) @ self.split_rows(key)  # (B, heads, M, D), in the space of the tokens
        scores = q.flatten(1, 2) @ tokens.transpose(1, 2) * (q.shape[-1] // self.num_heads) ** -0.5
        gathered = (scores.softmax(dim=-1) @ tokens).unflatten(1, q.shape[1:3])  # (B, heads, M, D)
        heads = gathered @ self.split_rows(value).transpose(1, 2)  # (B, heads, M, d)
        # The weights of a query add up to 1, so the values' bias passes as it is.
        return self.proj(heads.transpose(1, 2).flatten(2) + self.kv.bias.chunk(2)[1])


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
        q = self.split_heads(self.q(tokens))  # (B, heads, N, d)
        k, v = (self.split_heads(part) for part in self.kv(prototypes).chunk(2, dim=-1))  # (B, heads, M, d)
        similarity = q @ F.normalize(k, dim=-1).transpose(-2, -1) / length(q).unsqueeze(-1)  # (B, heads, N, M)
        weights = F.relu(self.learn_scale * similarity)
        v = v @ self.split_rows(self.proj.weight.T)  # (B, heads, M, D), through the output projection
        return torch.baddbmm(self.proj.bias, weights.transpose(1, 2).flatten(2), v.flatten(1, 2))
