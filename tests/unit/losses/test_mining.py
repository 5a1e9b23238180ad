# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from anomalib_inp.losses.mining import soft_mining_loss, soft_mining_mse_loss


def groups(seed: int, batch: int = 2, tokens: int = 5, dim: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, tokens, dim, generator=generator, dtype=torch.float64) for _ in range(2)]


def plain(rebuilt: list[Tensor], targets: list[Tensor]) -> Tensor:
    """Cosine distance of the flattened maps, by PyTorch's own cosine."""
    pairs = zip(rebuilt, targets, strict=True)
    return torch.stack([1 - F.cosine_similarity(a.flatten(1), b.flatten(1)).mean() for a, b in pairs]).mean()


def gradients(loss: Tensor, rebuilt: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, rebuilt))


def test_two_positions_by_hand() -> None:
    rebuilt = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], requires_grad=True)
    target = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    loss = soft_mining_loss([rebuilt], [target])
    # flattened (1, 0, 0, 1) and (1, 0, 1, 0), both of length sqrt(2): cos = 1 / 2
    torch.testing.assert_close(loss, torch.tensor(0.5))
    # d(1 - cos) = -(target - cos * rebuilt) / 2 = (-1/4, 0), (-1/2, 1/4);
    # distances 0 and 1, mean 1/2, so the positions weigh 0 and 2 ** 3 = 8
    loss.backward()
    torch.testing.assert_close(rebuilt.grad, torch.tensor([[[0.0, 0.0], [-4.0, 2.0]]]))


def test_weights_are_relative_to_the_mean_over_the_batch() -> None:
    unit = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    target = unit[torch.tensor([[0, 0], [0, 0]])]
    rebuilt = unit[torch.tensor([[0, 1], [1, 2]])].requires_grad_()
    # distances (0, 1) and (1, 2), mean over both images 1
    weights = torch.tensor([[0.0, 1.0], [1.0, 8.0]], dtype=torch.float64)
    (mined,) = gradients(soft_mining_loss([rebuilt], [target]), [rebuilt])
    (unweighted,) = gradients(plain([rebuilt], [target]), [rebuilt])
    assert unweighted[1, 1].abs().max() > 0
    torch.testing.assert_close(mined, unweighted * weights.unsqueeze(-1))


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_each_position_has_its_own_factor_in_each_group(power: float) -> None:
    rebuilt, targets = [group.requires_grad_() for group in groups(0)], groups(1)
    loss = soft_mining_loss(rebuilt, targets, power)
    torch.testing.assert_close(loss, plain(rebuilt, targets))
    mined, unweighted = gradients(loss, rebuilt), gradients(plain(rebuilt, targets), rebuilt)
    for group, target, ours, whole in zip(rebuilt, targets, mined, unweighted, strict=True):
        distance = 1 - F.cosine_similarity(group.detach(), target, dim=-1)
        torch.testing.assert_close(ours, whole * ((distance / distance.mean()) ** power).unsqueeze(-1))


def test_power_0_is_plain_cosine_distance() -> None:
    rebuilt, targets = [group.requires_grad_() for group in groups(0)], groups(1)
    ours, other = soft_mining_loss(rebuilt, targets, power=0), plain(rebuilt, targets)
    torch.testing.assert_close(ours, other)
    for first, second in zip(gradients(ours, rebuilt), gradients(other, rebuilt), strict=True):
        torch.testing.assert_close(first, second)


def test_targets_get_no_gradient() -> None:
    rebuilt, targets = ([group.requires_grad_() for group in groups(seed)] for seed in (0, 1))
    soft_mining_loss(rebuilt, targets).backward()
    assert all(group.grad is not None for group in rebuilt)
    assert all(group.grad is None for group in targets)


def test_other_readers_of_a_group_keep_their_gradient() -> None:
    """In either order of the readers: the factor belongs to the mining path, not to the tensor."""
    rebuilt, targets = [group.requires_grad_() for group in groups(0)], groups(1)
    factor = torch.arange(4, dtype=torch.float64)
    mined = gradients(soft_mining_loss(rebuilt, targets), rebuilt)
    before = sum((group * factor).sum() for group in rebuilt) + soft_mining_loss(rebuilt, targets)
    after = soft_mining_loss(rebuilt, targets) + sum((group * factor).sum() for group in rebuilt)
    for total in (before, after):
        for ours, mining in zip(gradients(total, rebuilt), mined, strict=True):
            torch.testing.assert_close(ours, mining + factor)


def test_inputs_stay_as_they_were() -> None:
    rebuilt, targets = [group.requires_grad_() for group in groups(0)], groups(1)
    soft_mining_loss(rebuilt, targets).backward()
    for group, copy in zip([*rebuilt, *targets], [*groups(0), *groups(1)], strict=True):
        assert torch.equal(group, copy)


def test_runs_without_gradients() -> None:
    with torch.no_grad():
        torch.testing.assert_close(soft_mining_loss(groups(0), groups(1)), plain(groups(0), groups(1)))


@pytest.mark.parametrize("power", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("exact", [True, False])
def test_a_perfect_reconstruction_has_no_loss_and_no_gradient(power: float, dtype: torch.dtype, exact: bool) -> None:
    """Where every distance is 0, or so close that rounding decides its sign, no weight is 0 / 0 or huge."""
    for seed in range(20):
        targets = [group.to(dtype) for group in groups(seed)]
        if exact:  # nothing to round: every distance is 0
            targets = [torch.eye(4, dtype=dtype)[0].expand_as(group) for group in targets]
        rebuilt = [group.clone().requires_grad_() for group in targets]
        loss = soft_mining_loss(rebuilt, targets, power)
        torch.testing.assert_close(loss, torch.zeros((), dtype=dtype), atol=1e-6, rtol=0)
        for gradient in gradients(loss, rebuilt):
            torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-3, rtol=0)


def test_a_length_mismatch_is_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        soft_mining_loss(groups(0), groups(1)[:1])


class TestSquaredError:
    def test_two_positions_by_hand(self) -> None:
        rebuilt = torch.tensor([[[1.0, 0.0], [1.0, 2.0]]], requires_grad=True)
        target = torch.tensor([[[1.0, 1.0], [1.0, 5.0]]])
        # squared errors per position, mean over two channels: 1/2 and 9/2, mean 5/2
        loss = soft_mining_mse_loss([rebuilt], [target])
        torch.testing.assert_close(loss, torch.tensor(2.5))
        # 2 / 4 * (rebuilt - target), weighted by (1/5) ** 3 and (9/5) ** 3
        loss.backward()
        expected = torch.tensor([[[0.0, -0.5 * 0.2**3], [0.0, -1.5 * 1.8**3]]])
        torch.testing.assert_close(rebuilt.grad, expected)

    @pytest.mark.parametrize("power", [0.0, 0.5, 3.0])
    def test_each_position_has_its_own_factor_in_each_group(self, power: float) -> None:
        rebuilt, targets = [group.requires_grad_() for group in groups(0)], groups(1)
        ours = soft_mining_mse_loss(rebuilt, targets, power)
        other = torch.stack([F.mse_loss(group, target) for group, target in zip(rebuilt, targets, strict=True)]).mean()
        torch.testing.assert_close(ours, other)
        mined, unweighted = gradients(ours, rebuilt), gradients(other, rebuilt)
        for group, target, first, second in zip(rebuilt, targets, mined, unweighted, strict=True):
            error = F.mse_loss(group.detach(), target, reduction="none").mean(dim=-1)
            torch.testing.assert_close(first, second * ((error / error.mean()) ** power).unsqueeze(-1))

    def test_the_weights_of_one_distance_do_not_touch_the_gradient_of_the_other(self) -> None:
        """Nor that of a third reader: what arrives is the sum of what each gives alone."""
        rebuilt, targets = [group.requires_grad_() for group in groups(0)], groups(1)
        terms = (
            lambda: soft_mining_loss(rebuilt, targets),
            lambda: soft_mining_mse_loss(rebuilt, targets),
            lambda: sum((group**2).sum() for group in rebuilt),
        )
        alone = [gradients(term(), rebuilt) for term in terms]
        together = gradients(sum(term() for term in terms), rebuilt)
        for index, ours in enumerate(together):
            torch.testing.assert_close(ours, sum(part[index] for part in alone))

    def test_a_perfect_reconstruction_has_no_loss_and_no_gradient(self) -> None:
        rebuilt, targets = [group.requires_grad_() for group in groups(0)], groups(0)
        loss = soft_mining_mse_loss(rebuilt, targets)
        assert loss.item() == 0
        assert all((gradient == 0).all() for gradient in gradients(loss, rebuilt))

    def test_targets_get_no_gradient_and_inputs_stay_as_they_were(self) -> None:
        rebuilt, targets = ([group.requires_grad_() for group in groups(seed)] for seed in (0, 1))
        soft_mining_mse_loss(rebuilt, targets).backward()
        assert all(group.grad is None for group in targets)
        for group, copy in zip([*rebuilt, *targets], [*groups(0), *groups(1)], strict=True):
            assert torch.equal(group, copy)
