# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Soft mining loss: reconstruction error whose gradient is steered towards the positions that are hard to rebuild."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from anomalib_inp.distances import TINY
from anomalib_inp.losses.distributed import global_mean


class _MinedCosine(torch.autograd.Function):
    """Cosine distance of whole feature maps ``(B, N, D)`` and its mined gradient.

    Distance and weights need only three numbers per position, and with them the gradient is written down at once: no
    normalised, flattened or weighted copy of a feature map is made, and other readers of the maps keep their gradient.
    """

    @staticmethod
    def forward(ctx: Any, rebuilt: Tensor, target: Tensor, power: float) -> Tensor:
        """Compute the loss, a scalar."""
        dot = torch.einsum("bnd,bnd->bn", rebuilt, target)
        own, other = (torch.linalg.vector_norm(maps, dim=-1) for maps in (rebuilt, target))  # (B, N)
        weight = _mining_weight(1 - dot / (own.clamp(min=TINY) * other.clamp(min=TINY)), power)

        # The same for an image as a whole: cos = image_dot / (image_own * image_other).
        image_dot = dot.sum(dim=1)
        image_own, image_other = (torch.linalg.vector_norm(norms, dim=1).clamp(min=TINY) for norms in (own, other))
        cosine = image_dot / (image_own * image_other)
        # d(1 - cos) / d(rebuilt) = cos / image_own^2 * rebuilt - target / (image_own * image_other)
        of_rebuilt, of_target = cosine / image_own**2, -1 / (image_own * image_other)
        factors = [weight * factor.unsqueeze(1) / len(cosine) for factor in (of_rebuilt, of_target)]
        ctx.save_for_backward(rebuilt, target, *factors)
        return (1 - cosine).mean()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Gradient of ``rebuilt``, weighted per position; the target gets none."""
        rebuilt, target, of_rebuilt, of_target = ctx.saved_tensors
        own = rebuilt * (gradient * of_rebuilt).unsqueeze(-1)
        return own.addcmul_(target, (gradient * of_target).unsqueeze(-1)), None, None


class _MinedSquaredError(torch.autograd.Function):
    """Squared error of feature maps ``(B, N, D)`` and its mined gradient."""

    @staticmethod
    def forward(ctx: Any, rebuilt: Tensor, target: Tensor, power: float) -> Tensor:
        """Compute the loss, a scalar."""
        error = (rebuilt - target).square_().mean(dim=-1)  # (B, N)
        # d(mean of squares) / d(rebuilt) = 2 / count * (rebuilt - target)
        ctx.save_for_backward(rebuilt, target, _mining_weight(error, power) * (2 / rebuilt.numel()))
        return error.mean()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Gradient of ``rebuilt``, weighted per position; the target gets none."""
        rebuilt, target, factor = ctx.saved_tensors
        return (rebuilt - target).mul_((gradient * factor).unsqueeze(-1)), None, None


def _mining_weight(distance: Tensor, power: float) -> Tensor:
    """Weights of the gradient per position ``(B, N)``: above 1 where the distance is above its mean."""
    # Rounding leaves distances just below 0, and a perfect reconstruction a mean of 0: both would give NaN.
    distance = distance.clamp(min=0)
    return (distance / global_mean(distance).clamp(min=torch.finfo(distance.dtype).tiny)) ** power


def soft_mining_loss(rebuilt: Sequence[Tensor], targets: Sequence[Tensor], power: float = 3.0) -> Tensor:
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
    pairs = zip(rebuilt, targets, strict=True)
    return torch.stack([_MinedCosine.apply(group, target, power) for group, target in pairs]).mean()


def soft_mining_mse_loss(rebuilt: Sequence[Tensor], targets: Sequence[Tensor], power: float = 3.0) -> Tensor:
    """Mean squared error of feature maps, its gradient weighted per position by how badly that is rebuilt.

    As :func:`soft_mining_loss`, with the squared error per position in place of the cosine distance, in the value and
    in the weights (INP-Former++, residual learning). The mean over channels is our choice; a sum over them is ``D``
    times as much.

    Args:
        rebuilt: The decoder's groups, each ``(B, N, D)``.
        targets: The encoder's groups, each ``(B, N, D)``; no gradient flows into them.
        power: Exponent of the weights; 0 gives plain mean squared error.

    Returns:
        The loss, a scalar: mean over images, positions, channels and groups.
    """
    pairs = zip(rebuilt, targets, strict=True)
    return torch.stack([_MinedSquaredError.apply(group, target, power) for group, target in pairs]).mean()
