# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Image score: how anomalous the most anomalous part of an image is."""

from torch import Tensor

TOP_FRACTION = 0.01


def image_score(anomaly_map: Tensor) -> Tensor:
    """Mean of the highest 1 % of each map ``(B, 1, H, W)``, at least one pixel: ``(B,)`` (reference, ``max_ratio``)."""
    values = anomaly_map.flatten(1)
    highest = max(1, int(values.shape[1] * TOP_FRACTION))
    return values.topk(highest, dim=1, sorted=False).values.mean(dim=1)
