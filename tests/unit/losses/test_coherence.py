# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import torch
from torch import Tensor
from torch.nn import functional as F

from anomalib_inp.losses.coherence import coherence_loss

HALF_ROOT = 2**-0.5


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_two_tokens_and_two_prototypes_by_hand() -> None:
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    prototypes = torch.tensor([[[3.0, 0.0], [1.0, 1.0]]])
    # nearest: the first (cos 1) and the second (cos 1 / sqrt(2))
    torch.testing.assert_close(coherence_loss(tokens, prototypes), torch.tensor((1 - HALF_ROOT) / 2))


def test_only_the_nearest_prototype_gets_a_gradient() -> None:
    tokens = torch.tensor([[[1.0, 0.0]]], requires_grad=True)
    prototypes = torch.tensor([[[0.0, 1.0], [1.0, 1.0], [-1.0, 0.0]]], requires_grad=True)
    coherence_loss(tokens, prototypes).backward()
    # d(1 - cos) for (1, 1) against (1, 0): -((1, 0) - (1, 1) / 2) / sqrt(2)
    expected = torch.tensor([[[0.0, 0.0], [-HALF_ROOT / 2, HALF_ROOT / 2], [0.0, 0.0]]])
    torch.testing.assert_close(prototypes.grad, expected)
    torch.testing.assert_close(tokens.grad, torch.tensor([[[0.0, -HALF_ROOT]]]))


def test_is_the_distance_by_another_formula() -> None:
    tokens, prototypes = random(3, 10, 4), random(3, 6, 4, seed=1)
    similarity = F.cosine_similarity(tokens.unsqueeze(2), prototypes.unsqueeze(1), dim=-1)  # (B, N, M)
    torch.testing.assert_close(coherence_loss(tokens, prototypes), (1 - similarity).min(dim=2).values.mean())


def test_every_image_has_its_own_prototypes() -> None:
    tokens = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    torch.testing.assert_close(coherence_loss(tokens, tokens), torch.tensor(0.0))
    torch.testing.assert_close(coherence_loss(tokens, tokens.flip(0)), torch.tensor(1.0))


def test_length_and_order_of_prototypes_do_not_matter() -> None:
    tokens, prototypes = random(2, 10, 4), random(2, 6, 4, seed=1)
    other = prototypes.flip(1) * torch.arange(1, 7, dtype=torch.float64).view(1, 6, 1)
    torch.testing.assert_close(coherence_loss(tokens, prototypes), coherence_loss(3 * tokens, other))


def test_opposite_is_the_largest_distance() -> None:
    torch.testing.assert_close(coherence_loss(torch.ones(1, 2, 3), -torch.ones(1, 1, 3)), torch.tensor(2.0))
