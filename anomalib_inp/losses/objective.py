# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What the reconstruction models minimise: named terms and their weighted sum."""

import math

from torch import Tensor, nn

from anomalib_inp.losses.coherence import coherence_loss, soft_coherence_loss
from anomalib_inp.losses.mining import soft_mining_loss, soft_mining_mse_loss
from anomalib_inp.outputs import Reconstruction


class InpFormerObjective(nn.Module):
    """Soft mining loss plus weighted INP coherence loss (paper, overall loss).

    Args:
        coherence_weight: Weight of the coherence loss; the paper's lambda.
        mining_power: Exponent of the mining weights; the paper's gamma.

    Raises:
        ValueError: A weight or power that is negative or no finite number.
    """

    def __init__(self, coherence_weight: float = 0.2, mining_power: float = 3.0) -> None:
        super().__init__()
        _check_not_negative(coherence_weight=coherence_weight, mining_power=mining_power)
        self.coherence_weight = coherence_weight
        self.mining_power = mining_power

    def forward(self, reconstruction: Reconstruction) -> dict[str, Tensor]:
        """Compute the terms ``mining`` and ``coherence`` and their weighted sum ``loss``, all scalars."""
        features = reconstruction.features
        mining = soft_mining_loss(reconstruction.groups, features.groups, self.mining_power)
        coherence = coherence_loss(features.fused, reconstruction.prototypes)
        return {"mining": mining, "coherence": coherence, "loss": mining + self.coherence_weight * coherence}


class InpFormerPlusPlusObjective(nn.Module):
    """Soft mining on cosine and on squared error, plus weighted soft INP coherence (INP-Former++, overall loss).

    Args:
        coherence_weight: Weight of the soft coherence loss.
        mining_power: Exponent of the mining weights, of both distances.
        mse_weight: Weight of the squared error; the paper gives none.

    Raises:
        ValueError: A weight or power that is negative or no finite number.
    """

    def __init__(self, coherence_weight: float = 0.2, mining_power: float = 3.0, mse_weight: float = 1.0) -> None:
        super().__init__()
        _check_not_negative(coherence_weight=coherence_weight, mining_power=mining_power, mse_weight=mse_weight)
        self.coherence_weight = coherence_weight
        self.mining_power = mining_power
        self.mse_weight = mse_weight

    def forward(self, reconstruction: Reconstruction) -> dict[str, Tensor]:
        """Compute ``mining``, ``mining_mse`` and ``coherence`` and their weighted sum ``loss``, all scalars."""
        features = reconstruction.features
        mining = soft_mining_loss(reconstruction.groups, features.groups, self.mining_power)
        mining_mse = soft_mining_mse_loss(reconstruction.groups, features.groups, self.mining_power)
        coherence = soft_coherence_loss(features.fused, reconstruction.prototypes)
        loss = mining + self.mse_weight * mining_mse + self.coherence_weight * coherence
        return {"mining": mining, "mining_mse": mining_mse, "coherence": coherence, "loss": loss}


def _check_not_negative(**numbers: float) -> None:
    if not all(0 <= number < math.inf for number in numbers.values()):
        given = ", ".join(f"{name} {number}" for name, number in numbers.items())
        msg = f"Weights and powers of the losses must not be negative or infinite, got {given}."
        raise ValueError(msg)
