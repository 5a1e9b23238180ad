# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What the normal images of a training are like, kept so that what passes later can be compared with it."""

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
    """Measure the normal training and validation images of a trainer, of each category too where there are several.

    Light and sharpness do not depend on what was learnt, so that training images tell of them as well.
    """
    subsets = [Subset.from_trainer(trainer, split) for split in ("train", "val")]
    category_of = {
        path: subset.category_of(path) for subset in subsets for path in subset.paths if subset.is_normal(path)
    }
    paths, several = sorted(category_of), len({name for subset in subsets for name in subset.names}) > 1
    chosen = torch.linspace(0, len(paths) - 1, min(len(paths), MOST)).round().int().tolist()
    found: References = {}
    for path in (paths[place] for place in chosen):
        try:
            measured = measure_image(read_pixels(path))
        except ValueError:  # it could be read for validation, and is gone
            continue
        for category in ("", category_of[path]) if several else ("",):
            values = found.setdefault(category, {name: [] for name in ImageStatistics._fields})
            for name, value in measured._asdict().items():
                values[name].append(round(value, 6))
    return found
