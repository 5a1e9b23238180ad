# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Image score: how anomalous the most anomalous part of an image is."""

from torch import Tensor

TOP_FRACTION = 0.01


def image_score(anomaly_map: Tensor, share: float = TOP_FRACTION) -> Tensor:
    """Mean of the highest pixels of each map ``(B, 1, H, W)``: ``(B,)`` (reference, ``max_ratio``).

    Args:
        anomaly_map: The maps.
        share: Share of the pixels, at least one; published is 1 %.
    """
    values = anomaly_map.flatten(1)
    highest = max(1, int(values.shape[1] * share))
    return values.topk(highest, dim=1, sorted=False).values.mean(dim=1)
