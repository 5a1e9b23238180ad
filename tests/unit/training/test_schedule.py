# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

from itertools import pairwise

import pytest
import torch
from anomalib.models.image.dinomaly.components import WarmCosineScheduler
from torch import nn

from anomalib_inp.training.schedule import WarmupCosine


@pytest.mark.parametrize(("total", "warmup"), [(1000, 100), (250, 4), (201, 100), (5, 2)])
def test_equals_anomalibs(total: int, warmup: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-3)
    source = WarmCosineScheduler(optimizer, base_value=1e-3, final_value=1e-4, total_iters=total, warmup_iters=warmup)
    schedule = WarmupCosine(total, warmup, final_factor=0.1)
    assert [1e-3 * schedule(step) for step in range(total)] == pytest.approx(list(source.schedule), rel=1e-12)


def test_end_points() -> None:
    schedule = WarmupCosine(total_steps=1100, warmup_steps=100, final_factor=0.1)
    assert schedule(0) == 0
    assert schedule(99) == 1
    assert schedule(100) == 1
    assert schedule(600) == pytest.approx(0.55)
    assert schedule(1099) > 0.1
    assert schedule(1100) == pytest.approx(0.1)
    assert schedule(5000) == pytest.approx(0.1)


def test_rises_in_even_steps_and_then_falls() -> None:
    factors = [WarmupCosine(1000, 100)(step) for step in range(1001)]
    rises = [after - before for before, after in pairwise(factors[:100])]
    assert rises == pytest.approx([1 / 99] * 99)
    falls = [after - before for before, after in pairwise(factors[100:])]
    assert len(falls) == 900
    assert max(falls) < 0


@pytest.mark.parametrize(
    ("total", "effective"), [(1000, 100), (201, 100), (200, 100), (199, 99), (100, 50), (10, 5), (3, 1), (2, 1), (1, 0)]
)
def test_warmup_takes_at_most_half_of_the_training(total: int, effective: int) -> None:
    schedule = WarmupCosine(total, warmup_steps=100)
    assert schedule.effective_warmup == effective
    factors = [schedule(step) for step in range(total + 1)]
    # warm-up ends at the base learning rate, and the training at the final one, however short it is
    assert factors[max(effective - 1, 0)] == 1
    assert factors[effective] == 1
    assert factors[-1] == pytest.approx(0.1)
    assert all(0 <= factor <= 1 for factor in factors)


def test_without_warmup() -> None:
    schedule = WarmupCosine(10, warmup_steps=0)
    assert schedule(0) == 1
    assert schedule(5) == pytest.approx(0.55)
