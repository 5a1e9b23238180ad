# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from anomalib_inp.losses.coherence import coherence_loss
from anomalib_inp.losses.mining import soft_mining_loss
from anomalib_inp.losses.objective import InpFormerObjective, InpFormerPlusPlusObjective
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


@pytest.mark.parametrize(
    ("objective", "paper"),
    [
        (InpFormerObjective, {"coherence_weight": 0.2, "mining_power": 3.0}),
        (InpFormerPlusPlusObjective, {"coherence_weight": 0.2, "mining_power": 3.0, "mse_weight": 1.0}),
    ],
)
def test_values_of_the_paper_are_the_defaults(
    objective: Callable[..., InpFormerObjective | InpFormerPlusPlusObjective],
    paper: dict[str, float],
    reconstruction: Reconstruction,
) -> None:
    leaves = [reconstruction.prototypes, *reconstruction.groups]
    explicit, default = (
        torch.autograd.grad(made(reconstruction)["loss"], leaves) for made in (objective(**paper), objective())
    )
    for ours, other in zip(explicit, default, strict=True):
        assert torch.equal(ours, other)


class TestPlusPlus:
    def test_by_hand(self) -> None:
        tokens = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]])
        rebuilt = [tokens, torch.tensor([[[2.0, 0.0], [0.0, -1.0]]])]
        prototypes = torch.tensor([[[1.0, 0.0], [0.0, 3.0]]])
        terms = InpFormerPlusPlusObjective(coherence_weight=0.3, mse_weight=0.6)(
            Reconstruction(PatchFeatures([tokens, tokens], (1, 2)), prototypes, rebuilt)
        )
        assert list(terms) == ["mining", "mining_mse", "coherence", "loss"]
        # The first group is as it should be. The second one, flattened: (2, 0, 0, -1) and (2, 0, 0, 1), cos = 3 / 5,
        # and of four squared errors one is 4.
        torch.testing.assert_close(terms["mining"], torch.tensor((0 + 2 / 5) / 2))
        torch.testing.assert_close(terms["mining_mse"], torch.tensor((0 + 4 / 4) / 2))
        # Each token has a prototype of its own direction, so that its distance to the nearest one is 0. Softly: cosines
        # of 1 and 0 weigh a = e / (1 + e) and b = 1 / (1 + e), so that (2, 0, 0, 1) stands before (a, 3 b, b, 3 a).
        a, b = math.e / (1 + math.e), 1 / (1 + math.e)
        coherence = 1 - 5 * a / math.sqrt(5 * 10 * (a * a + b * b))
        torch.testing.assert_close(terms["coherence"], torch.tensor(coherence))
        torch.testing.assert_close(terms["loss"], torch.tensor(0.2 + 0.6 * 0.5 + 0.3 * coherence))

    def test_power_and_weights_reach_the_gradients(self, reconstruction: Reconstruction) -> None:
        """Against losses and weights written down with PyTorch's own functions."""
        features, prototypes, groups = reconstruction
        ours = InpFormerPlusPlusObjective(coherence_weight=0.7, mining_power=1.5, mse_weight=0.3)(reconstruction)

        similarity = F.cosine_similarity(features.fused.unsqueeze(2), prototypes.unsqueeze(1), dim=-1)
        combined = similarity.softmax(dim=-1) @ prototypes
        coherence = (1 - F.cosine_similarity(features.fused.flatten(1), combined.flatten(1))).mean()
        (expected,) = torch.autograd.grad(0.7 * coherence, prototypes)
        torch.testing.assert_close(torch.autograd.grad(ours["loss"], prototypes, retain_graph=True)[0], expected)

        for group, target in zip(groups, features.groups, strict=True):
            cosine = (1 - F.cosine_similarity(group.flatten(1), target.flatten(1))).mean() / 2
            squared = F.mse_loss(group, target) / 2
            distances = (1 - F.cosine_similarity(group, target, dim=-1), (group - target).square().mean(dim=-1))
            expected = torch.zeros_like(group)
            for weight, loss, distance in zip((1, 0.3), (cosine, squared), distances, strict=True):
                (gradient,) = torch.autograd.grad(loss, group, retain_graph=True)
                expected += weight * gradient * ((distance / distance.mean()) ** 1.5).unsqueeze(-1)
            torch.testing.assert_close(torch.autograd.grad(ours["loss"], group, retain_graph=True)[0], expected)


@pytest.mark.parametrize("objective", [InpFormerObjective, InpFormerPlusPlusObjective])
@pytest.mark.parametrize("value", [-0.1, math.inf, math.nan])
def test_weights_and_powers_that_make_no_sense_are_refused(objective: Callable[..., object], value: float) -> None:
    for name in ("coherence_weight", "mining_power", *(["mse_weight"] if "Plus" in objective.__name__ else [])):
        with pytest.raises(ValueError, match=f"{name} {value}"):
            objective(**{name: value})
