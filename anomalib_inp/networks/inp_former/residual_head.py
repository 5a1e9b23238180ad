# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Segmentation head of INP-Former++: from what was not reconstructed to a mask."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_inp.distances import cosine_distance
from anomalib_inp.outputs import Reconstruction


def residual(reconstruction: Reconstruction) -> Tensor:
    """What the reconstruction leaves over, ``(B, D, h, w)``, mean over groups (INP-Former++, residual learning).

    The channel-wise absolute difference, scaled by the cosine distance of its position. It is detached: what is
    learnt from it never reaches the reconstruction model.
    """
    pairs = zip(reconstruction.groups, reconstruction.features.groups, strict=True)
    residuals = [
        cosine_distance(rebuilt, target).unsqueeze(-1) * (target - rebuilt).abs()
        for rebuilt, target in ((rebuilt.detach(), target.detach()) for rebuilt, target in pairs)
    ]
    mean = torch.stack(residuals).mean(dim=0)  # (B, N, D)
    return mean.transpose(1, 2).unflatten(2, reconstruction.features.grid)


class SegmentationHead(nn.Module):
    """Two transposed convolutions and a convolution on the residual (INP-Former++, residual learning).

    Channels, kernels and strides were never published; these are ours.

    Args:
        dim: Width ``D`` of the residual.
        patch_size: Side of a patch in pixels.
        channels: Channels after the first and the second transposed convolution.
    """

    def __init__(self, dim: int, patch_size: int, channels: tuple[int, int] = (256, 64)) -> None:
        super().__init__()
        self.patch_size = patch_size
        first, second = channels
        self.layers = nn.Sequential(
            nn.ConvTranspose2d(dim, first, kernel_size=4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(first, second, kernel_size=4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(second, 1, kernel_size=3, padding=1),
        )

    def forward(self, reconstruction: Reconstruction) -> Tensor:
        """Segment anomalies: probabilities ``(B, H, W)`` at the size of the input."""
        rows, columns = reconstruction.features.grid
        logits = self.layers(residual(reconstruction))  # (B, 1, 4 h, 4 w)
        size = (rows * self.patch_size, columns * self.patch_size)
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False).squeeze(1).sigmoid()
