# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Segmentation loss of INP-Former++: overlap of the head's mask with the mask of the pseudo-anomalies."""

from torch import Tensor

SMOOTHING = 1.0
"""Pixels added to overlap and areas: an image without an anomaly asks for an empty mask instead of giving 0/0."""


def dice_loss(probabilities: Tensor, masks: Tensor) -> Tensor:
    """One minus the Dice coefficient of each image, mean over the images (INP-Former++, segmentation loss).

    Args:
        probabilities: Predicted masks ``(B, H, W)`` in [0, 1].
        masks: True masks ``(B, H, W)``, 0 or 1.

    Returns:
        The loss, a scalar in [0, 1).
    """
    overlap = (probabilities * masks).sum(dim=(1, 2))
    areas = probabilities.sum(dim=(1, 2)) + masks.sum(dim=(1, 2))
    return (1 - (2 * overlap + SMOOTHING) / (areas + SMOOTHING)).mean()
