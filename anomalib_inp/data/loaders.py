# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What a trainer's loaders load."""

from typing import Any

from anomalib.data import AnomalibDataset, PredictDataset
from torch.utils.data import Dataset


def datasets_of(loaders: Any) -> list[Dataset | None]:
    """List the data sets of a trainer's loaders, of which there are none, one or a list."""
    several = loaders if isinstance(loaders, list | tuple) else [loaders]
    return [getattr(loader, "dataset", None) for loader in several]


def image_paths_of(loaders: Any) -> list[str]:
    """List the images of a trainer's loaders, as far as they are files."""
    paths: list[str] = []
    for dataset in datasets_of(loaders):
        if isinstance(dataset, PredictDataset):
            paths.extend(map(str, dataset.image_filenames))
        elif isinstance(dataset, AnomalibDataset):
            paths.extend(dataset.samples.image_path)
    return paths
