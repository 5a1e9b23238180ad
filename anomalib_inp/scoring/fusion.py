# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What a memory finds, and what a decoder or a head that looks at the groups of blocks says of it."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_inp.outputs import Reconstruction
from anomalib_inp.scoring.memory import NormalMemory
from anomalib_inp.scoring.readings import Reading

POWER = 1 / 3
"""Exponent of what a head or an error says: it is heard, and never drowns what is found."""
UNSEEN = 0.2
"""What counts of a distance where a head sees nothing."""
ELSEWHERE = 0.5
"""What counts of a distance that single blocks find, of which a decoder and a head do not know where it is."""
PEAK = 0.003
"""Share of the highest pixels that an image is scored by where a memory is read: what it finds is sharper than an error
of reconstruction (docs/memory.md)."""
SHARES = {"fused": PEAK, "memory": PEAK}
"""These shares by map, of models that remember."""


def with_head(memory: NormalMemory, head: nn.Module) -> Reading:
    """Read a memory, weighted by what a head that gives probabilities at the size of the input sees in each pixel."""
    # It can be pickled, as a function in a function cannot.
    return partial(_fused, memory, partial(_seen, head), head.patch_size)


def with_error(memory: NormalMemory, error: Reading) -> Reading:
    """Read a memory, weighted by the error of the reconstruction at each patch."""
    return partial(_fused, memory, partial(_missed, error), 1)


def _seen(head: nn.Module, reconstruction: Reconstruction) -> Tensor:
    return UNSEEN + head(reconstruction).pow(POWER)


def _missed(error: Reading, reconstruction: Reconstruction) -> Tensor:
    return error(reconstruction).clamp(min=0).pow(POWER)


def _fused(memory: NormalMemory, evidence: Reading, scale: int, reconstruction: Reconstruction) -> Tensor:
    """Weigh what is found by evidence: the map, and what images are scored by ``(2, B, H, W)``.

    The evidence, of ``scale`` pixels to a patch, knows the groups of blocks alone. It tells where what they find is to
    be believed; of what single blocks find, such as threads of a fabric, it tells whether there is anything, not where.
    """
    grid = reconstruction.features.grid
    found = torch.stack(memory.found(reconstruction.features)).unflatten(2, grid)  # (2, B, h, w)
    if scale > 1:
        size = [side * scale for side in grid]
        found = F.interpolate(found, size=size, mode="bilinear", align_corners=True)  # as in Smoothing
    (singles, groups), weight = found, evidence(reconstruction)
    return torch.stack([ELSEWHERE * singles + weight * groups, weight * (singles + groups)])
