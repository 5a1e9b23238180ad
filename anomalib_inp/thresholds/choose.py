# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Chooses scales on validation images: the best F1 where some are anomalous, quantiles where none is."""

import math
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from anomalib.metrics import F1AdaptiveThreshold, MinMax
from torch import Tensor, nn
from torchmetrics import CatMetric, SumMetric

from anomalib_inp.data.subset import Subset
from anomalib_inp.evaluation.pixels import PixelCounts, bin_of, lower_edge
from anomalib_inp.evaluation.scores import ImageScores
from anomalib_inp.thresholds.scale import Scale

# A map is upsampled from patches and blurred: every fourth pixel in each direction holds what all hold.
PIXEL_STRIDE = 4


KEPT_SCORES = 10_000
"""Of more validation images, as many scores are kept, evenly spread over all."""


class ValidationScores(NamedTuple):
    """Raw scores of validation images, from which an image threshold can be chosen again."""

    normal: list[float]
    anomalous: list[float]


class ValidationScales(nn.Module):
    """Collects validation images, those that this process counts, and chooses scales from them.

    Args:
        subset: The validation images.
        per_category: Whether each category has scales of its own besides the common ones.
        image_quantile: Without anomalous images: this quantile of the scores is the image threshold.
        pixel_quantile: Without anomalous images: this quantile of the pixels is the pixel threshold.
    """

    def __init__(self, subset: Subset, per_category: bool, image_quantile: float, pixel_quantile: float) -> None:
        super().__init__()
        self.subset = subset
        self.common = CommonScales(image_quantile, pixel_quantile)
        count = len(subset.names)
        self.of_each = CategoryScales(count, image_quantile, pixel_quantile) if per_category else None

    def update(self, batch: Any) -> None:
        """Add a batch with raw scores ``(B,)`` and maps ``(B, H, W)``; without labels, all images are normal."""
        belongs, device = self.subset.attach(batch), batch.pred_score.device
        counted = belongs.counted.to(device)
        if len(self.subset) < self.subset.world_size:  # a process without any image would not take part in choosing
            counted = torch.ones_like(counted)
        if not counted.any():
            return
        scores, maps = batch.pred_score[counted], batch.anomaly_map[counted]
        categories, masked = belongs.indices.to(device)[counted], belongs.masked.to(device)[counted]
        labels = torch.zeros_like(categories) if batch.gt_label is None else batch.gt_label[counted]
        masks = None if batch.gt_mask is None else batch.gt_mask[counted]
        for chosen, truth in ((masked, masks), (~masked, None)):
            if self.of_each is not None and chosen.any():
                values = (scores[chosen], labels[chosen], maps[chosen])
                self.of_each.update(*values, None if truth is None else truth[chosen], categories[chosen])
        # What has no masks has been given empty ones, to share a batch with what has some.
        self.common.update(scores, labels, maps, masks, torch.ones_like(masked) if masks is None else masked)

    def of_categories(self) -> dict[str, tuple[Scale, Scale]]:
        """Choose the scales of scores and of pixels of each category that has images."""
        found = [] if self.of_each is None else zip(self.subset.names, self.of_each.compute(), strict=True)
        return {name: scales for name, scales in found if scales is not None}


class CommonScales(nn.Module):
    """Collects what the scales of all images together are chosen from: every score and pixel is kept.

    Args:
        image_quantile: Without anomalous images: this quantile of the scores is the image threshold.
        pixel_quantile: Without anomalous images: this quantile of the pixels is the pixel threshold.
    """

    def __init__(self, image_quantile: float, pixel_quantile: float) -> None:
        super().__init__()
        self.quantiles = (image_quantile, pixel_quantile)
        fields = (["pred_score", "gt_label"], ["anomaly_map", "gt_mask"])
        self.best_f1 = nn.ModuleList(F1AdaptiveThreshold(fields=pair, strict=False) for pair in fields)
        self.ends = nn.ModuleList(MinMax(fields=pair[:1], strict=False) for pair in fields)
        self.normal = nn.ModuleList(CatMetric(nan_strategy="error") for _ in fields)
        self.anomalous_scores = CatMetric(nan_strategy="error")
        self.anomalous = SumMetric()

    def update(self, scores: Tensor, labels: Tensor, maps: Tensor, masks: Tensor | None, compared: Tensor) -> None:
        """Add images.

        Args:
            scores: Raw scores ``(B,)``.
            labels: 0 or 1 ``(B,)``.
            maps: Raw maps ``(B, H, W)``.
            masks: Masks ``(B, H, W)``, if there are any.
            compared: Whether the best F1 is sought on the pixels of an image ``(B,)``.
        """
        batch = SimpleNamespace(pred_score=scores, gt_label=labels)
        if compared.any():
            batch.anomaly_map, batch.gt_mask = maps[compared], None if masks is None else masks[compared]
        for metric in (*self.best_f1, *self.ends):
            metric.update(batch)
        normal = labels == 0
        self.anomalous.update((~normal).sum())
        if not normal.all():
            self.anomalous_scores.update(scores[~normal])
        if normal.any():
            for metric, values in zip(self.normal, (scores, maps[..., ::PIXEL_STRIDE, ::PIXEL_STRIDE]), strict=True):
                metric.update(values[normal])

    def compute(self) -> tuple[Scale, Scale, str] | None:
        """Choose the scales of scores and of pixels, and say how; ``None`` without images."""
        if anomalous := int(self.anomalous.compute()):
            image, pixel = (self._best(*metrics) for metrics in zip(self.best_f1, self.ends, strict=True))
            if not self.best_f1[1].update_called:
                # Images without masks tell nothing of pixels; a score is a mean of pixels, so its threshold fits them.
                pixel = pixel._replace(threshold=image.threshold)
            return image, pixel, f"best F1 over {anomalous} anomalous and the normal validation images"
        if not self.normal[0].update_called:
            return None
        found = [values.compute() for values in self.normal]
        image, pixel = (
            of_normal(quantile(values, share), values.min())
            for values, share in zip(found, self.quantiles, strict=True)
        )
        how = "no anomalous validation images: quantile {} of the normal images' scores, {} of their pixels"
        return image, pixel, how.format(*self.quantiles)

    def scores(self) -> ValidationScores:
        """List the raw scores of all images, normal and anomalous ones."""
        metrics = (self.normal[0], self.anomalous_scores)
        values = (metric.compute() if metric.update_called else torch.empty(0) for metric in metrics)
        return ValidationScores(*(_spread(scores.flatten()) for scores in values))

    @staticmethod
    def _best(best_f1: F1AdaptiveThreshold, ends: MinMax) -> Scale:
        low, high = ends.compute() if ends.update_called else (math.nan, math.nan)
        return Scale(best_f1.compute() if best_f1.update_called else math.nan, low, high)


class CategoryScales(PixelCounts):
    """Collects what the scales of many categories are chosen from.

    Scores are kept, pixels are counted in bins of 0.1 %: every process may see other categories.

    Args:
        num_categories: Number of categories.
        image_quantile: Without anomalous images: this quantile of the scores is the image threshold.
        pixel_quantile: Without anomalous images: this quantile of the pixels is the pixel threshold.
    """

    def __init__(self, num_categories: int, image_quantile: float, pixel_quantile: float) -> None:
        super().__init__(num_categories)
        self.image_quantile = image_quantile
        self.pixel_quantile = pixel_quantile
        self.images = ImageScores()

    def update(self, scores: Tensor, labels: Tensor, maps: Tensor, masks: Tensor | None, categories: Tensor) -> None:
        """Add images.

        Args:
            scores: Raw scores ``(B,)``.
            labels: 0 or 1 ``(B,)``.
            maps: Raw maps ``(B, H, W)``.
            masks: Masks ``(B, H, W)``; without, the pixels of normal images alone are counted.
            categories: Numbers of the categories ``(B,)``.
        """
        self.images.update(scores, labels, categories)
        if masks is None:
            normal = labels == 0
            maps, categories = maps[normal], categories[normal]
            masks = torch.zeros_like(maps)
        self.count(bin_of(maps), masks.bool(), categories)

    def compute(self) -> list[tuple[Scale, Scale] | None]:
        """Choose the scales of scores and of pixels of each category; ``None`` for one without images."""
        scores, labels, categories = self.images.compute()
        scales = []
        for number, (normal, anomalous) in enumerate(zip(self.normal, self.anomalous, strict=True)):
            own = categories == number
            scales.append(self._choose(scores[own], labels[own], normal, anomalous) if own.any() else None)
        return scales

    def _choose(self, scores: Tensor, labels: Tensor, normal: Tensor, anomalous: Tensor) -> tuple[Scale, Scale]:
        used = ((normal > 0) | (anomalous > 0)).nonzero().flatten()
        image = image_scale(scores, labels, self.image_quantile)
        if not labels.any():
            share = normal.cumsum(0) / normal.sum()
            highest = int((share >= self.pixel_quantile).nonzero()[0])
            return image, of_normal(_edge(highest + 1), _edge(used[0]))
        if not anomalous.any():
            # Images without masks tell nothing of pixels; a score is a mean of pixels, so its threshold fits them.
            return image, image._replace(low=min(image.low, _edge(used[0])) if len(used) else image.low)
        true, false = (counts.flip(0).cumsum(0).flip(0).double() for counts in (anomalous, normal))
        f1 = (2 * true / (true + false + true[0]))[used]
        return image, Scale(_edge(used[f1.argmax()]), _edge(used[0]), _edge(used[-1] + 1))


def image_scale(scores: Tensor, labels: Tensor, share: float) -> Scale:
    """Choose the scale of raw scores: the best F1, or without anomalous ones a quantile.

    Args:
        scores: Raw scores ``(B,)``.
        labels: 0 or 1 ``(B,)``.
        share: Without anomalous images: the quantile that is the threshold.
    """
    if not labels.any():
        return of_normal(quantile(scores, share).item(), scores.min().item())
    best_f1 = F1AdaptiveThreshold(fields=("pred_score", "gt_label"))
    best_f1.distributed_available_fn = lambda: False  # it is given the scores of all processes
    best_f1.update(SimpleNamespace(pred_score=scores, gt_label=labels.long()))
    return Scale(best_f1.compute().item(), scores.min().item(), scores.max().item())


def quantile(values: Tensor, share: float) -> Tensor:
    """Smallest of the values that at least this share of them does not exceed.

    torch's own quantile refuses more than 16 million values.
    """
    return values.flatten().kthvalue(max(1, math.ceil(share * values.numel()))).values


def of_normal(threshold: Any, lowest: Any) -> Scale:
    """Scale of normal values, which do not show how high anomalous ones go: as far above the threshold as below."""
    return Scale(threshold, lowest, 2 * threshold - lowest)


def _spread(values: Tensor) -> list[float]:
    values = values.sort().values
    places = torch.linspace(0, len(values) - 1, min(len(values), KEPT_SCORES)).round().long()
    return values[places.to(values.device)].tolist()


def _edge(number: int | Tensor) -> float:
    return lower_edge(torch.as_tensor(number)).item()
