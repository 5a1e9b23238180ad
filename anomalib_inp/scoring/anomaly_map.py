# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Readings of a reconstruction as an anomaly map, and its way to the published evaluation map."""

from collections.abc import Callable

import torch
from kornia.filters import get_gaussian_kernel2d
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_inp.distances import cosine_distance, prototype_distance
from anomalib_inp.outputs import Reconstruction


def reconstruction_error(reconstruction: Reconstruction) -> Tensor:
    """Cosine distance of encoder and decoder per patch, mean over groups, ``(B, N)`` (paper, figure 2a)."""
    pairs = zip(reconstruction.groups, reconstruction.features.groups, strict=True)
    return torch.stack([cosine_distance(rebuilt, target) for rebuilt, target in pairs]).mean(dim=0)


def nearest_prototype_distance(reconstruction: Reconstruction) -> Tensor:
    """Cosine distance of each fused token to its nearest prototype, ``(B, N)``: the zero-shot reading."""
    return prototype_distance(reconstruction.features.fused, reconstruction.prototypes)


READINGS: dict[str, Callable[[Reconstruction], Tensor]] = {
    "reconstruction": reconstruction_error,
    "prototype_distance": nearest_prototype_distance,
}


def upsample(distances: Tensor, grid: tuple[int, int], image_size: tuple[int, int]) -> Tensor:
    """Bring distances per patch ``(B, h * w)`` to the pixels of the input, ``(B, 1, H, W)``."""
    patches = distances.unflatten(1, grid).unsqueeze(1)
    return F.interpolate(patches, size=image_size, mode="bilinear", align_corners=True)


class Smoothing(nn.Module):
    """Resizes a map to the size of evaluation and blurs it (reference, ``evaluation_batch``).

    Args:
        map_size: Height and width of the result in pixels; ``None`` keeps the input's.
        kernel_size: Side of the Gaussian kernel in pixels.
        sigma: Standard deviation of the Gaussian in pixels.
    """

    def __init__(self, map_size: tuple[int, int] | None, kernel_size: int = 5, sigma: float = 4.0) -> None:
        super().__init__()
        self.map_size = map_size
        kernel = get_gaussian_kernel2d((kernel_size, kernel_size), (sigma, sigma)).unsqueeze(0)
        self.register_buffer("kernel", kernel, persistent=False)

    def forward(self, anomaly_map: Tensor) -> Tensor:
        """Smooth maps ``(B, 1, H, W)``."""
        if self.map_size is not None:
            anomaly_map = F.interpolate(anomaly_map, size=self.map_size, mode="bilinear", align_corners=False)
        # zero padding, as the reference's convolution has it: values fall off at the border
        return F.conv2d(anomaly_map, self.kernel.to(anomaly_map.dtype), padding=self.kernel.shape[-1] // 2)
