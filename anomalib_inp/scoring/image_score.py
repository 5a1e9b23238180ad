# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Image score: how anomalous the most anomalous part of an image is."""

from torch import Tensor

from anomalib_inp.maps import TOP_FRACTION, num_highest


def image_score(anomaly_map: Tensor, share: float = TOP_FRACTION) -> Tensor:
    """Mean of the highest pixels of each map: ``(B,)`` (reference, ``max_ratio``).

    Args:
        anomaly_map: The maps ``(B, 1, H, W)``, or those of their pixels that count ``(B, N)``.
        share: Share of the pixels, at least one; from 1 on, their number. Published is 1 %.
    """
    values = anomaly_map.flatten(1)
    return values.topk(num_highest(values.shape[1], share), dim=1, sorted=False).values.mean(dim=1)
