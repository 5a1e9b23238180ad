# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The seven metrics as functions of scores, labels, maps and masks, and of counts of pixels."""

from collections.abc import Callable
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


def of_each(count: int, categories: Tensor, metrics: Callable[[Tensor], dict[str, float]]) -> list[dict[str, float]]:
    """Compute metrics of what belongs to each category; one that nothing belongs to has none.

    Args:
        count: Number of categories.
        categories: Number of the category of each image ``(N,)``.
        metrics: Metrics of the images that are true in a mask ``(N,)``.
    """
    return [metrics(chosen) if chosen.any() else {} for chosen in (categories == number for number in range(count))]


def metrics_of_counts(normal: Tensor, anomalous: Tensor, overlap: Tensor, limit: float = 0.3) -> dict[str, float]:
    """Compute the four pixel metrics from counts in bins; values of one bin are ties.

    Args:
        normal: Normal pixels per bin ``(bins,)``, from the lowest value to the highest.
        anomalous: Anomalous pixels per bin.
        overlap: Mean over the regions of their share in each bin; sums to 1.
        limit: False-positive rate where AUPRO's integration ends.

    Returns:
        AUROC, AP, F1-max and AUPRO in [0, 1]; nan where there are no normal or no anomalous pixels.
    """
    names = ("pixel_AUROC", "pixel_AP", "pixel_F1Max", "pixel_AUPRO")
    if not normal.any() or not anomalous.any():
        return dict.fromkeys(names, float("nan"))
    used = ((normal > 0) | (anomalous > 0)).nonzero().flatten().flip(0)
    false, true, covered = (counts[used].double().cumsum(0) for counts in (normal, anomalous, overlap))
    start = false.new_zeros(1)
    fpr, tpr, pro = (torch.cat([start, curve]) for curve in (false / false[-1], true / true[-1], covered))
    precision = true / (true + false)
    f1 = 2 * true / (true + false + true[-1])
    # The curve up to the limit; its last piece is cut there.
    end = int((fpr < limit).sum())
    share = (limit - fpr[end - 1]) / (fpr[end] - fpr[end - 1])
    at_limit = pro[end - 1] + share * (pro[end] - pro[end - 1])
    area = torch.trapezoid(torch.cat([pro[:end], at_limit.view(1)]), torch.cat([fpr[:end], start + limit]))
    values = (torch.trapezoid(tpr, fpr), (precision * tpr.diff()).sum(), f1.max(), area / limit)
    return {name: value.item() for name, value in zip(names, values, strict=True)}


FIELDS = {"image": ("raw_score", "gt_label"), "pixel": ("raw_map", "gt_mask")}


def _computed(batch: Any, kind: str) -> dict[str, float]:
    """Compute the metrics of a kind, those that the batch has values and ground truth for."""
    metrics: list[CheckedMetric] = [metric(FIELDS[kind], f"{kind}_", strict=False) for metric in (AUROC, AP, F1Max)]
    if kind == "pixel":
        metrics.append(AUPRO(FIELDS[kind], "pixel_", strict=False))
    for metric in metrics:
        metric.distributed_available_fn = lambda: False  # they are given all that there is, whatever process it is from
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
