# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What the stages hand to each other.

``B`` images, ``N = h * w`` patch tokens, ``D`` width, ``M`` prototypes.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from anomalib.data import ImageBatch


class PatchFeatures(NamedTuple):
    """What the network needs of the encoder: patch tokens only, class and register tokens are removed.

    Attributes:
        groups: Means of the shallower and of the deeper half of the tapped blocks, each ``(B, N, D)``; the targets of
            the reconstruction.
        grid: Patch rows and columns ``(h, w)``, ``N = h * w``.
    """

    groups: list[Tensor]
    grid: tuple[int, int]

    @property
    def fused(self) -> Tensor:
        """Mean of all tapped blocks ``(B, N, D)``: the groups are halves, so it is the mean of their means."""
        shallow, deep = self.groups
        return (shallow + deep) / 2

    def full_precision(self) -> "PatchFeatures":
        """Cast what is in 16 bits to float32."""
        return self._replace(groups=[_full(group) for group in self.groups])


class Reconstruction(NamedTuple):
    """All that the network knows of a batch; losses and anomaly maps are readings of it.

    Attributes:
        features: The encoder's patch features; ``features.groups`` are the targets.
        prototypes: Intrinsic normal prototypes ``(B, M, D)``, one set per image.
        groups: The decoder's reconstruction of ``features.groups``, each ``(B, N, D)``.
    """

    features: PatchFeatures
    prototypes: Tensor
    groups: list[Tensor]

    def full_precision(self) -> "Reconstruction":
        """Cast what mixed precision left in 16 bits to float32: distances of nearly equal vectors need it."""
        groups = [_full(group) for group in self.groups]
        return Reconstruction(self.features.full_precision(), _full(self.prototypes), groups)


class PseudoBatch(NamedTuple):
    """What INP-Former++ trains on: the reconstruction sees normal images alone, the head pseudo-anomalous ones.

    Attributes:
        normal: Normal images, or what a cache holds of them.
        pseudo: The same images, some of them made anomalous, with the masks of what was changed.
    """

    normal: "ImageBatch | PatchFeatures"
    pseudo: "ImageBatch"


def _full(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in {torch.float16, torch.bfloat16} else tensor
