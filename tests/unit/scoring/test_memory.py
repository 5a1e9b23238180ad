# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import pickle

import pytest
import torch
from anomalib.models.components.sampling import KCenterGreedy
from torch.nn import functional as F
from torch.nn.functional import cosine_similarity

from anomalib_inp.outputs import PatchFeatures, Reconstruction
from anomalib_inp.scoring.fusion import with_error
from anomalib_inp.scoring.memory import (
    NormalMemory,
    NormalTokens,
    directions,
    k_centres,
    nearest_distances,
    remembered,
    weights_of,
)


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


@pytest.fixture
def features() -> PatchFeatures:
    torch.manual_seed(0)
    return PatchFeatures([torch.randn(2, 6, 8)], (2, 3), [torch.randn(2, 6, 8) * 3])


@pytest.fixture
def memory() -> NormalMemory:
    torch.manual_seed(1)
    filled = NormalMemory()
    filled.remember(NormalTokens(torch.randn(2, 20, 8), torch.arange(20)), 20)
    mean, spread = torch.tensor([[0.3, 0.3], [0.5, 5.0]]), torch.tensor([[0.1, 0.1], [0.2, 3.0]])
    filled.weigh(mean, spread, torch.tensor([0.25, 0.75]), torch.tensor([1, 0]))
    return filled


def test_the_nearest_by_another_librarys_distances() -> None:
    """The nearest in direction and the nearest in position are two different tokens."""
    torch.manual_seed(0)
    tokens, known = torch.randn(2, 5, 8) * 7, torch.randn(9, 8) * 7
    exact = torch.cat([F.normalize(known, dim=-1), known.norm(dim=-1, keepdim=True)], dim=-1)
    cosine, squared = nearest_distances(tokens, exact, squared=True).unbind(dim=-2)
    cosines = cosine_similarity(tokens.unsqueeze(2), known.view(1, 1, 9, 8), dim=-1)
    torch.testing.assert_close(cosine, 1 - cosines.max(dim=-1).values)
    distances = torch.cdist(tokens, known)
    torch.testing.assert_close(squared, distances.min(dim=-1).values ** 2, rtol=1e-5, atol=1e-3)
    assert (cosines.argmax(dim=-1) != distances.argmin(dim=-1)).any()
    twice = nearest_distances(tokens, exact, squared=False)
    torch.testing.assert_close(twice, torch.stack([cosine, cosine], dim=-2))
    again = nearest_distances(known * 3, exact, squared=False)
    torch.testing.assert_close(again, torch.zeros(2, 9), rtol=0, atol=1e-6)


def test_what_is_remembered_is_a_direction_and_a_length() -> None:
    torch.testing.assert_close(
        remembered(torch.tensor([[3.0, 4.0], [0.0, 2.0]])), torch.tensor([[0.6, 0.8, 5.0], [0.0, 1.0, 2.0]]).half()
    )


def test_depths_are_standardised_and_weighted(memory, features) -> None:
    shallow, deep = (
        nearest_distances(tokens, known.float(), squared)
        for tokens, known, squared in zip(features.depths, memory.tokens, (False, True), strict=True)
    )
    expected = 0.25 * (shallow[:, 0] - 0.3) / 0.1  # a single block
    expected = expected + 0.75 * ((deep[:, 0] - 0.5) / 0.2 + (deep[:, 1] - 5) / 3) / 2
    found = memory(Reconstruction(features))
    assert found.shape == (2, 2, 3)
    torch.testing.assert_close(found.flatten(1), expected)


def test_single_blocks_and_groups_are_told_apart(memory, features) -> None:
    singles, groups = memory.found(features)
    shallow, deep = memory.distances(features, [0, 1])
    torch.testing.assert_close(singles, 0.25 * shallow.clamp(min=0))
    torch.testing.assert_close(groups, 0.75 * deep.clamp(min=0))
    memory.weigh(torch.zeros(2, 2), torch.ones(2, 2), torch.tensor([0.0, 1.0]), torch.tensor([0.1, 0.3]))
    singles, groups = memory.found(features)
    assert not singles.any()
    assert groups.shape == singles.shape == (2, 6)


def test_what_it_is_fused_with_can_be_pickled(memory, features) -> None:
    read = pickle.loads(pickle.dumps(with_error(memory, _ones)))  # noqa: S301 - made here
    singles, groups = (found.unflatten(1, (2, 3)) for found in memory.found(features))
    torch.testing.assert_close(read(Reconstruction(features)), torch.stack([singles / 2 + groups, singles + groups]))


def _ones(reconstruction: Reconstruction) -> torch.Tensor:
    return torch.ones(2, *reconstruction.features.grid)


def test_what_is_known_to_the_last_token_is_below_the_mean_of_normal_images(memory) -> None:
    known = memory.tokens.float()[:, :6].unsqueeze(1)
    shallow, deep = (tokens[..., :-1] * tokens[..., -1:] for tokens in known)
    found = memory(Reconstruction(PatchFeatures([deep], (2, 3), [shallow])))
    expected = -0.25 * 3 - 0.75 * (2.5 + 5 / 3) / 2
    torch.testing.assert_close(found, torch.full((1, 2, 3), expected), rtol=0, atol=0.02)


def test_a_depth_that_weighs_next_to_nothing_is_not_looked_at(memory, features) -> None:
    memory.weigh(torch.zeros(2, 2), torch.ones(2, 2), torch.tensor([0.01, 0.99]), torch.tensor([0.1, 0.3]))
    assert memory.used == [1]
    deep = features.depths[1]
    expected = 0.99 * nearest_distances(deep, memory.tokens[1].float(), squared=True).mean(dim=1)
    torch.testing.assert_close(memory(Reconstruction(features)).flatten(1), expected)
    fresh = NormalMemory()
    fresh.load_state_dict(memory.state_dict())
    assert fresh.used == [1]


def test_an_empty_memory_says_so(features) -> None:
    with pytest.raises(RuntimeError, match="The memory is empty: it is filled by a training"):
        NormalMemory()(Reconstruction(features))


def test_a_checkpoint_brings_its_size_along(memory, features) -> None:
    fresh = NormalMemory()
    fresh.load_state_dict(memory.state_dict(), strict=True)
    assert fresh.tokens.dtype == torch.float16
    assert torch.equal(fresh(Reconstruction(features)), memory(Reconstruction(features)))
    assert NormalMemory.is_in(memory.state_dict(prefix="model.heads.1."))
    assert not NormalMemory.is_in(["model.heads.0.layers.0.weight"])


@pytest.mark.parametrize("name", ["mean", "spread", "weights", "average_precision", "tokens"])
def test_a_damaged_memory_is_refused(memory, name) -> None:
    stored = memory.state_dict()
    stored[name] = stored[name][:-1]
    with pytest.raises(ValueError, match="The memory in this checkpoint is damaged"):
        NormalMemory().load_state_dict(stored)


def test_images_that_are_all_alike_divide_by_no_zero(memory, features) -> None:
    memory.weigh(torch.zeros(2, 2), torch.zeros(2, 2), torch.ones(2) / 2, torch.ones(2))
    assert memory(Reconstruction(features)).isfinite().all()


def test_weights_follow_the_average_precision() -> None:
    torch.testing.assert_close(weights_of(torch.tensor([0.4, 0.4])), torch.tensor([0.5, 0.5]))
    shallow, deep = weights_of(torch.tensor([0.42, 0.40]))
    assert shallow / deep == pytest.approx(torch.e)
    assert (shallow + deep).item() == pytest.approx(1)


def test_each_centre_is_the_token_farthest_from_those_before() -> None:
    angles = torch.tensor([0.0, 0.1, 1.5, 3.0, 3.1, 1.4])
    tokens = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert k_centres(tokens, 4).tolist() == [0, 4, 2, 3] or k_centres(tokens, 3).tolist() == [0, 4, 2]
    assert k_centres(tokens, 6).tolist() == list(range(6))
    assert k_centres(tokens, 60).tolist() == list(range(6))


def test_centres_cover_as_anomalibs_do() -> None:
    torch.manual_seed(0)
    tokens = unit(400, 16)

    def radius(chosen: torch.Tensor) -> float:
        return (1 - (tokens @ tokens[chosen].T).amax(dim=1)).max().item()

    theirs = torch.as_tensor(KCenterGreedy(tokens, 0.1).select_coreset_idxs())
    random = torch.randperm(400)[:40]
    ours = k_centres(tokens, 40)
    assert len(set(ours.tolist())) == 40
    assert radius(ours) <= min(radius(theirs), radius(random))


def test_directions() -> None:
    depths = [torch.randn(2, 5, 4) * 9, torch.randn(2, 5, 4)]
    found = directions(depths)
    assert found.shape == (2, 2, 5, 4)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(2, 2, 5))
    torch.testing.assert_close(found[:, 0], F.normalize(depths[0], dim=-1))
