# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What a model is trained on: the one owner of what stands in for the training images of a data module."""

import copy
from pathlib import Path

from anomalib.data import AnomalibDataset, ImageBatch
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_warn
from pandas import DataFrame
from torch.utils.data import Dataset
from torchvision.tv_tensors import Mask

from anomalib_inp.data.file_checks import DataError
from anomalib_inp.data.labelled import LabelledAnomalies
from anomalib_inp.data.pseudo_anomaly import PseudoAnomaly, texture_files
from anomalib_inp.outputs import TrainingBatch
from anomalib_inp.scoring.memory import NormalMemory
from anomalib_inp.training.feature_cache import WITHOUT_CACHE, CachedFeatures, FeatureCache
from anomalib_inp.training.memory_fill import MemoryFill
from anomalib_inp.training.tap_choice import choose_taps


class DerivedDataset(Dataset):
    """Training batches made of images: of their cached features, with pseudo-anomalous ones beside them, or both.

    Args:
        images: The training images.
        features: The cached features of these images; ``None`` reads the images themselves.
        pseudo_anomaly: What makes images anomalous, new in every epoch; ``None`` makes none.
    """

    def __init__(
        self,
        images: AnomalibDataset,
        features: CachedFeatures | None = None,
        pseudo_anomaly: PseudoAnomaly | None = None,
    ) -> None:
        self.images = images
        self.features = features
        self.pseudo_anomaly = pseudo_anomaly

    @property
    def samples(self) -> DataFrame:
        """The table of the images."""
        return self.images.samples

    def __len__(self) -> int:
        """Count the images."""
        return len(self.images)

    def __getitem__(self, index: int) -> TrainingBatch:
        """Read what is made of one image, as a batch of one."""
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> TrainingBatch:
        """Read a batch; this is what ``DataLoader`` asks for."""
        features = None if self.features is None else self.features[indices]
        if features is not None and self.pseudo_anomaly is None:
            return TrainingBatch(features)
        batch = self.images.collate_fn([self.images[index] for index in indices])
        pseudo = None if self.pseudo_anomaly is None else _changed(batch, self.pseudo_anomaly)
        return TrainingBatch(batch if features is None else features, pseudo)

    @staticmethod
    def collate_fn(batch: TrainingBatch) -> TrainingBatch:
        """Leave a batch as it is."""
        return batch


class TrainingData(Callback):
    """Puts what a model is trained on in the place of the training images, and gives the images back in the end.

    In this order: labelled anomalies are found and taken out of what is tested, an undecided encoder is told which
    blocks to tap, the features of the training images are cached, a memory is filled, and pseudo-anomalous images stand
    beside the images or their features.

    Args:
        cache: Where the features are kept; ``None`` encodes the images anew in every epoch.
        pseudo_anomaly: What makes images anomalous; ``None`` trains on normal images alone. A training works on a copy,
            with the textures of the folder and the defects of the labelled anomalies.
        textures: Folder of texture images for it, if any; nothing but a training looks for it.
        labelled: Labelled anomalies, if any.
        memory: Fills a memory with the training images; ``None`` where there is none.
        undecided: Whether the encoder is to be told which blocks to tap.
    """

    def __init__(
        self,
        cache: FeatureCache | None = None,
        pseudo_anomaly: PseudoAnomaly | None = None,
        textures: str | Path | None = None,
        labelled: LabelledAnomalies | None = None,
        memory: MemoryFill | None = None,
        undecided: bool = False,
    ) -> None:
        self.cache = cache
        self.pseudo_anomaly = pseudo_anomaly
        self.textures = textures
        self.labelled = labelled
        self.memory = memory
        self.undecided = undecided

    @property
    def keeps(self) -> bool:
        """Whether images are looked at once, and what is seen is kept."""
        return self.cache is not None or self.memory is not None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Replace the training images where a training begins; test on nothing that has been trained on.

        Raises:
            DataError: The images are not those of a data module, or cannot be cached; there are no textures, or a
                labelled anomaly cannot be used.
        """
        data = trainer.datamodule
        # First what costs little: nothing is computed for nothing.
        textures = texture_files(Path(self.textures)) if self.textures is not None and stage == "fit" else []
        if self.labelled is not None and data is not None:
            if stage == "fit":
                self.labelled.find(data)
            self.labelled.take_out(data)
        if stage != "fit" or not (self.cache or self.pseudo_anomaly or self.memory or self.undecided):
            return
        images = self._images_of(trainer)
        pseudo_anomaly = copy.copy(self.pseudo_anomaly or PseudoAnomaly())
        pseudo_anomaly.textures = textures
        pseudo_anomaly.defects = [] if self.labelled is None else self.labelled.defects
        if self.undecided:
            choose_taps(pl_module.model.network.encoder, trainer, pl_module, images, pseudo_anomaly)
        features = None if self.cache is None else self.cache.features_of(images, trainer, pl_module)
        if self.memory is not None:
            memory, encoder = pl_module.model.head_of(NormalMemory), pl_module.model.network.encoder
            if pl_module.learnt:
                rank_zero_warn(
                    f"The memory is filled anew: {len(pl_module.learnt)} images that were learnt are forgotten. To "
                    "learn them again: anomalib-inp learn."
                )
                pl_module.learnt = []
            self.memory(memory, encoder, trainer, pl_module, images, features, pseudo_anomaly)
        if features is not None or self.pseudo_anomaly is not None:
            data.train_data = DerivedDataset(images, features, pseudo_anomaly if self.pseudo_anomaly else None)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the images back."""
        del pl_module
        if stage == "fit":
            _give_images_back(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the images back after an interrupted training too: it ends without a teardown."""
        del pl_module, exception
        _give_images_back(trainer)

    def _images_of(self, trainer: Trainer) -> AnomalibDataset:
        data = trainer.datamodule
        if not hasattr(data, "train_data") or getattr(data, "external_collate_fn", None) is not None:
            if self.cache is not None:
                needs, instead = "The feature cache needs", f" {WITHOUT_CACHE}"
            elif self.pseudo_anomaly is not None:
                needs, instead = "Pseudo-anomalies need", " Train without the segmentation head: --model.head false."
            else:
                needs, instead = "What is measured on the training images needs", ""
            got = "plain data loaders" if data is None else type(data).__name__
            msg = f"{needs} a data module with train_data and no collate function of its own, got {got}.{instead}"
            raise DataError(msg)
        return data.train_data


def _changed(batch: ImageBatch, pseudo_anomaly: PseudoAnomaly) -> ImageBatch:
    images, masks = pseudo_anomaly(batch.image)
    return ImageBatch(image=images, gt_mask=Mask(masks), gt_label=masks.flatten(1).any(dim=1))


def _give_images_back(trainer: Trainer) -> None:
    data = trainer.datamodule
    train_data = getattr(data, "train_data", None)
    if isinstance(train_data, DerivedDataset):
        data.train_data = train_data.images
