# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Readings of a reconstruction as an anomaly map, and its way to the published evaluation map."""

from collections.abc import Callable

import torch
from kornia.filters import get_gaussian_kernel2d
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_inp.distances import cosine_distance, length, prototype_distance, soft_prototype_distance
from anomalib_inp.network.residual_head import SegmentationHead
from anomalib_inp.outputs import Reconstruction

Reading = Callable[[Reconstruction], Tensor]
"""What a reconstruction says of each place of the image: ``(B, h, w)``, of any resolution."""


def reconstruction_error(reconstruction: Reconstruction) -> Tensor:
    """Cosine distance of encoder and decoder per patch, mean over groups, ``(B, h, w)`` (paper, figure 2a)."""
    return _mean_over_groups(cosine_distance, reconstruction)


def cosine_and_length_error(reconstruction: Reconstruction) -> Tensor:
    """Mean of cosine distance and length of the difference per patch, ``(B, h, w)`` (INP-Former++, anomaly map).

    The length is relative to the token's own: over hundreds of channels it would drown a cosine distance otherwise, and
    long tokens would drown the others. That is our choice (docs/inp_former_plus_plus.md).
    """

    def error(rebuilt: Tensor, target: Tensor) -> Tensor:
        relative = length(target - rebuilt) / length(target)
        return (cosine_distance(rebuilt, target) + relative) / 2

    return _mean_over_groups(error, reconstruction)


def nearest_prototype_distance(reconstruction: Reconstruction) -> Tensor:
    """Cosine distance of each fused token to its nearest prototype, ``(B, h, w)``: the zero-shot reading."""
    features = reconstruction.features
    return prototype_distance(features.fused, reconstruction.prototypes).unflatten(1, features.grid)


def combined_prototype_distance(reconstruction: Reconstruction) -> Tensor:
    """Cosine distance of each fused token to its soft combination of prototypes, ``(B, h, w)`` (INP-Former++)."""
    features = reconstruction.features
    return soft_prototype_distance(features.fused, reconstruction.prototypes).unflatten(1, features.grid)


INP_FORMER_MAPS: dict[str, list[Reading]] = {
    "reconstruction": [reconstruction_error],
    "prototype_distance": [nearest_prototype_distance],
}
"""Anomaly maps of INP-Former by name; a map is the mean of its readings."""


def plus_plus_maps(head: SegmentationHead | None) -> dict[str, list[Reading]]:
    """Anomaly maps of INP-Former++ by name, with and without a segmentation head."""
    segmented: dict[str, list[Reading]] = {}
    if head is not None:
        segmented = {"fused": [cosine_and_length_error, head], "segmentation": [head]}
    return {
        **segmented,
        "reconstruction": [cosine_and_length_error],
        "prototype_distance": [combined_prototype_distance],
        "nearest_prototype_distance": [nearest_prototype_distance],
    }


def _mean_over_groups(error: Callable[[Tensor, Tensor], Tensor], reconstruction: Reconstruction) -> Tensor:
    features = reconstruction.features
    pairs = zip(reconstruction.groups, features.groups, strict=True)
    errors = torch.stack([error(rebuilt, target) for rebuilt, target in pairs])  # (2, B, N)
    return errors.mean(dim=0).unflatten(1, features.grid)


class Smoothing(nn.Module):
    """From a reading to the map of evaluation (reference, ``cal_anomaly_maps`` and ``evaluation_batch``).

    The published way is bilinear to the size of the input, bilinear to the size of the map, then a Gaussian blur.
    Resizing is linear and treats rows and columns apart, so that both resizings are one matrix for the rows and one for
    the columns, and no image of the input's size is made.

    Args:
        map_size: Height and width of the map in pixels; ``None`` gives the size of the input.
        kernel_size: Side of the Gaussian kernel in pixels; 1 does not blur.
        sigma: Standard deviation of the Gaussian in pixels.
    """

    def __init__(self, map_size: tuple[int, int] | None, kernel_size: int = 5, sigma: float = 4.0) -> None:
        super().__init__()
        self.map_size = map_size
        kernel = get_gaussian_kernel2d((kernel_size, kernel_size), (sigma, sigma)).unsqueeze(0)
        self.register_buffer("kernel", kernel, persistent=False)

    def forward(self, reading: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Smooth a reading into maps.

        Args:
            reading: Values ``(B, h, w)`` per patch, or at any other resolution.
            image_size: Height and width of the input in pixels.

        Returns:
            Maps ``(B, 1, H, W)`` of the map's size.
        """
        axes = zip(reading.shape[1:], image_size, self.map_size or image_size, strict=True)
        rows, columns = (resizing(*sizes, like=reading) for sizes in axes)
        resized = (rows @ reading @ columns.T).unsqueeze(1)  # (B, 1, H, W)
        # zero padding, as the reference's convolution has it: values fall off at the border
        return F.conv2d(resized, self.kernel.to(resized.dtype), padding=self.kernel.shape[-1] // 2)


def resizing(values: int, pixels: int, map_pixels: int, like: Tensor) -> Tensor:
    """Make the matrix ``(map_pixels, values)`` that resizes one axis to the input's pixels and then to the map's."""
    basis = torch.eye(values, dtype=like.dtype, device=like.device).unsqueeze(1)
    upsampled = F.interpolate(basis, size=pixels, mode="linear", align_corners=True)
    return F.interpolate(upsampled, size=map_pixels, mode="linear", align_corners=False).squeeze(1).T
