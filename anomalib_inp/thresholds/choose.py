# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Thresholds and ranges of each category, chosen by the rules of the post-processor."""

import math
from types import SimpleNamespace
from typing import NamedTuple

import torch
from anomalib.metrics import F1AdaptiveThreshold
from torch import Tensor

from anomalib_inp.evaluation.pixels import PixelCounts, bin_of, lower_edge
from anomalib_inp.evaluation.scores import ImageScores


class Range(NamedTuple):
    """Threshold of raw values, and the lowest and highest value that the validation images have."""

    threshold: float
    low: float
    high: float

    @property
    def span(self) -> float:
        """Raw values that a margin of 1 stands for; the validation values lie within 2 of them."""
        reach = max(self.high - self.threshold, self.threshold - self.low) / 2
        return reach if reach > 0 else 1.0


class CategoryRanges(PixelCounts):
    """Collects what thresholds of many categories are chosen from.

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

    def compute(self) -> list[tuple[Range, Range] | None]:
        """Choose the ranges of scores and of pixels of each category; ``None`` for one without images."""
        scores, labels, categories = self.images.compute()
        ranges = []
        for number, (normal, anomalous) in enumerate(zip(self.normal, self.anomalous, strict=True)):
            own = categories == number
            ranges.append(self._choose(scores[own], labels[own], normal, anomalous) if own.any() else None)
        return ranges

    def reset(self) -> None:
        """Forget all images."""
        super().reset()
        self.images.reset()

    def _choose(self, scores: Tensor, labels: Tensor, normal: Tensor, anomalous: Tensor) -> tuple[Range, Range]:
        used = ((normal > 0) | (anomalous > 0)).nonzero().flatten()
        if not labels.any():
            image = _of_normal(quantile(scores, self.image_quantile).item(), scores.min().item())
            share = normal.cumsum(0) / normal.sum()
            highest = int((share >= self.pixel_quantile).nonzero()[0])
            return image, _of_normal(_edge(highest + 1), _edge(used[0]))
        best_f1 = F1AdaptiveThreshold(fields=("pred_score", "gt_label"))
        best_f1.update(SimpleNamespace(pred_score=scores, gt_label=labels.long()))
        image = Range(best_f1.compute().item(), scores.min().item(), scores.max().item())
        if not anomalous.any():
            # Images without masks tell nothing of pixels; a score is a mean of pixels, so its threshold fits them.
            return image, image._replace(low=min(image.low, _edge(used[0])) if len(used) else image.low)
        true, false = (counts.flip(0).cumsum(0).flip(0).double() for counts in (anomalous, normal))
        f1 = (2 * true / (true + false + true[0]))[used]
        return image, Range(_edge(used[f1.argmax()]), _edge(used[0]), _edge(used[-1] + 1))


def quantile(values: Tensor, share: float) -> Tensor:
    """Smallest of the values that at least this share of them does not exceed.

    torch's own quantile refuses more than 16 million values.
    """
    return values.flatten().kthvalue(max(1, math.ceil(share * values.numel()))).values


def _of_normal(threshold: float, lowest: float) -> Range:
    """Range of normal values, which do not show how high anomalous ones go: as far above the threshold as below."""
    return Range(threshold, lowest, 2 * threshold - lowest)


def _edge(number: int | Tensor) -> float:
    return lower_edge(torch.as_tensor(number)).item()
