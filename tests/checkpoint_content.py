# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What a checkpoint holds, and what a model says of images."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anomalib_inp import InpFormer


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


def outputs(model: InpFormer, images: Tensor) -> list[Tensor]:
    """Everything that the network says of normalised images, and what is read off it."""
    model.eval()
    with torch.no_grad():
        reconstruction = model.model.network(images)
        result = model.model(images)
    features = reconstruction.features.groups
    return [*features, reconstruction.prototypes, *reconstruction.groups, result.pred_score, result.anomaly_map]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)
