# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The seven metrics as functions of scores, labels, maps and masks."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anomalib_inp.evaluation.metrics import AP, AUPRO, AUROC, CheckedMetric, F1Max


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
    return _computed(batch, "image") | _computed(batch, "pixel")


def pixel_metrics(maps: Tensor, masks: Tensor) -> dict[str, float]:
    """Compute the four pixel metrics of maps ``(N, H, W)`` and masks ``(N, H, W)``."""
    return _computed(SimpleNamespace(raw_map=maps, gt_mask=masks), "pixel")


FIELDS = {"image": ("raw_score", "gt_label"), "pixel": ("raw_map", "gt_mask")}


def _computed(batch: Any, kind: str) -> dict[str, float]:
    """Compute the metrics of a kind, those that the batch has values and ground truth for."""
    metrics: list[CheckedMetric] = [metric(FIELDS[kind], f"{kind}_", strict=False) for metric in (AUROC, AP, F1Max)]
    if kind == "pixel":
        metrics.append(AUPRO(FIELDS[kind], "pixel_", strict=False))
    for metric in metrics:
        metric.update(batch)
    return {metric.name: metric.compute().item() for metric in metrics if metric.update_called}


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
