# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Learning rate per step: linear warm-up, then a cosine."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class WarmupCosine:
    """Factor of the base learning rate at a step (reference, ``WarmCosineScheduler``).

    Step ``s`` of the ``W`` warm-up steps has the factor ``s / (W - 1)``; then a cosine leads from 1 to
    ``final_factor`` at ``T``. Where ``T <= 2 W``, warm-up is the first half of all steps.

    Args:
        total_steps: Optimiser steps of the whole training, ``T``.
        warmup_steps: Warm-up steps asked for.
        final_factor: Final learning rate over base learning rate.
    """

    total_steps: int
    warmup_steps: int = 100
    final_factor: float = 0.1

    @property
    def effective_warmup(self) -> int:
        """Warm-up steps that the training has room for, ``W``."""
        return self.total_steps // 2 if self.total_steps <= 2 * self.warmup_steps else self.warmup_steps

    def __call__(self, step: int) -> float:
        """Factor at a step, counted from 0."""
        warmup = self.effective_warmup
        if step < warmup:
            return step / (warmup - 1) if warmup > 1 else 1.0
        progress = min(1.0, (step - warmup) / max(1, self.total_steps - warmup))
        return self.final_factor + (1 - self.final_factor) / 2 * (1 + math.cos(math.pi * progress))
