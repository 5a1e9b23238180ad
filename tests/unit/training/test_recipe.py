# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

from typing import Any

import pytest
import torch
from torch import nn

from anomalib_inp.training import recipe as recipe_module
from anomalib_inp.training.optimizer import StableAdamW
from anomalib_inp.training.recipe import Recipe


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the log says."""
    said: list[str] = []
    monkeypatch.setattr(recipe_module, "rank_zero_info", said.append)
    return said


def configure(recipe: Recipe, total_steps: float) -> dict[str, Any]:
    configured: Any = recipe.configure([nn.Parameter(torch.ones(2))], total_steps)
    return configured


def rates(configured: dict[str, Any], steps: int) -> list[float]:
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_groups_have_rates_of_their_own_on_one_schedule() -> None:
    groups = [{"params": [nn.Parameter(torch.ones(2))]}, {"params": [nn.Parameter(torch.ones(2))], "lr": 4e-3}]
    configured: Any = Recipe(learning_rate=1e-3, warmup_steps=3).configure(groups, 20)
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    for _ in range(20):
        first, second = (group["lr"] for group in optimizer.param_groups)
        assert second == pytest.approx(4 * first)
        optimizer.step()
        scheduler.step()
    assert first < 1.1e-4


def test_optimizer_of_the_paper() -> None:
    configured = configure(Recipe(), 1000)
    optimizer = configured["optimizer"]
    assert type(optimizer) is StableAdamW
    group = optimizer.param_groups[0]
    assert (group["initial_lr"], group["weight_decay"]) == (1e-3, 1e-4)
    assert (group["betas"], group["eps"]) == ((0.9, 0.999), 1e-10)


def test_schedule_counts_steps_and_not_epochs() -> None:
    assert configure(Recipe(), 1000)["lr_scheduler"]["interval"] == "step"


def test_rates_from_first_to_last_step() -> None:
    found = rates(configure(Recipe(learning_rate=2e-3, final_learning_rate=5e-4, warmup_steps=10), 100), 101)
    assert found[0] == 0
    assert found[9] == found[10] == pytest.approx(2e-3)
    assert found[55] == pytest.approx((2e-3 + 5e-4) / 2)
    assert found[100] == pytest.approx(5e-4)


def test_settings_reach_the_optimizer() -> None:
    group = configure(Recipe(learning_rate=3e-4, weight_decay=0.2), 1000)["optimizer"].param_groups[0]
    assert (group["initial_lr"], group["weight_decay"]) == (3e-4, 0.2)


def test_short_training_shortens_the_warmup_and_says_so(messages: list[str]) -> None:
    found = rates(configure(Recipe(), 20), 20)
    assert found[9] == found[10] == pytest.approx(1e-3)
    assert found[8] < found[9]
    assert found[11] < found[10]
    assert messages == ["Training takes 20 steps, so warm-up takes the first 10 instead of 100."]


@pytest.mark.parametrize("steps", [200, 1000])
def test_long_training_says_nothing(messages: list[str], steps: int) -> None:
    configure(Recipe(), steps)
    assert messages == []


@pytest.mark.parametrize("steps", [float("inf"), float("nan")])
def test_training_without_end_is_an_error(steps: float) -> None:
    with pytest.raises(ValueError, match=r"needs an end: give --trainer.max_epochs or --trainer.max_steps"):
        configure(Recipe(), steps)
