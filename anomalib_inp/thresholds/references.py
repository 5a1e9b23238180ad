# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What the normal validation images are like, kept so that what passes later can be compared with it."""

import torch
from lightning import Trainer

from anomalib_inp.data.subset import Subset
from anomalib_inp.images import read_pixels
from anomalib_inp.results.image_statistics import ImageStatistics, measure_image

MOST = 500
"""Of more images, so many are looked at, evenly spread."""
References = dict[str, dict[str, list[float]]]
"""By category, empty for all together: values by statistic."""


def references_of(trainer: Trainer) -> References:
    """Measure the normal validation images of a trainer, of each category too where there are several."""
    subset = Subset.from_trainer(trainer, "val")
    samples = getattr(getattr(trainer.datamodule, "val_data", None), "samples", None)
    if samples is None or not len(subset):
        return {}
    paths = [row.image_path for row in samples.itertuples() if row.label_index == 0]
    chosen = {int(place) for place in torch.linspace(0, len(paths) - 1, min(len(paths), MOST)).round()}
    found: References = {}
    for path in (path for place, path in enumerate(paths) if place in chosen):
        try:
            measured = measure_image(read_pixels(path))
        except ValueError:  # it could be read for validation, and is gone
            continue
        for category in ("", subset.category_of(path)) if len(subset.names) > 1 else ("",):
            values = found.setdefault(category, {name: [] for name in ImageStatistics._fields})
            for name, value in measured._asdict().items():
                values[name].append(round(value, 6))
    return found
