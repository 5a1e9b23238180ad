# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Reconstruction around an anomaly, where the pixels are normal and the encoder's tokens are not."""

import torch
from torch import Tensor
from torch.nn import functional as F

from anomalib_inp.distances import cosine_distance
from anomalib_inp.outputs import Reconstruction

RING = 2
"""Width of the ring in tokens."""


def ring_loss(reconstruction: Reconstruction, masks: Tensor) -> Tensor:
    """Cosine distance of the reconstruction in a ring around what was changed in an image.

    Attention spreads an anomaly over the tokens around it, whose own pixels are as they were. A reconstruction that
    makes them normal again marks them as anomalous; this loss asks it to leave them as they are.

    Args:
        reconstruction: Of images with pseudo-anomalies; the encoder's groups are the targets.
        masks: What was changed in them ``(B, H, W)``, 0 or 1.

    Returns:
        The mean of ``1 - cos`` over the tokens of the rings and the groups, a scalar in [0, 2]; 0 where there is none.
    """
    grid = reconstruction.features.grid
    changed = F.adaptive_max_pool2d(masks.unsqueeze(1), grid)
    near = F.max_pool2d(changed, 2 * RING + 1, stride=1, padding=RING)
    ring = (near - changed).flatten(1)  # (B, N)
    pairs = zip(reconstruction.groups, reconstruction.features.groups, strict=True)
    distance = torch.stack([cosine_distance(group, target) for group, target in pairs]).mean(dim=0)
    return (distance * ring).sum() / ring.sum().clamp(min=1)
