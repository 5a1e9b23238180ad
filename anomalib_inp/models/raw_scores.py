# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Raw scores of images, by a model or a checkpoint of it."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from anomalib.models.components import AnomalibModule

from anomalib_inp.data.deep import read_tensor
from anomalib_inp.models.registry import load_model


def raw_score(model: AnomalibModule, image: Path) -> float:
    """Raw score of an image, by the map that the model shows.

    Raises:
        ValueError: The file is no readable image.
    """
    with torch.inference_mode():
        return float(model.model(model.pre_processor.transform(read_tensor(image).unsqueeze(0))).pred_score)


def raw_scores(checkpoint: Path, images: Iterable[Path]) -> Iterator[float]:
    """Raw scores of images, by a checkpoint.

    Raises:
        ValueError: A file is no readable image, or no checkpoint of ours.
    """
    model = load_model(checkpoint).eval()
    for image in images:
        yield raw_score(model, image)
