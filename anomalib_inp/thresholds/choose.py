# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Chooses scales on validation images: the best F1 where some are anomalous, quantiles where none is."""

import math
from types import SimpleNamespace
from typing import Any

import torch
from anomalib.metrics import F1AdaptiveThreshold, MinMax
from torch import Tensor, nn
from torchmetrics import CatMetric

from anomalib_inp.data.subset import Subset
from anomalib_inp.evaluation.pixels import PixelCounts, lower_edge
from anomalib_inp.evaluation.scores import ImageScores
from anomalib_inp.thresholds.scale import Scale, ValidationScores, step_beside

# A map is upsampled from patches and blurred: every fourth pixel in each direction holds what all hold.
PIXEL_STRIDE = 4


LEAST_REACH = 0.04
"""How far the ends of a scale lie from its threshold at least: where all validation images score alike, everything
else would be 0 or 1, and raw scores could not be had back."""
KEPT_SCORES = 10_000
"""Of more validation images, as many scores are kept, evenly spread over all."""


class ValidationScales(nn.Module):
    """Collects validation images, those that this process counts, and chooses scales from them.

    Args:
        subset: The validation images.
        per_category: Whether each category has scales of its own besides the common ones.
        image_quantile: Without anomalous images: this quantile of the scores is the image threshold.
        pixel_quantile: Without anomalous images: this quantile of the pixels is the pixel threshold.
        binned: Whether pixels are counted in bins for the common scales too, so that memory does not grow with maps.
    """

    def __init__(
        self, subset: Subset, per_category: bool, image_quantile: float, pixel_quantile: float, binned: bool = False
    ) -> None:
        super().__init__()
        self.subset = subset
        self.common = (BinnedScales if binned else CommonScales)(image_quantile, pixel_quantile)
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
        if (places := getattr(batch, "inspected", None)) is not None:  # (h, w): of the others nothing is learnt
            maps = maps[..., places].unsqueeze(-2)
            masks = None if masks is None else masks[..., places].unsqueeze(-2)
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

    def scores_of_categories(self) -> dict[str, ValidationScores]:
        """List the raw scores of each category that has scales."""
        if self.of_each is None:
            return {}
        found = zip(self.subset.names, self.of_each.scores(), strict=True)
        return {name: scores for name, scores in found if scores.normal or scores.anomalous}


class CommonScales(nn.Module):
    """Collects what the scales of all images together are chosen from: every score and pixel is kept.

    Args:
        image_quantile: Without anomalous images: this quantile of the scores is the image threshold.
        pixel_quantile: Without anomalous images: this quantile of the pixels is the pixel threshold.
    """

    def __init__(self, image_quantile: float, pixel_quantile: float) -> None:
        super().__init__()
        self.quantiles = (image_quantile, pixel_quantile)
        fields = ["anomaly_map", "gt_mask"]
        self.best_f1 = F1AdaptiveThreshold(fields=fields, strict=False)
        self.ends = MinMax(fields=fields[:1], strict=False)
        self.images = ImageScores()
        self.normal_pixels = CatMetric(nan_strategy="error")

    def update(self, scores: Tensor, labels: Tensor, maps: Tensor, masks: Tensor | None, compared: Tensor) -> None:
        """Add images.

        Args:
            scores: Raw scores ``(B,)``.
            labels: 0 or 1 ``(B,)``.
            maps: Raw maps ``(B, H, W)``.
            masks: Masks ``(B, H, W)``, if there are any.
            compared: Whether the best F1 is sought on the pixels of an image ``(B,)``.
        """
        if compared.any():
            batch = SimpleNamespace(anomaly_map=maps[compared], gt_mask=None if masks is None else masks[compared])
            self.best_f1.update(batch)
            self.ends.update(batch)
        self.images.update(scores, labels, torch.zeros_like(labels))
        if (normal := labels == 0).any():
            self.normal_pixels.update(maps[..., ::PIXEL_STRIDE, ::PIXEL_STRIDE][normal])

    def compute(self) -> tuple[Scale, Scale, str] | None:
        """Choose the scales of scores and of pixels, and say how; ``None`` without images."""
        scores, labels = self._labelled()
        if not len(scores):
            return None
        image = image_scale(scores, labels, self.quantiles[0])
        if anomalous := int(labels.sum()):
            low, high = self.ends.compute() if self.ends.update_called else (math.nan, math.nan)
            # Images without masks tell nothing of pixels; a score is a mean of pixels, so its threshold fits them.
            best = self.best_f1.compute() if self.best_f1.update_called else image.threshold
            return image, of_ends(best, low, high), _how(anomalous, *self.quantiles)
        pixels = self.normal_pixels.compute()
        pixel = of_normal(quantile(pixels, self.quantiles[1]), pixels.min())
        return image, pixel, _how(0, *self.quantiles)

    def scores(self) -> ValidationScores:
        """List the raw scores of all images, normal and anomalous ones."""
        return _kept(*self._labelled())

    def _labelled(self) -> tuple[Tensor, Tensor]:
        """Scores and labels of all images, each ``(N,)``; torchmetrics makes numbers of what is one."""
        scores, labels, _ = map(torch.atleast_1d, self.images.compute())
        return scores, labels


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
        self.count(maps, masks.bool(), categories)

    def compute(self) -> list[tuple[Scale, Scale] | None]:
        """Choose the scales of scores and of pixels of each category; ``None`` for one without images."""
        scores, labels, categories = map(torch.atleast_1d, self.images.compute())
        scales = []
        for number, (normal, anomalous) in enumerate(zip(self.normal, self.anomalous, strict=True)):
            own = categories == number
            scales.append(self._choose(scores[own], labels[own], normal, anomalous) if own.any() else None)
        return scales

    def scores(self) -> list[ValidationScores]:
        """List the raw scores of the images of each category, normal and anomalous ones."""
        scores, labels, categories = map(torch.atleast_1d, self.images.compute())
        return [_kept(scores[own], labels[own]) for own in (categories == number for number in range(len(self.normal)))]

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
        return image, of_ends(_edge(used[f1.argmax()]), _edge(used[0]), _edge(used[-1] + 1))


class BinnedScales(CategoryScales):
    """Collects what the scales of all images together are chosen from, as :class:`CommonScales`, but pixels in bins."""

    def __init__(self, image_quantile: float, pixel_quantile: float) -> None:
        super().__init__(1, image_quantile, pixel_quantile)

    def update(self, scores: Tensor, labels: Tensor, maps: Tensor, masks: Tensor | None, compared: Tensor) -> None:
        """Add images; arguments as of :meth:`CommonScales.update`."""
        for chosen, truth in ((compared, masks), (~compared, None)):
            if chosen.any():
                values = (scores[chosen], labels[chosen], maps[chosen])
                category = torch.zeros_like(values[1], dtype=torch.long)
                super().update(*values, None if truth is None else truth[chosen], category)

    def compute(self) -> tuple[Scale, Scale, str] | None:  # type: ignore[override]
        """Choose the scales of scores and of pixels, and say how; ``None`` without images."""
        (found,) = super().compute()
        if found is None:
            return None
        labels = torch.atleast_1d(self.images.compute()[1])
        return *found, _how(int(labels.sum()), self.image_quantile, self.pixel_quantile)

    def scores(self) -> ValidationScores:  # type: ignore[override]
        """List the raw scores of all images, normal and anomalous ones."""
        (found,) = super().scores()
        return found


def _how(anomalous: int, image_quantile: float, pixel_quantile: float) -> str:
    if anomalous:
        return f"best F1 over {anomalous} anomalous and the normal validation images"
    return (
        f"no anomalous validation images: quantile {image_quantile} of the normal images' scores, {pixel_quantile} of "
        "their pixels"
    )


def image_scale(scores: Tensor, labels: Tensor, share: float) -> Scale:
    """Choose the scale of raw scores: the best F1, or without anomalous ones a quantile.

    Args:
        scores: Raw scores ``(B,)``.
        labels: 0 or 1 ``(B,)``.
        share: Without anomalous images: the quantile that is the threshold.
    """
    if not labels.any():  # the image that the threshold comes from is normal
        scale = of_normal(quantile(scores, share).item(), scores.min().item())
        gaps = (scores - scale.threshold)[scores > scale.threshold]
        return scale._replace(threshold=scale.threshold + step_beside(float(scale.span), gaps.tolist()))
    best_f1 = F1AdaptiveThreshold(fields=("pred_score", "gt_label"))
    best_f1.distributed_available_fn = lambda: False  # it is given the scores of all processes
    best_f1.update(SimpleNamespace(pred_score=scores, gt_label=labels.long()))
    scale = of_ends(best_f1.compute().item(), scores.min().item(), scores.max().item())  # here, it is an anomalous one
    gaps = (scale.threshold - scores)[scores < scale.threshold]
    return scale._replace(threshold=scale.threshold - step_beside(float(scale.span), gaps.tolist()))


def quantile(values: Tensor, share: float) -> Tensor:
    """Smallest of the values that at least this share of them does not exceed.

    torch's own quantile refuses more than 16 million values.
    """
    return values.flatten().kthvalue(max(1, math.ceil(share * values.numel()))).values


def of_normal(threshold: Any, lowest: Any) -> Scale:
    """Scale of normal values, which do not show how high anomalous ones go: as far above the threshold as below."""
    return of_ends(threshold, lowest, 2 * threshold - lowest)


def of_ends(threshold: Any, lowest: Any, highest: Any) -> Scale:
    """Scale of values between these ends, which are moved outwards where both are next to the threshold."""
    if max(highest - threshold, threshold - lowest) < LEAST_REACH:
        lowest, highest = threshold - LEAST_REACH, threshold + LEAST_REACH
    return Scale(threshold, lowest, highest)


def _kept(scores: Tensor, labels: Tensor) -> ValidationScores:
    return ValidationScores(*(_spread(scores[labels == label]) for label in (0, 1)))


def _spread(values: Tensor) -> list[float]:
    values = values.sort().values
    places = torch.linspace(0, len(values) - 1, min(len(values), KEPT_SCORES)).round().long()
    return values[places.to(values.device)].tolist()


def _edge(number: int | Tensor) -> float:
    return lower_edge(torch.as_tensor(number)).item()
