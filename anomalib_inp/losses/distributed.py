# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Means over the global batch, so that several processes train like one."""

import torch.distributed as dist
from torch import Tensor


def global_mean(values: Tensor) -> Tensor:
    """Mean of a tensor over all processes, each holding the same number of values; no gradient flows through it."""
    mean = values.detach().mean()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(mean)
        mean /= dist.get_world_size()
    return mean
