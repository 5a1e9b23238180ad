# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What the stages hand to each other.

``B`` images, ``N = h * w`` patch tokens, ``D`` width, ``M`` prototypes.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from anomalib.data import ImageBatch


class PatchFeatures(NamedTuple):
    """What the network needs of the encoder: patch tokens only, class and register tokens are removed.

    Attributes:
        groups: Means of groups of tapped blocks, as many in each, from shallow to deep, each ``(B, N, D)``; the targets
            of a reconstruction.
        grid: Patch rows and columns ``(h, w)``, ``N = h * w``.
        further: Tokens after further, shallower blocks ``(B, N, D)``, for readings that ask for them.
    """

    groups: list[Tensor]
    grid: tuple[int, int]
    further: Sequence[Tensor] = ()

    @property
    def depths(self) -> list[Tensor]:
        """All that the encoder delivers, from shallow to deep: further blocks and groups, each ``(B, N, D)``."""
        return [*self.further, *self.groups]

    @property
    def fused(self) -> Tensor:
        """Mean of all tapped blocks ``(B, N, D)``: the groups are of equal size, so it is the mean of their means."""
        return reduce(torch.add, self.groups) / len(self.groups)

    @property
    def batch_size(self) -> int:
        """Count the images, as a batch of them does."""
        return len(self.groups[0])

    def full_precision(self) -> "PatchFeatures":
        """Cast what is in 16 bits to float32."""
        further = [_full(tokens) for tokens in self.further]
        return self._replace(groups=[_full(group) for group in self.groups], further=further)


class Reconstruction(NamedTuple):
    """All that the network knows of a batch; losses and anomaly maps are readings of it.

    Attributes:
        features: The encoder's patch features; ``features.groups`` are the targets.
        prototypes: Intrinsic normal prototypes ``(B, M, D)``, one set per image; ``None`` where a network has none.
        groups: The decoder's reconstruction of ``features.groups``, each ``(B, N, D)``; none without a decoder.
    """

    features: PatchFeatures
    prototypes: Tensor | None = None
    groups: Sequence[Tensor] = ()

    def full_precision(self) -> "Reconstruction":
        """Cast what mixed precision left in 16 bits to float32: distances of nearly equal vectors need it."""
        prototypes = None if self.prototypes is None else _full(self.prototypes)
        return Reconstruction(self.features.full_precision(), prototypes, [_full(group) for group in self.groups])

    def detach(self) -> "Reconstruction":
        """Cut it off from the network, so that what reads it teaches the network nothing."""
        prototypes = None if self.prototypes is None else self.prototypes.detach()
        return Reconstruction(self.features, prototypes, [group.detach() for group in self.groups])


class TrainingBatch(NamedTuple):
    """What a training step is given: the reconstruction sees normal images alone, a head pseudo-anomalous ones.

    Attributes:
        source: Normal images, or what a cache holds of them.
        pseudo: The same images, some of them made anomalous, with the masks of what was changed; ``None`` for none.
    """

    source: "ImageBatch | PatchFeatures"
    pseudo: "ImageBatch | None" = None

    @classmethod
    def of(cls, batch: "TrainingBatch | ImageBatch") -> "TrainingBatch":
        """Take what a data loader gives; one that is not ours, or has nothing to add, gives plain images."""
        return batch if isinstance(batch, TrainingBatch) else cls(batch)

    @property
    def inputs(self) -> Tensor | PatchFeatures:
        """What the network reconstructs: images ``(B, 3, H, W)``, or what a cache holds of them."""
        if isinstance(self.source, PatchFeatures):
            return self.source
        return self.source.image.as_subclass(Tensor)  # torch.compile 2.11 never comes to an end with torchvision's

    @property
    def images(self) -> "list[ImageBatch]":
        """What is transformed before a step; cached features were transformed before they were encoded."""
        return [part for part in self if part is not None and not isinstance(part, PatchFeatures)]


def full_precision(images: Tensor) -> AbstractContextManager[object]:
    """Leave mixed precision, where it is on, for losses, maps and scores."""
    kind = images.device.type
    # Only then: an exporter would take even a context that changes nothing for a part of the graph.
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _full(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in {torch.float16, torch.bfloat16} else tensor
