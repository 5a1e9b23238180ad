# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What INP-Former minimises: named terms and their weighted sum."""

from torch import Tensor, nn

from anomalib_inp.losses.coherence import coherence_loss
from anomalib_inp.losses.mining import soft_mining_loss
from anomalib_inp.outputs import Reconstruction


class InpFormerObjective(nn.Module):
    """Soft mining loss plus weighted INP coherence loss (paper, overall loss).

    Args:
        coherence_weight: Weight of the coherence loss; the paper's lambda.
        mining_power: Exponent of the mining weights; the paper's gamma.

    Raises:
        ValueError: A negative weight or power.
    """

    def __init__(self, coherence_weight: float = 0.2, mining_power: float = 3.0) -> None:
        super().__init__()
        if not (coherence_weight >= 0 and mining_power >= 0):
            msg = f"coherence_weight and mining_power must not be negative, got {coherence_weight} and {mining_power}."
            raise ValueError(msg)
        self.coherence_weight = coherence_weight
        self.mining_power = mining_power

    def forward(self, reconstruction: Reconstruction) -> dict[str, Tensor]:
        """Compute the terms ``mining`` and ``coherence`` and their weighted sum ``loss``, all scalars."""
        features = reconstruction.features
        mining = soft_mining_loss(reconstruction.groups, features.groups, self.mining_power)
        coherence = coherence_loss(features.fused, reconstruction.prototypes)
        return {"mining": mining, "coherence": coherence, "loss": mining + self.coherence_weight * coherence}
