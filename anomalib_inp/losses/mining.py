# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Soft mining loss: reconstruction error whose gradient is steered towards the positions that are hard to rebuild."""

from typing import Any

import torch
from torch import Tensor

from anomalib_inp.distances import cosine_distance
from anomalib_inp.losses.distributed import global_mean


class _ScaleGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied: explicit, so that other readers of the tensor keep theirs."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, factor: Tensor) -> Tensor:
        """Return the tensor itself."""
        ctx.save_for_backward(factor)
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Multiply the gradient by the factor."""
        (factor,) = ctx.saved_tensors
        return gradient * factor, None


def soft_mining_loss(rebuilt: list[Tensor], targets: list[Tensor], power: float = 3.0) -> Tensor:
    """Cosine distance of whole feature maps, its gradient weighted per position by how badly that is rebuilt.

    The value is ``1 - cos`` of the flattened maps of an image, averaged over images and groups. The gradient that
    reaches a position is multiplied by ``(d / mean(d)) ** power``, where ``d`` is the cosine distance there and the
    mean runs over all positions of the batch, on all processes (paper, Soft Mining Loss; reference,
    ``global_cosine_hm_adaptive``).

    Args:
        rebuilt: The decoder's groups, each ``(B, N, D)``.
        targets: The encoder's groups, each ``(B, N, D)``; no gradient flows into them.
        power: Exponent of the weights; 0 gives plain cosine distance.

    Returns:
        The loss, a scalar in [0, 2].
    """
    losses = []
    for group, target in zip(rebuilt, targets, strict=True):
        target = target.detach()
        with torch.no_grad():
            # Rounding leaves distances just below 0, and a perfect reconstruction a mean of 0: both would give NaN.
            distance = cosine_distance(group, target).clamp(min=0)  # (B, N)
            mean = global_mean(distance).clamp(min=torch.finfo(distance.dtype).tiny)
            weight = (distance / mean) ** power
        mined = _ScaleGradient.apply(group, weight.unsqueeze(-1))
        losses.append(cosine_distance(mined.flatten(1), target.flatten(1)).mean())
    return torch.stack(losses).mean()
