# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Batches for INP-Former++: normal images, cached or not, and pseudo-anomalous ones, which are new in every epoch."""

from functools import partial
from typing import Any

from anomalib.data import AnomalibDataset, ImageBatch
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from pandas import DataFrame
from torch.utils.data import Dataset
from torchvision.tv_tensors import Mask

from anomalib_inp.data.checks import DataError
from anomalib_inp.data.labelled import LabelledAnomalies
from anomalib_inp.data.pseudo_anomaly import PseudoAnomaly
from anomalib_inp.outputs import PseudoBatch
from anomalib_inp.training.feature_cache import CachedFeatures, give_images_back, images_of


class PseudoBatches(Dataset):
    """Pairs of normal and pseudo-anomalous images, read a batch at a time.

    Args:
        normal: The training images, or their cached features.
        pseudo_anomaly: What makes images anomalous.
    """

    def __init__(self, normal: AnomalibDataset | CachedFeatures, pseudo_anomaly: PseudoAnomaly) -> None:
        self.normal = normal
        self.images = images_of(normal)
        self.pseudo_anomaly = pseudo_anomaly

    @property
    def samples(self) -> DataFrame:
        """The table of the images."""
        return self.images.samples

    def __len__(self) -> int:
        """Count the images."""
        return len(self.images)

    def __getitem__(self, index: int) -> PseudoBatch:
        """Read one image, as a batch of one."""
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> PseudoBatch:
        """Read a batch; this is what ``DataLoader`` asks for."""
        items = [self.images[index] for index in indices]
        batch = self.images.collate_fn(items)
        images, masks = self.pseudo_anomaly(batch.image)
        pseudo = ImageBatch(image=images, gt_mask=Mask(masks), gt_label=masks.flatten(1).any(dim=1))
        normal = self.normal.__getitems__(indices) if isinstance(self.normal, CachedFeatures) else batch
        return PseudoBatch(normal, pseudo)

    @staticmethod
    def collate_fn(batch: PseudoBatch) -> PseudoBatch:
        """Leave a batch as it is."""
        return batch


class PseudoAnomalies(Callback):
    """Puts pairs of normal and pseudo-anomalous images in the place of the training images.

    Args:
        labelled: Labelled anomalies; where there are any, their defects are used too.
        **settings: Arguments of :class:`PseudoAnomaly`.

    Raises:
        DataError: There are no textures in their folder.
        ValueError: A setting outside its range.
    """

    def __init__(self, labelled: LabelledAnomalies, **settings: Any) -> None:
        self.labelled = labelled
        self.pseudo_anomaly = partial(PseudoAnomaly, **settings)
        self.pseudo_anomaly()  # says at once what is wrong

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Replace the training images.

        Raises:
            DataError: They are not those of a data module.
        """
        del pl_module
        if stage != "fit":
            return
        data = trainer.datamodule
        if not hasattr(data, "train_data") or getattr(data, "external_collate_fn", None) is not None:
            msg = (
                f"Pseudo-anomalies need a data module with train_data and no collate function of its own, got "
                f"{type(data).__name__}. Train without the segmentation head: --model.head false."
            )
            raise DataError(msg)
        normal = data.train_data if isinstance(data.train_data, CachedFeatures) else images_of(data.train_data)
        data.train_data = PseudoBatches(normal, self.pseudo_anomaly(defects=self.labelled.defects))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the images back."""
        del pl_module
        if stage == "fit":
            give_images_back(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the images back after an interrupted training too: it ends without a teardown."""
        del pl_module, exception
        give_images_back(trainer)
