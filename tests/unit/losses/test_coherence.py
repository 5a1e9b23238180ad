# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from anomalib_inp.distances import soft_prototype_distance
from anomalib_inp.losses.coherence import coherence_loss, soft_coherence_loss

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


def combine(tokens: Tensor, prototypes: Tensor) -> Tensor:
    """Soft combinations written down, by PyTorch's own cosine: ``(B, N, D)``."""
    similarity = F.cosine_similarity(tokens.unsqueeze(2), prototypes.unsqueeze(1), dim=-1)  # (B, N, M)
    return similarity.softmax(dim=-1) @ prototypes


class TestSoftCoherence:
    def test_two_tokens_and_two_prototypes_by_hand(self) -> None:
        tokens = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]])
        prototypes = torch.tensor([[[1.0, 0.0], [0.0, 3.0]]])
        # Cosines are 1 and 0, so the weights of a token are a = e / (1 + e) and b = 1 / (1 + e), and the combinations
        # (a, 3 b) and (b, 3 a). Flattened: (2, 0, 0, 1) and (a, 3 b, b, 3 a), with the product 2 a + 3 a.
        a, b = math.e / (1 + math.e), 1 / (1 + math.e)
        expected = 1 - 5 * a / math.sqrt(5 * 10 * (a * a + b * b))
        torch.testing.assert_close(soft_coherence_loss(tokens, prototypes), torch.tensor(expected))
        # the zero-shot distance of the first token alone: its combination is (a, 3 b)
        distance = soft_prototype_distance(tokens, prototypes)[0, 0]
        torch.testing.assert_close(distance, torch.tensor(1 - a / math.sqrt(a * a + 9 * b * b)))

    def test_is_the_distance_by_another_formula(self) -> None:
        tokens, prototypes = random(3, 10, 4), random(3, 6, 4, seed=1).requires_grad_()
        combined = combine(tokens, prototypes)
        other = (1 - F.cosine_similarity(tokens.flatten(1), combined.flatten(1), dim=-1)).mean()
        ours = soft_coherence_loss(tokens, prototypes)
        torch.testing.assert_close(ours, other)
        for first, second in zip(*(torch.autograd.grad(loss, prototypes) for loss in (ours, other)), strict=True):
            torch.testing.assert_close(first, second)
        distance = 1 - F.cosine_similarity(tokens, combined, dim=-1)
        torch.testing.assert_close(soft_prototype_distance(tokens, prototypes), distance)

    def test_order_of_prototypes_does_not_matter(self) -> None:
        tokens, prototypes = random(2, 10, 4), random(2, 6, 4, seed=1)
        ours = soft_coherence_loss(tokens, prototypes)
        torch.testing.assert_close(ours, soft_coherence_loss(tokens, prototypes[:, [3, 0, 5, 1, 2, 4]]))

    def test_one_prototype_stands_for_every_token(self) -> None:
        tokens, prototype = random(2, 10, 4), random(2, 1, 4, seed=1)
        copies = prototype.expand(-1, 10, -1)
        expected = (1 - F.cosine_similarity(tokens.flatten(1), copies.flatten(1), dim=-1)).mean()
        torch.testing.assert_close(soft_coherence_loss(tokens, prototype), expected)

    @pytest.mark.parametrize(("loss", "learning"), [(coherence_loss, [True, False]), (soft_coherence_loss, [True] * 2)])
    def test_a_prototype_that_is_nearest_to_no_token(self, loss, learning: list[bool]) -> None:
        """It learns from the soft loss alone: under the other one, all tokens may stay with one prototype for good."""
        tokens = torch.tensor([[[1.0, 0.2], [1.0, -0.3]]])
        prototypes = torch.tensor([[[1.0, 0.1], [-0.2, 1.0]]], requires_grad=True)
        loss(tokens, prototypes).backward()
        assert (prototypes.grad[0].abs().amax(dim=-1) > 1e-3).tolist() == learning

    def test_zeros_give_no_nan(self) -> None:
        for tokens, prototypes in (
            (torch.zeros(1, 3, 4), torch.ones(1, 2, 4)),
            (torch.ones(1, 3, 4), torch.zeros(1, 2, 4)),
        ):
            prototypes.requires_grad_()
            loss = soft_coherence_loss(tokens, prototypes)
            loss.backward()
            assert loss.item() == 1
            assert prototypes.grad.isfinite().all()
