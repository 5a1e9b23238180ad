# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Data sets that stand in for the training images of a data module while a model trains on something made of them."""

from typing import Any

from anomalib.data import AnomalibDataset
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from pandas import DataFrame
from torch.utils.data import Dataset

from anomalib_inp.data.file_checks import DataError


class DerivedDataset(Dataset):
    """A data set made of images, read a batch at a time.

    Args:
        images: The images that it is made of.
    """

    def __init__(self, images: AnomalibDataset) -> None:
        self.images = images

    @property
    def samples(self) -> DataFrame:
        """The table of the images."""
        return self.images.samples

    def __len__(self) -> int:
        """Count the images."""
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        """Read what is made of one image, as a batch of one."""
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Any:
        """Read a batch; this is what ``DataLoader`` asks for."""
        raise NotImplementedError

    @staticmethod
    def collate_fn(batch: Any) -> Any:
        """Leave a batch as it is."""
        return batch


class DerivedDatasetCallback(Callback):
    """Puts a stand-in in the place of the training images; in the end they come back."""

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the images back."""
        del pl_module
        if stage == "fit":
            _give_images_back(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the images back after an interrupted training too: it ends without a teardown."""
        del pl_module, exception
        _give_images_back(trainer)


def train_data_of(trainer: Trainer, need: str, otherwise: str) -> AnomalibDataset | DerivedDataset:
    """Find the training data that a stand-in can be made of.

    Args:
        trainer: The trainer.
        need: Who needs them, and the verb.
        otherwise: What to do without.

    Raises:
        DataError: They are not those of a data module, or it puts batches together in a way of its own.
    """
    data = trainer.datamodule
    if not hasattr(data, "train_data") or getattr(data, "external_collate_fn", None) is not None:
        msg = (
            f"{need} a data module with train_data and no collate function of its own, got {type(data).__name__}. "
            f"{otherwise}"
        )
        raise DataError(msg)
    return data.train_data


def images_of(dataset: AnomalibDataset | DerivedDataset) -> AnomalibDataset:
    """Find the images of a data set that may stand in for them."""
    return dataset.images if isinstance(dataset, DerivedDataset) else dataset


def _give_images_back(trainer: Trainer) -> None:
    data = trainer.datamodule
    if hasattr(data, "train_data"):
        data.train_data = images_of(data.train_data)
