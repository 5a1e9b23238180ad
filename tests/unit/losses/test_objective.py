# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import pytest
import torch
from torch import Tensor

from anomalib_inp.losses.coherence import coherence_loss
from anomalib_inp.losses.mining import soft_mining_loss
from anomalib_inp.losses.objective import InpFormerObjective
from anomalib_inp.outputs import PatchFeatures, Reconstruction


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def reconstruction() -> Reconstruction:
    features = PatchFeatures([random(2, 4, 3, seed=seed) for seed in (0, 1)], (2, 2))
    prototypes = random(2, 6, 3, seed=2).requires_grad_()
    return Reconstruction(features, prototypes, [random(2, 4, 3, seed=seed).requires_grad_() for seed in (3, 4)])


def test_by_hand() -> None:
    right, up = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
    # groups: distances 0 and 1; fused: (1, 0), at right angles to the only prototype
    terms = InpFormerObjective()(Reconstruction(PatchFeatures([right, right], (1, 1)), up, [right, up]))
    assert list(terms) == ["mining", "coherence", "loss"]
    torch.testing.assert_close(terms["mining"], torch.tensor(0.5))
    torch.testing.assert_close(terms["coherence"], torch.tensor(1.0))
    torch.testing.assert_close(terms["loss"], torch.tensor(0.7))


def test_terms_are_those_of_the_functions(reconstruction: Reconstruction) -> None:
    terms = InpFormerObjective(coherence_weight=0.7, mining_power=1.5)(reconstruction)
    features = reconstruction.features
    mining = soft_mining_loss(reconstruction.groups, features.groups, 1.5)
    coherence = coherence_loss((features.groups[0] + features.groups[1]) / 2, reconstruction.prototypes)
    torch.testing.assert_close(terms["mining"], mining)
    torch.testing.assert_close(terms["coherence"], coherence)
    torch.testing.assert_close(terms["loss"], mining + 0.7 * coherence)


def test_weights_reach_the_gradients(reconstruction: Reconstruction) -> None:
    leaves = [reconstruction.prototypes, *reconstruction.groups]

    def gradients(objective: InpFormerObjective) -> list[Tensor]:
        return list(torch.autograd.grad(objective(reconstruction)["loss"], leaves))

    base, doubled = gradients(InpFormerObjective()), gradients(InpFormerObjective(coherence_weight=0.4))
    torch.testing.assert_close(doubled[0], 2 * base[0])
    torch.testing.assert_close(doubled[1:], base[1:])

    linear = gradients(InpFormerObjective(mining_power=1.0))
    torch.testing.assert_close(linear[0], base[0])
    assert all((ours - other).abs().max() > 1e-3 for ours, other in zip(linear[1:], base[1:], strict=True))


def test_values_of_the_paper_are_the_defaults(reconstruction: Reconstruction) -> None:
    explicit = InpFormerObjective(coherence_weight=0.2, mining_power=3.0)(reconstruction)["loss"]
    default = InpFormerObjective()(reconstruction)["loss"]
    leaves = [reconstruction.prototypes, *reconstruction.groups]
    pairs = (torch.autograd.grad(loss, leaves) for loss in (explicit, default))
    for ours, other in zip(*pairs, strict=True):
        assert torch.equal(ours, other)
