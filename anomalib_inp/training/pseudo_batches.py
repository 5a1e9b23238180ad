# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Batches for INP-Former++: normal images, cached or not, and pseudo-anomalous ones, which are new in every epoch."""

from pathlib import Path
from typing import Any

from anomalib.data import AnomalibDataset, ImageBatch
from lightning import LightningModule, Trainer
from torchvision.tv_tensors import Mask

from anomalib_inp.data.labelled import LabelledAnomalies
from anomalib_inp.data.pseudo_anomaly import PseudoAnomaly, texture_files
from anomalib_inp.outputs import PseudoBatch
from anomalib_inp.training.feature_cache import CachedFeatures
from anomalib_inp.training.stand_in import DerivedDataset, DerivedDatasetCallback, images_of, train_data_of


class PseudoBatches(DerivedDataset):
    """Pairs of normal and pseudo-anomalous images.

    Args:
        normal: The training images, or their cached features.
        pseudo_anomaly: What makes images anomalous.
    """

    def __init__(self, normal: AnomalibDataset | CachedFeatures, pseudo_anomaly: PseudoAnomaly) -> None:
        super().__init__(images_of(normal))
        self.normal = normal
        self.pseudo_anomaly = pseudo_anomaly

    def __getitems__(self, indices: list[int]) -> PseudoBatch:
        """Read a batch; this is what ``DataLoader`` asks for."""
        items = [self.images[index] for index in indices]
        batch = self.images.collate_fn(items)
        images, masks = self.pseudo_anomaly(batch.image)
        pseudo = ImageBatch(image=images, gt_mask=Mask(masks), gt_label=masks.flatten(1).any(dim=1))
        normal = self.normal.__getitems__(indices) if isinstance(self.normal, CachedFeatures) else batch
        return PseudoBatch(normal, pseudo)


class PseudoAnomalies(DerivedDatasetCallback):
    """Puts pairs of normal and pseudo-anomalous images in the place of the training images.

    Args:
        labelled: Labelled anomalies; where there are any, their defects are used too.
        textures: Folder of texture images, if any; nothing but a training looks for it.
        **settings: Other arguments of :class:`PseudoAnomaly`.

    Raises:
        ValueError: A setting outside its range.
    """

    def __init__(self, labelled: LabelledAnomalies, textures: str | Path | None, **settings: Any) -> None:
        self.labelled = labelled
        self.textures = textures
        self.pseudo_anomaly = PseudoAnomaly(**settings)

    def find_textures(self) -> list[Path]:
        """List the texture images.

        Raises:
            DataError: There are none in their folder, or a file there is no image.
        """
        return [] if self.textures is None else texture_files(Path(self.textures))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Replace the training images.

        Raises:
            DataError: They are not those of a data module, or there are no textures.
        """
        del pl_module
        if stage != "fit":
            return
        without = "Train without the segmentation head: --model.head false."
        data = train_data_of(trainer, "Pseudo-anomalies need", without)
        self.pseudo_anomaly.defects = self.labelled.defects
        self.pseudo_anomaly.textures = self.find_textures()
        normal = data if isinstance(data, CachedFeatures) else images_of(data)
        trainer.datamodule.train_data = PseudoBatches(normal, self.pseudo_anomaly)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the images back, and let go of the defects."""
        super().teardown(trainer, pl_module, stage)
        self.pseudo_anomaly.defects, self.pseudo_anomaly.textures = [], []
