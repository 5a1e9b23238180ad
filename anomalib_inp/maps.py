# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What makes a map and a score of a reading, in PyTorch as in NumPy; without importing torch."""

KERNEL_SIZE, SIGMA = 5, 4.0
"""Side of the Gaussian that maps are blurred by, and its standard deviation, in pixels of the map; as published."""
TOP_FRACTION = 0.01
"""Share of the highest pixels that an image is scored by, as published."""


def num_highest(num_pixels: int, share: float) -> int:
    """Count the pixels whose mean is the score, the highest ones.

    Args:
        num_pixels: Pixels that count.
        share: Below 1, a share of them; from 1 on, how many.
    """
    return max(1, int(num_pixels * share)) if share < 1 else min(num_pixels, int(share))
