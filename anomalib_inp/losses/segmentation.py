# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Segmentation loss of INP-Former++: overlap of the head's mask with the mask of the pseudo-anomalies."""

from torch import Tensor

SMOOTHING = 1.0
"""Pixels added to overlap and areas: a batch without an anomaly asks for empty masks instead of giving 0/0."""


def dice_loss(probabilities: Tensor, masks: Tensor) -> Tensor:
    """One minus the Dice coefficient of a batch, its images taken as one (INP-Former++, segmentation loss).

    Image by image, one wrong pixel in an image without an anomaly would cost as much as a whole missed anomaly, and the
    way out is to find nothing at all. That is our choice (docs/inp_former_plus_plus.md).

    Args:
        probabilities: Predicted masks ``(B, H, W)`` in [0, 1].
        masks: True masks ``(B, H, W)``, 0 or 1.

    Returns:
        The loss, a scalar in [0, 1).
    """
    overlap, areas = (probabilities * masks).sum(), probabilities.sum() + masks.sum()
    return 1 - (2 * overlap + SMOOTHING) / (areas + SMOOTHING)
