# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What makes a map and a score of a reading, in PyTorch as in NumPy; without importing torch."""

KERNEL_SIZE, SIGMA = 5, 4.0
"""Side of the Gaussian that maps are blurred by, and its standard deviation, in pixels of the map; as published."""


def num_highest(num_pixels: int, share: float) -> int:
    """Count the pixels that a share of them is, at least one: the mean of so many highest ones is the score."""
    return max(1, int(num_pixels * share))
