# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0
"""The seven metrics of the paper: image AUROC, AP, F1-max and pixel AUROC, AP, F1-max, AUPRO.

All are exact (a threshold at every distinct value, no bins). They read scores and maps from before normalisation,
because anomalib's normalisation clamps to [0, 1], and clamped values are ties.
"""

import logging
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from anomalib import metrics as anomalib_metrics
from anomalib.metrics import AnomalibMetric, BinaryPrecisionRecallCurve, Evaluator
from lightning.pytorch import LightningModule, Trainer
from rich.table import Table
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import BinaryAUROC, BinaryAveragePrecision
from torchmetrics.utilities.data import dim_zero_cat

logger = logging.getLogger(__name__)

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


class _Checked(AnomalibMetric, Metric):
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
        values, truth = (getattr(batch, field, None) for field in self.fields)
        if values is not None and truth is not None:
            name, truth_name = self.fields
            if values.squeeze().shape != truth.squeeze().shape:
                msg = (
                    f"{name} and {truth_name} must have the same shape, got {tuple(values.shape)} and "
                    f"{tuple(truth.shape)}. Masks of another size: resize them to the maps (nearest neighbour)."
                )
                raise ValueError(msg)
            if values.isnan().any():
                msg = f"{name} must be numbers, got NaN. Half precision may have overflowed: predict in float32."
                raise ValueError(msg)
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
class AUROC(_Checked, BinaryPrecisionRecallCurve, BinaryAUROC):
    """Area under the ROC curve of values of any range."""


class AP(_Checked, BinaryPrecisionRecallCurve, BinaryAveragePrecision):
    """Average precision (a sum of steps, not of trapezoids) of values of any range."""


# Not anomalib's F1Max: it keeps its values in an inner metric, which the evaluator does not move to the CPU, and its
# reset forgets to say that there are none, so that a test without masks after one with masks fails.
class F1Max(_Checked, _BinaryF1Max):
    """Highest F1 over all thresholds, of values of any range."""


class AUPRO(_Checked, anomalib_metrics.AUPRO):
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


class PaperEvaluator(Evaluator):
    """anomalib's evaluator, leaving out the metrics for which the test data had no ground truth."""

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from nothing: Lightning does not reset after a test that was interrupted or ran in barebones mode."""
        del trainer, pl_module
        metrics: list[Any] = list(self.test_metrics)
        for metric in metrics:
            metric.reset()

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log every metric that was updated; anomalib computes the others too, with a warning each."""
        del pl_module
        metrics: list[Any] = list(self.test_metrics)
        missing = [metric.name for metric in metrics if not metric.update_called]
        if missing:
            logger.info("The test data have no ground truth for %s: left out.", ", ".join(missing))
        for metric in metrics:
            if metric.update_called:
                self.log(metric.name, metric)
                # Lightning logs nothing in barebones mode, so anomalib fills these itself.
                if trainer.barebones:
                    trainer.callback_metrics[metric.name] = trainer.logged_metrics[metric.name] = metric.compute()


def paper_evaluator() -> Evaluator:
    """Build the evaluator that tests a model with the seven metrics.

    They are logged under the keys of ``COLUMNS``. Image metrics read ``raw_score`` ``(B,)`` and ``gt_label`` ``(B,)``,
    pixel metrics ``raw_map`` ``(B, H, W)`` or ``(B, 1, H, W)`` and ``gt_mask`` ``(B, H, W)``, all attributes of the
    batch. Without masks the pixel metrics are absent from the results. A metric over one class only (say, only normal
    images) is nan.

    Returns:
        An evaluator for the ``evaluator`` argument of a model; several models need one each.
    """
    return PaperEvaluator(test_metrics=_seven())


def seven_metrics(
    scores: Tensor | np.ndarray,
    labels: Tensor | np.ndarray,
    maps: Tensor | np.ndarray | None = None,
    masks: Tensor | np.ndarray | None = None,
) -> dict[str, float]:
    """Compute the seven metrics outside Lightning, say on the predictions of an exported model.

    Args:
        scores: Anomaly scores ``(N,)`` of any range, one per image.
        labels: Ground truth ``(N,)``, bool or 0 and 1; 1 is anomalous.
        maps: Anomaly maps ``(N, H, W)`` of any range.
        masks: Ground truth ``(N, H, W)``, bool or 0 and 1.

    Returns:
        Values in [0, 1] under the keys of ``COLUMNS``, nan where only one class is present. Without maps or masks, the
        image metrics only.

    Raises:
        ValueError: If shapes do not fit, a ground truth is not binary, or a prediction is NaN.
    """
    batch = SimpleNamespace(raw_score=_cpu(scores), gt_label=_binary("labels", labels), raw_map=None, gt_mask=None)
    _check_shape("scores", batch.raw_score, (None,))
    _check_shape("labels", batch.gt_label, tuple(batch.raw_score.shape))
    if maps is not None and masks is not None:
        batch.raw_map, batch.gt_mask = _cpu(maps), _binary("masks", masks)
        _check_shape("maps", batch.raw_map, (len(batch.raw_score), None, None))
        _check_shape("masks", batch.gt_mask, tuple(batch.raw_map.shape))
    values = {}
    for metric in _seven():
        metric.update(batch)
        if metric.update_called:
            values[metric.name] = metric.compute().item()
    return values


def metrics_table(rows: Mapping[str, Mapping[str, float]]) -> Table:
    """Set metrics out as a table to print.

    Args:
        rows: Per name (a category, a mean), values in [0, 1] under the keys of ``COLUMNS``.

    Returns:
        One row per name, the seven metrics in per cent; ``-`` where one is missing or nan.
    """
    table = Table("category")
    for header in COLUMNS.values():
        table.add_column(header, justify="right")
    for name, values in rows.items():
        cells = (values.get(key, np.nan) for key in COLUMNS)
        table.add_row(name, *("-" if np.isnan(cell) else f"{100 * cell:.2f}" for cell in cells))
    return table


def _seven() -> list[_Checked]:
    image, pixel = ("raw_score", "gt_label"), ("raw_map", "gt_mask")
    return [
        AUROC(image, "image_"),
        AP(image, "image_"),
        F1Max(image, "image_"),
        AUROC(pixel, "pixel_", strict=False),
        AP(pixel, "pixel_", strict=False),
        F1Max(pixel, "pixel_", strict=False),
        AUPRO(pixel, "pixel_", strict=False),
    ]


def _cpu(values: Tensor | np.ndarray) -> Tensor:
    return torch.as_tensor(values).detach().cpu()


def _binary(name: str, values: Tensor | np.ndarray) -> Tensor:
    truth = _cpu(values)
    if not ((truth == 0) | (truth == 1)).all():
        msg = f"{name} must be bool or 0 and 1, got values from {truth.min()} to {truth.max()}. Threshold them first."
        raise ValueError(msg)
    return truth.bool()


def _check_shape(name: str, values: Tensor, expected: tuple[int | None, ...]) -> None:
    shape = tuple(values.shape)
    if len(shape) != len(expected) or any(want not in (None, got) for want, got in zip(expected, shape, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in expected)
        msg = (
            f"{name} must have shape ({wanted}), got {shape}. Pass one value per image, or one map per image, in order."
        )
        raise ValueError(msg)
