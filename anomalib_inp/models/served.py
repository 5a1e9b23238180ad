# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""A checkpoint that is asked like an export: for the service, which can then explain what prototypes see."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from anomalib_inp.exporting.convert import graph_of, metadata_of
from anomalib_inp.files import file_digest
from anomalib_inp.images import as_batch
from anomalib_inp.models.registry import load_model
from anomalib_inp.pictures.prototypes import draw_prototypes
from anomalib_inp.runtime.model import Predictions
from anomalib_inp.scoring.prototypes import explain


class CheckpointModel:
    """Runs a checkpoint on images, as ``ExportedModel`` runs an export.

    Args:
        path: A checkpoint of ours.
        category: Of a model of several categories: the one whose thresholds hold.
        device: Device of PyTorch.

    Raises:
        FileNotFoundError: No such file.
        ValueError: No checkpoint of ours, or an unknown category.
    """

    def __init__(self, path: str | Path, category: str | None = None, device: str = "cpu") -> None:
        self.path = Path(path)
        self.module = load_model(self.path).eval().to(device)
        if category is not None:
            self.module.post_processor.category = category
        self.metadata = metadata_of(self.module)
        self.digest = file_digest(self.path)
        self._graph = graph_of(self.module)
        self._device = device

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> Predictions:
        """Detect anomalies in an image ``(H, W, 3)``, uint8 or uint16, or in a batch of them."""
        found = self._graph(torch.from_numpy(as_batch(images)).to(self._device))
        label, mask = (None if value is None else value.cpu().numpy() for value in (found.pred_label, found.pred_mask))
        return Predictions(found.pred_score.cpu().numpy(), label, found.anomaly_map.cpu().numpy(), mask)

    @property
    def has_prototypes(self) -> bool:
        """Whether there is something to explain; of tiles, each has prototypes of its own."""
        return hasattr(self.module.model.network, "extractor") and self.module.tiles is None

    @torch.inference_mode()
    def explain(self, pixels: np.ndarray, name: str = "") -> tuple[Image.Image, list[float]]:
        """Draw which prototype explains which patch of an image ``(H, W, 3)``; and the share of the patches of each.

        Raises:
            ValueError: The model has no prototypes.
        """
        if not self.has_prototypes:
            msg = (
                f"{type(self.module).__name__} has no prototypes to draw; INP-Former and INP-Former++ have, "
                "where they see the whole image."
            )
            raise ValueError(msg)
        images = self.module.pre_processor.transform(torch.from_numpy(as_batch(pixels)).to(self._device))
        explained = explain(self.module.model.network(images).full_precision())
        nearest, left, shares = (values[0].cpu().numpy() for values in explained)
        picture = draw_prototypes(pixels, nearest, left, shares.tolist(), crop_box=self.metadata.crop_box, name=name)
        return picture, shares.tolist()
