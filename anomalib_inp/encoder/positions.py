# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Position tables of Vision Transformers, resized to the grid of the input."""

import math

from torch import Tensor
from torch.nn import functional as F


def resize_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize a square position table ``(1, n * n, D)`` to a patch grid, ``(1, h * w, D)``.

    Bicubic in float32 without antialiasing, given as a scale factor of ``(grid + 0.1) / n`` rather than as a size, as
    DINOv2's and so the reference's code does; resampling to the exact size gives clearly different tokens.
    """
    side = math.isqrt(int(table.shape[1]))
    if grid == (side, side):
        return table
    image = table.float().unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (1, D, n, n)
    scale = ((grid[0] + 0.1) / side, (grid[1] + 0.1) / side)
    image = F.interpolate(image, scale_factor=scale, mode="bicubic", antialias=False)
    return image.flatten(2).transpose(1, 2).to(table.dtype)
