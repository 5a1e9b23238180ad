# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Pixel metrics of many categories: exact, with every pixel kept, or from counts in bins, with none kept."""

import torch
from anomalib.utils.cv import connected_components_cpu
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from anomalib_inp.evaluation.functional import metrics_of_counts, of_each, pixel_metrics

EXACT_IMAGES = 2500
"""Test images up to which pixel metrics are exact: 0.8 GB of maps of 256 x 256."""
FRACTION_BITS = 10
BINS = 2 ** (1 + 8 + FRACTION_BITS)
"""A bin holds the values that agree in sign, exponent and the first bits of the fraction: it is 0.1 % wide."""
CHUNK = 2**20
"""Pixels that are counted at a time, so that memory does not grow with the map."""


class ExactPixels(Metric):
    """Keeps all maps and masks; memory grows by 5 bytes a pixel.

    Args:
        num_categories: Number of categories.
    """

    full_state_update = False
    maps: list[Tensor]
    masks: list[Tensor]
    categories: list[Tensor]
    size: Tensor

    def __init__(self, num_categories: int = 1) -> None:
        super().__init__()
        self.num_categories = num_categories
        for state in ("maps", "masks", "categories"):
            self.add_state(state, [], dist_reduce_fx="cat")
        self.add_state("size", torch.ones(2, dtype=torch.long), dist_reduce_fx="max")
        # A process that is given no image shares a state of the right kind all the same.
        self.update(torch.zeros(0, 1, 1), torch.zeros(0, 1, 1), torch.zeros(0, dtype=torch.long))

    def update(self, maps: Tensor, masks: Tensor, categories: Tensor, places: Tensor | None = None) -> None:
        """Add maps, as :meth:`BinnedPixels.update` does.

        Raises:
            ValueError: Some places do not count.
        """
        if places is not None:
            msg = "Of maps whose places do not all count, pixels are counted in bins: BinnedPixels."
            raise ValueError(msg)
        self.size = torch.tensor(maps.shape[-2:], device=self.size.device)
        self.maps.append(maps.flatten().float())
        self.masks.append(masks.flatten().to(torch.uint8))
        self.categories.append(categories)

    def compute(self) -> list[dict[str, float]]:
        """Compute the metrics of each category; those without images have none."""
        categories = dim_zero_cat(self.categories)
        maps, masks = (dim_zero_cat(state).view(-1, *self.size.tolist()) for state in (self.maps, self.masks))
        return of_each(
            self.num_categories, categories, lambda chosen: pixel_metrics(maps[chosen], masks[chosen].bool())
        )


class PixelCounts(Metric):
    """Counts the normal and the anomalous pixels of each category in bins; a subclass says what to compute of them."""

    full_state_update = False
    normal: Tensor
    anomalous: Tensor

    def __init__(self, num_categories: int = 1) -> None:
        super().__init__()
        self.num_categories = num_categories
        for state in ("normal", "anomalous"):
            self.add_state(state, torch.zeros(num_categories, BINS, dtype=torch.int64), dist_reduce_fx="sum")

    def count(self, maps: Tensor, masks: Tensor, categories: Tensor) -> None:
        """Add pixels, given as maps ``(B, H, W)`` and masks ``(B, H, W)``, of the categories ``(B,)``."""
        for of_image, truth, number in zip(maps, masks, categories.tolist(), strict=True):
            for values, mask in zip(of_image.flatten().split(CHUNK), truth.flatten().split(CHUNK), strict=True):
                bins = bin_of(values)
                self.normal[number] += torch.bincount(bins[~mask], minlength=BINS)
                self.anomalous[number] += torch.bincount(bins[mask], minlength=BINS)


class BinnedPixels(PixelCounts):
    """Pixel metrics from counts in bins, of which each is 0.1 % wide; memory does not grow with the images.

    torchmetrics' binned metrics know values between 0 and 1, in bins of equal width: most pixels of a map of cosine
    distances lie in a few of them, and AUPRO is not among them.

    Args:
        num_categories: Number of categories; each needs 13 MB.
    """

    overlap: Tensor
    regions: Tensor

    def __init__(self, num_categories: int = 1) -> None:
        super().__init__(num_categories)
        # Share of their region that the pixels of a bin make up, over all regions.
        self.add_state("overlap", torch.zeros(num_categories, BINS, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("regions", torch.zeros(num_categories, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, maps: Tensor, masks: Tensor, categories: Tensor, places: Tensor | None = None) -> None:
        """Add maps.

        Args:
            maps: Maps ``(B, H, W)``.
            masks: Masks ``(B, H, W)``.
            categories: Numbers of the categories ``(B,)``.
            places: Which places of maps and masks count, bool ``(H, W)``; ``None`` for all.
        """
        masks = masks.bool()
        if places is None:
            self.count(maps, masks, categories)
        else:
            places = places.to(masks.device)
            masks = masks & places
            self.count(maps[:, places], masks[:, places], categories)
        for of_image, mask, number in zip(maps, masks, categories.tolist(), strict=True):
            if mask.any():
                regions = connected_components_cpu(mask[None, None].int().cpu()).to(mask.device)[0, 0][mask].long()
                shares = 1 / torch.bincount(regions)[regions].double()
                self.overlap[number] += torch.bincount(bin_of(of_image[mask]), weights=shares, minlength=BINS)
                self.regions[number] += len(regions.unique())

    def compute(self) -> list[dict[str, float]]:
        """Compute the metrics of each category; those without images have none."""
        states = zip(self.normal, self.anomalous, self.overlap, self.regions, strict=True)
        return [
            metrics_of_counts(normal, anomalous, overlap / regions) if (normal.any() or anomalous.any()) else {}
            for normal, anomalous, overlap, regions in states
        ]


def pixel_metrics_of(num_images: int, exact_images: int, num_categories: int = 1) -> ExactPixels | BinnedPixels:
    """Choose how pixel metrics are computed.

    Args:
        num_images: How many images there will be.
        exact_images: Up to so many, every pixel is kept.
        num_categories: Number of categories.
    """
    return ExactPixels(num_categories) if num_images <= exact_images else BinnedPixels(num_categories)


def bin_of(values: Tensor) -> Tensor:
    """Number of the bin of each value; a larger value has the same bin or a higher one."""
    bits = values.float().contiguous().view(torch.int32)
    # As whole numbers, the bits of positive floats are in the order of the floats, those of negative ones reversed.
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered >> (23 - FRACTION_BITS)).long() + BINS // 2


def lower_edge(bins: Tensor) -> Tensor:
    """Smallest value of a bin."""
    ordered = (bins - BINS // 2).int() << (23 - FRACTION_BITS)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)
