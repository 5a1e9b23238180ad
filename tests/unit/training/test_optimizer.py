# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import copy
from typing import Any

import pytest
import torch
from anomalib.models.image.dinomaly.components import StableAdamW as AnomalibStableAdamW
from torch import Tensor, nn

from anomalib_inp.training.optimizer import StableAdamW

SHAPES = ((3,), (4, 5), (2, 1, 1))
# From step to step the gradient grows, vanishes and shrinks, so that the running maximum and the clipping take part.
SIZES = (1.0, 0.01, 30.0, 0.0, 1e-4, 1e-4, 5.0, 1.0)


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in SHAPES]


def gradients(step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [SIZES[step] * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def run(optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        group = optimizer.param_groups[0]
        group["lr"] = 1e-2 / (1 + step)
        for parameter, gradient in zip(group["params"], gradients(step), strict=True):
            parameter.grad = gradient
        optimizer.step()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weight_decay": 0.1},
        {"betas": (0.5, 0.9)},
        {"eps": 1e-2},
    ],
)
def test_equals_anomalibs(settings: dict[str, Any]) -> None:
    ours, other = parameters(), parameters()
    defaults = {"betas": (0.9, 0.999), "weight_decay": 1e-4, "eps": 1e-10}
    optimizer = StableAdamW(ours, **settings)
    source = AnomalibStableAdamW(other, **{**defaults, **settings}, amsgrad=True)
    for step in range(len(SIZES)):
        run(optimizer, range(step, step + 1))
        run(source, range(step, step + 1))
        for first, second in zip(ours, other, strict=True):
            torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-14)


def test_first_step_by_hand() -> None:
    parameter = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    parameter.grad = torch.tensor([0.5, -0.1], dtype=torch.float64)
    StableAdamW([parameter], lr=0.1, weight_decay=0.01).step()
    # gradient / denominator is its sign and has RMS 1, which nothing divides; decay takes 0.1 * 0.01 of the weight
    expected = torch.tensor([1.0 * 0.999 - 0.1, -2.0 * 0.999 + 0.1], dtype=torch.float64)
    torch.testing.assert_close(parameter.data, expected, rtol=1e-8, atol=0)


def test_a_surprising_gradient_makes_a_smaller_step() -> None:
    def step_after(size: float) -> float:
        parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        optimizer = StableAdamW([parameter], lr=1.0, betas=(0.0, 0.999), weight_decay=0.0)
        for gradient in (1.0, size):
            before = parameter.item()
            parameter.grad = torch.full((1,), gradient, dtype=torch.float64)
            optimizer.step()
        return before - parameter.item()

    # without running mean the step is gradient / denominator; where that is above 1, the division leaves 1
    assert step_after(100.0) == pytest.approx(1, rel=1e-9)
    square = 0.999 * 0.001 * 1.0**2 + 0.001 * 0.5**2
    assert step_after(0.5) == pytest.approx(0.5 / (square / (1 - 0.999**2)) ** 0.5, rel=1e-9)


def test_keeps_three_tensors_and_a_step() -> None:
    weights = parameters()
    optimizer = StableAdamW(weights)
    run(optimizer, range(3))
    for parameter in weights:
        state = optimizer.state[parameter]
        assert set(state) == {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}
        assert state["step"] == 3
        for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            assert state[name].shape == parameter.shape
            assert state[name].dtype == parameter.dtype


def test_goes_on_from_its_state_dict() -> None:
    straight, resumed = parameters(), parameters()
    run(StableAdamW(straight), range(8))
    first = StableAdamW(resumed)
    run(first, range(4))
    second = StableAdamW(resumed)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    run(second, range(4, 8))
    for ours, other in zip(resumed, straight, strict=True):
        assert torch.equal(ours, other)


def test_leaves_parameters_without_gradient_alone() -> None:
    weights = parameters()
    optimizer = StableAdamW(weights, weight_decay=0.5)
    weights[0].grad = torch.ones(3, dtype=torch.float64)
    optimizer.step()
    before = parameters()
    assert not torch.equal(weights[0], before[0])
    assert torch.equal(weights[1], before[1])
    assert weights[1] not in optimizer.state


def test_leaves_gradients_as_they_were() -> None:
    weights = parameters()
    run(StableAdamW(weights), range(1))
    for parameter, gradient in zip(weights, gradients(0), strict=True):
        assert torch.equal(parameter.grad, gradient)


def test_calls_a_closure_with_gradients_enabled() -> None:
    parameter = nn.Parameter(torch.ones(2))

    def closure() -> Tensor:
        loss = (parameter**2).sum()
        loss.backward()
        return loss

    assert StableAdamW([parameter]).step(closure).item() == 2
    assert parameter.max() < 1
