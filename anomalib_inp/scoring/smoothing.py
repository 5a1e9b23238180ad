# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""From a reading to the published evaluation map."""

import torch
from kornia.filters import get_gaussian_kernel2d
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_inp.maps import KERNEL_SIZE, SIGMA

ROWS = 512
"""Rows of a map that are blurred at a time: PyTorch takes a multiple of the memory of what it convolves."""


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

    def __init__(self, map_size: tuple[int, int] | None, kernel_size: int = KERNEL_SIZE, sigma: float = SIGMA) -> None:
        super().__init__()
        self.map_size = map_size
        self.padding = kernel_size // 2  # no size of a tensor, which PyTorch 2.8 would trace
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
        rows, columns = (resize_matrix(*sizes, like=reading) for sizes in axes)
        resized = (rows @ reading @ columns.T).unsqueeze(1)  # (B, 1, H, W)
        return self.blur(resized)

    def blur(self, maps: Tensor) -> Tensor:
        """Blur maps ``(B, 1, H, W)``."""
        kernel, rows = self.kernel.to(maps.dtype), int(maps.shape[-2])
        # zero padding, as the reference's convolution has it: values fall off at the border
        if rows <= ROWS:
            return F.conv2d(maps, kernel, padding=self.padding)
        padded = F.pad(maps, [self.padding] * 4)
        strips = [
            F.conv2d(padded[..., first : min(first + ROWS, rows) + 2 * self.padding, :], kernel)
            for first in range(0, rows, ROWS)
        ]
        return torch.cat(strips, dim=-2)


def resize_matrix(values: int, pixels: int, map_pixels: int, like: Tensor) -> Tensor:
    """Make the matrix ``(map_pixels, values)`` that resizes one axis to the input's pixels and then to the map's."""
    basis = torch.eye(values, dtype=like.dtype, device=like.device).unsqueeze(1)
    upsampled = F.interpolate(basis, size=pixels, mode="linear", align_corners=True)
    return F.interpolate(upsampled, size=map_pixels, mode="linear", align_corners=False).squeeze(1).T
