# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Steps that both models share."""

import torch
from anomalib.data import ImageBatch
from torch import Tensor
from torch.nn import functional as F

from anomalib_inp.networks.inp_former.network import InpFormerNetwork
from anomalib_inp.outputs import PatchFeatures, Reconstruction
from anomalib_inp.scoring.detector import InpDetector


def full_precision(images: Tensor) -> torch.autocast:
    """Leave mixed precision for losses, maps and scores."""
    return torch.autocast(images.device.type, enabled=False)


def reconstruct(network: InpFormerNetwork, source: Tensor | PatchFeatures) -> Reconstruction:
    """Reconstruct normalised images ``(B, 3, H, W)``, or the features that a cache holds of them."""
    if isinstance(source, PatchFeatures):
        return network.reconstruct(source.full_precision())
    return network(source)


def source_of(batch: ImageBatch | PatchFeatures) -> Tensor | PatchFeatures:
    """What the network makes a reconstruction of: images, or what a cache holds of them."""
    return batch if isinstance(batch, PatchFeatures) else batch.image


def num_images(batch: ImageBatch | PatchFeatures) -> int:
    """Count the images of a batch."""
    return len(batch.groups[0] if isinstance(batch, PatchFeatures) else batch.image)


def evaluation_step(detector: InpDetector, batch: ImageBatch) -> ImageBatch:
    """Add raw scores ``(B,)`` and maps ``(B, h, w)`` to a batch and bring its masks to the size of the maps."""
    reconstruction: Reconstruction = detector.network(batch.image)
    with full_precision(batch.image):
        predictions = detector.read(reconstruction.full_precision())
    changes = {"pred_score": predictions.pred_score, "anomaly_map": predictions.anomaly_map}
    if batch.gt_mask is not None:
        size = predictions.anomaly_map.shape[-2:]
        mask = F.interpolate(batch.gt_mask.float().unsqueeze(1), size=size, mode="nearest")
        changes["gt_mask"] = mask.squeeze(1).bool()
    batch.update(**changes)
    batch.raw_score, batch.raw_map = batch.pred_score, batch.anomaly_map
    return batch
