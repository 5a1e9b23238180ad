# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The seven metrics of the paper: image AUROC, AP, F1-max and pixel AUROC, AP, F1-max, AUPRO.

All are exact (a threshold at every distinct value, no bins). They read scores and maps from before normalisation,
because anomalib's normalisation clamps to [0, 1], and clamped values are ties.
"""

from collections.abc import Sequence
from typing import Any

import torch
from anomalib import metrics as anomalib_metrics
from anomalib.metrics import AnomalibMetric, BinaryPrecisionRecallCurve
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import BinaryAUROC, BinaryAveragePrecision
from torchmetrics.utilities.data import dim_zero_cat

COLUMNS = {
    "image_AUROC": "I-AUROC",
    "image_AP": "I-AP",
    "image_F1Max": "I-F1max",
    "pixel_AUROC": "P-AUROC",
    "pixel_AP": "P-AP",
    "pixel_F1Max": "P-F1max",
    "pixel_AUPRO": "AUPRO",
}
"""Logged name of each metric and its short header in a table, in the order of the paper."""


class CheckedMetric(AnomalibMetric, Metric):
    """What the four metrics share: refuse unusable input, and give nan where there is nothing to tell apart."""

    target: list[Tensor]

    def update(self, batch: Any) -> None:
        """Add one batch.

        Args:
            batch: Anything with the two attributes named by ``fields``; a missing one is the business of anomalib's
                ``strict``.

        Raises:
            ValueError: If values and ground truth differ in shape, or a value is NaN.
        """
        check_values(batch, *self.fields)
        super().update(batch)

    def compute(self) -> Tensor:
        """Compute the metric.

        Returns:
            A scalar in [0, 1]; nan if the ground truth is all normal or all anomalous; None before the first update if
            not strict.
        """
        if self.update_called:
            target = dim_zero_cat(self.target)
            if target.all() or not target.any():
                return torch.tensor(torch.nan, device=target.device)
        return super().compute()


class _BinaryF1Max(BinaryPrecisionRecallCurve):
    """Highest F1 over all thresholds, as a torchmetrics metric."""

    def compute(self) -> Tensor:
        """Compute ``max 2PR / (P + R)``."""
        precision, recall, _ = super().compute()
        # Nothing found at all is 0 / 0: no F1 there.
        return (2 * precision * recall / (precision + recall)).nan_to_num(nan=0.0).max()


# anomalib's BinaryPrecisionRecallCurve stands in the first two for its update only. torchmetrics' own, which anomalib's
# AUROC and AUPR use, takes a batch with a value outside [0, 1] for logits and applies a sigmoid to that batch alone.
class AUROC(CheckedMetric, BinaryPrecisionRecallCurve, BinaryAUROC):
    """Area under the ROC curve of values of any range."""


class AP(CheckedMetric, BinaryPrecisionRecallCurve, BinaryAveragePrecision):
    """Average precision (a sum of steps, not of trapezoids) of values of any range."""


# Not anomalib's F1Max: it keeps its values in an inner metric, which the evaluator does not move to the CPU, and its
# reset forgets to say that there are none, so that a test without masks after one with masks fails.
class F1Max(CheckedMetric, _BinaryF1Max):
    """Highest F1 over all thresholds, of values of any range."""


class AUPRO(CheckedMetric, anomalib_metrics.AUPRO):
    """Area under the per-region-overlap curve up to a false-positive rate, divided by that rate.

    Regions are the 8-connected components of each mask; every region counts the same.

    Args:
        fields: Names of the batch attributes of maps ``(B, H, W)`` or ``(B, 1, H, W)`` and masks ``(B, H, W)``.
        prefix: Goes before the name.
        strict: Raise if a batch lacks one of the fields.
        fpr_limit: False-positive rate, over all pixels outside the masks, where the integration ends.
    """

    def __init__(
        self, fields: Sequence[str] | None = None, prefix: str = "", strict: bool = True, fpr_limit: float = 0.3
    ) -> None:
        super().__init__(fields=fields, prefix=prefix, strict=strict, fpr_limit=fpr_limit)
        # anomalib makes the limit a buffer of the state dict: a checkpoint would only load beside this very metric.
        self.register_buffer("fpr_limit", torch.tensor(fpr_limit), persistent=False)


def check_values(batch: Any, name: str, truth_name: str) -> None:
    """Refuse values that no metric can be computed of.

    Args:
        batch: Anything with attributes of these names; where one is missing, there is nothing to refuse.
        name: Attribute of the values.
        truth_name: Attribute of the ground truth.

    Raises:
        ValueError: Values and ground truth differ in shape, or a value is NaN.
    """
    values, truth = (getattr(batch, field, None) for field in (name, truth_name))
    if values is None or truth is None:
        return
    if values.squeeze().shape != truth.squeeze().shape:
        msg = (
            f"{name} and {truth_name} must have the same shape, got {tuple(values.shape)} and {tuple(truth.shape)}. "
            "Masks of another size: resize them to the maps (nearest neighbour)."
        )
        raise ValueError(msg)
    if values.isnan().any():
        msg = f"{name} must be numbers, got NaN. Half precision may have overflowed: predict in float32."
        raise ValueError(msg)
