# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Readings of a reconstruction as an anomaly map."""

from collections.abc import Callable

import torch
from torch import Tensor

from anomalib_inp.distances import cosine_distance, length, prototype_distance, soft_prototype_distance
from anomalib_inp.outputs import Reconstruction

Reading = Callable[[Reconstruction], Tensor]
"""What a reconstruction says of each place of the image: ``(B, h, w)``, of any resolution.

Where the score of an image is not to be read off its map: both, the map first, ``(2, B, h, w)``.
"""


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


def _mean_over_groups(error: Callable[[Tensor, Tensor], Tensor], reconstruction: Reconstruction) -> Tensor:
    features = reconstruction.features
    pairs = zip(reconstruction.groups, features.groups, strict=True)
    errors = torch.stack([error(rebuilt, target) for rebuilt, target in pairs])  # (groups, B, N)
    return errors.mean(dim=0).unflatten(1, features.grid)
