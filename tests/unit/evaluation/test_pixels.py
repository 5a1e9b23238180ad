# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import numpy as np
import pytest
import torch
from reference_metrics import make_data, reference_seven

from anomalib_inp.evaluation.functional import metrics_of_counts
from anomalib_inp.evaluation.pixels import BINS, BinnedPixels, ExactPixels, bin_of, lower_edge


def pixels_of(reference):
    return {name: value for name, value in reference.items() if name.startswith("pixel")}


def collected(metric, kinds, batch=5, scale=1.0):
    """Add the data of several kinds, each a category, in mixed batches."""
    data = [make_data(kind) for kind in kinds]
    maps = torch.cat([torch.from_numpy(scale * maps) for _, _, maps, _ in data]).float()
    masks = torch.cat([torch.from_numpy(masks) for _, _, _, masks in data])
    categories = torch.arange(len(kinds)).repeat_interleave(len(data[0][0]))
    for chosen in torch.randperm(len(maps), generator=torch.Generator().manual_seed(0)).split(batch):
        metric.update(maps[chosen], masks[chosen], categories[chosen])
    return metric.compute()


@pytest.mark.parametrize(("kind", "tolerance"), [(ExactPixels, 1e-4), (BinnedPixels, 1e-3)])
@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_each_category_by_itself(kind, tolerance, scale):
    kinds = ("random", "smooth", "tied")
    found = collected(kind(len(kinds) + 1), kinds, scale=scale)
    assert found[-1] == {}  # a category without images
    for name, values in zip(kinds, found, strict=False):
        assert values == pytest.approx(pixels_of(reference_seven(name)), abs=tolerance)


def test_bins_are_in_the_order_of_the_values():
    values = torch.tensor([-3e38, -2.0, -1.999, -1e-30, 0.0, 1e-30, 0.1, 0.1001, 1.0, 2.0, 3e38])
    bins = bin_of(values)
    assert (bins.diff() > 0)[torch.tensor([True, False, *[True] * 8])].all()
    assert bins.min() >= 0
    assert bins.max() < BINS
    # the lower edge of a bin is in it, and no more than 0.1 % below the value
    assert torch.equal(bin_of(lower_edge(bins)), bins)
    assert (lower_edge(bins) <= values).all()
    assert ((values - lower_edge(bins)).abs() <= 0.001 * values.abs() + 1e-30).all()


def test_counts_worked_by_hand():
    """Values 3, 2, 1, 0: anomalous, normal, anomalous, normal; one region each."""
    normal, anomalous = (torch.zeros(8, dtype=torch.long) for _ in range(2))
    normal[[2, 0]] = 1
    anomalous[[3, 1]] = 1
    found = metrics_of_counts(normal, anomalous, anomalous / 2)
    # fpr 0, 1/2, ...; overlap 1/2 at 0 and up to 1/2
    assert found == pytest.approx(
        {"pixel_AUROC": 3 / 4, "pixel_AP": (1 + 2 / 3) / 2, "pixel_F1Max": 4 / 5, "pixel_AUPRO": 1 / 2}
    )


def test_one_class_gives_nan():
    maps, masks, categories = torch.rand(2, 8, 8), torch.zeros(2, 8, 8), torch.zeros(2, dtype=torch.long)
    for metric in (ExactPixels(), BinnedPixels()):
        metric.update(maps, masks, categories)
        (values,) = metric.compute()
        assert np.isnan(list(values.values())).all()
        assert len(values) == 4


def test_counting_needs_no_memory_for_the_images():
    metric = BinnedPixels()

    def size():
        return sum(state.numel() for state in (metric.normal, metric.anomalous, metric.overlap, metric.regions))

    before = size()
    for _ in range(3):
        metric.update(torch.rand(4, 16, 16), torch.rand(4, 16, 16) > 0.9, torch.zeros(4, dtype=torch.long))
    assert size() == before
    assert int(metric.normal.sum() + metric.anomalous.sum()) == 3 * 4 * 256


def test_places_that_do_not_count():
    """The same as if the maps had been cut: regions are cut, and rates are of what is left."""
    _, _, maps, masks = make_data("smooth")
    width = maps.shape[-1] // 2
    places = torch.zeros(maps.shape[1:], dtype=torch.bool)
    places[:, :width] = True
    categories = torch.zeros(len(maps), dtype=torch.long)
    some, cut = BinnedPixels(), BinnedPixels()
    some.update(torch.from_numpy(maps).float(), torch.from_numpy(masks), categories, places)
    cut.update(torch.from_numpy(maps[..., :width]).float(), torch.from_numpy(masks[..., :width]), categories)
    assert some.compute() == cut.compute()
    assert some.compute()[0]["pixel_AUPRO"] < 1
