# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The seven metrics by scikit-learn and by their definition, and data to compute them of."""

from functools import cache
from itertools import pairwise

import numpy as np
from scipy.ndimage import gaussian_filter
from skimage.measure import label
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

SIZE = 48


def reference_f1_max(truth, values):
    precision, recall, _ = precision_recall_curve(truth, values)
    return np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12))


def reference_aupro(maps, masks, limit=0.3):
    """Mean overlap of the regions over the false-positive rate, at every distinct value, by the definition."""
    regions = []
    for values, mask in zip(maps, masks, strict=True):
        components = label(mask)  # full (8-) connectivity
        regions += [values[components == index] for index in range(1, components.max() + 1)]
    normal = maps[~masks]
    curve = [(0.0, 0.0)]
    for threshold in np.unique(maps)[::-1]:
        overlap = np.mean([np.mean(region >= threshold) for region in regions])
        curve.append((np.mean(normal >= threshold), overlap))
        if curve[-1][0] > limit:
            break
    area = 0.0
    for (fpr, pro), (next_fpr, next_pro) in pairwise(curve):
        if next_fpr > limit:
            next_pro = pro + (next_pro - pro) * (limit - fpr) / (next_fpr - fpr)
            next_fpr = limit
        area += (next_fpr - fpr) * (pro + next_pro) / 2
    return area / limit


@cache
def reference_seven(kind):
    scores, labels, maps, masks = make_data(kind)
    pixels, truth = maps.ravel(), masks.ravel()
    return {
        "image_AUROC": roc_auc_score(labels, scores),
        "image_AP": average_precision_score(labels, scores),
        "image_F1Max": reference_f1_max(labels, scores),
        "pixel_AUROC": roc_auc_score(truth, pixels),
        "pixel_AP": average_precision_score(truth, pixels),
        "pixel_F1Max": reference_f1_max(truth, pixels),
        "pixel_AUPRO": reference_aupro(maps, masks),
    }


def make_data(kind, count=12):
    """Maps with a value above 1 in some batches only, like cosine distances; a third of the images are normal."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    masks = np.zeros((count, SIZE, SIZE), bool)
    for mask in (mask for index, mask in enumerate(masks) if index % 3):
        for row, column, radius in rng.integers((0, 0, 2), (SIZE, SIZE, 9), (3, 3)):
            mask |= (rows - row) ** 2 + (columns - column) ** 2 < radius**2
        mask[[0, 1], [0, 1]] = True  # touching at a corner only: one region
    if kind == "random":
        maps = rng.random(masks.shape)
    else:
        noise = gaussian_filter(rng.standard_normal(masks.shape), (0, 3, 3))
        maps = 0.3 + noise + 0.4 * gaussian_filter(masks.astype(float), (0, 2, 2))
        maps -= maps.min()
    maps *= np.where(np.arange(count) < count // 2, 0.9, 1.3)[:, None, None] / maps.max()
    if kind == "tied":
        maps = np.round(maps * 12) / 12
    maps = maps.astype(np.float32)
    return maps.max((1, 2)), masks.any((1, 2)), maps, masks
