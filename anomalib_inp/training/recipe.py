# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The training recipe: what the optimiser and its schedule are, for any number of steps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from anomalib_inp.training.optimizer import StableAdamW
from anomalib_inp.training.schedule import WarmupCosine


def check_positive(name: str, value: float) -> None:
    """Refuse a number that is not positive and finite.

    Raises:
        ValueError: It is not.
    """
    if not 0 < value < math.inf:
        msg = f"{name} must be a positive number, got {value}."
        raise ValueError(msg)


@dataclass(frozen=True)
class Recipe:
    """Optimiser and schedule (reference, ``INP_Former_*.py``).

    Args:
        learning_rate: Learning rate after warm-up.
        final_learning_rate: Learning rate at the end.
        warmup_steps: Optimiser steps of warm-up; at most half of all steps.
        weight_decay: Decoupled weight decay.
    """

    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-4
    warmup_steps: int = 100
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        """Refuse what cannot train.

        Raises:
            ValueError: A learning rate that is not positive, or another number that is negative.
        """
        for name in ("learning_rate", "final_learning_rate"):
            check_positive(name, getattr(self, name))
        for name in ("warmup_steps", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                msg = f"{name} must not be negative, got {getattr(self, name)}."
                raise ValueError(msg)

    def configure(
        self, parameters: Sequence[nn.Parameter] | Sequence[dict[str, Any]], total_steps: float
    ) -> OptimizerLRScheduler:
        """Make the optimiser and its schedule, one step of it per optimiser step.

        Args:
            parameters: What is trained, or groups of it (``params``) with a learning rate of their own (``lr``); the
                schedule has the same shape for all.
            total_steps: Optimiser steps of the whole training.

        Raises:
            ValueError: The number of steps is not finite, so that the schedule has no end.
        """
        if not math.isfinite(total_steps):
            msg = "The schedule needs an end: give --trainer.max_epochs or --trainer.max_steps a positive number."
            raise ValueError(msg)
        schedule = WarmupCosine(int(total_steps), self.warmup_steps, self.final_learning_rate / self.learning_rate)
        if schedule.effective_warmup != self.warmup_steps:
            rank_zero_info(
                f"Training takes {schedule.total_steps} steps, so warm-up takes the first {schedule.effective_warmup} "
                f"instead of {self.warmup_steps}."
            )
        optimizer = StableAdamW(parameters, lr=self.learning_rate, weight_decay=self.weight_decay)
        # A function, not the object: LambdaLR would keep the object's length in checkpoints, and a training that is
        # resumed for longer would stay at the final learning rate.
        scheduler = LambdaLR(optimizer, lambda step: schedule(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


SHORT = Recipe(learning_rate=1e-4, final_learning_rate=1e-5)
"""For a few hundred steps on one category: a tenth of the published rate (docs/benchmarks.md)."""
