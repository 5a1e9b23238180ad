# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The seven metrics of what an exported model predicts, taken up image by image."""

from collections.abc import Callable, Iterable

import numpy as np
import torch

from anomalib_inp.evaluation.functional import seven_metrics
from anomalib_inp.evaluation.pixels import EXACT_IMAGES, pixel_metrics_of

Labelled = tuple[float, bool, np.ndarray, np.ndarray | None]
"""Of an image: raw score, whether it is anomalous, raw map ``(h, w)`` and mask ``(h, w)``, if it has one."""


def measure(
    images: Iterable[Labelled], num_images: int, places: Callable[[tuple[int, ...]], np.ndarray | None] | None = None
) -> tuple[dict[str, float], int]:
    """Compute the seven metrics of images whose labels are known.

    Args:
        images: The images.
        num_images: How many there will be; of more than ``EXACT_IMAGES``, pixels are counted in bins.
        places: Tells which places of maps and masks of a size count, bool ``(h, w)``; ``None`` where all do, and maps
            are of one size.

    Returns:
        The metrics, those of pixels only if every image has a mask, none without images; how many have no mask.
    """
    scores, labels, unmasked = [], [], 0
    pixels = pixel_metrics_of(num_images, EXACT_IMAGES if places is None else 0)
    for score, anomalous, anomaly_map, mask in images:
        scores.append(score)
        labels.append(anomalous)
        if mask is None:
            unmasked += 1
            pixels.reset()
        elif not unmasked:
            maps, masks = torch.from_numpy(anomaly_map.astype(np.float32)), torch.from_numpy(mask)
            counted = None if places is None else places(anomaly_map.shape)
            given = None if counted is None else torch.from_numpy(counted)
            pixels.update(maps[None], masks[None], torch.zeros(1, dtype=torch.long), given)
    if not scores:
        return {}, 0
    by_pixel = {} if unmasked else pixels.compute()[0]
    return seven_metrics(np.array(scores), np.array(labels)) | by_pixel, unmasked
