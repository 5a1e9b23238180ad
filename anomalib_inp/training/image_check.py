# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Looks at the pixels of batches before anything is done to them."""

from typing import Any

from anomalib.data import ImageBatch
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback

from anomalib_inp.data.deep import read_deep_again
from anomalib_inp.images import ROUNDING, check_values
from anomalib_inp.outputs import TrainingBatch

AUGMENTED = 0.1
"""How far augmented values may lie outside [0, 1]; the grey view of few-shot training does by 0.05."""


class ImageCheck(Callback):
    """Refuses batches that are no images in [0, 1], and reads those again that anomalib has clipped.

    It comes before the pre-processor, which normalises.
    """

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Look at an epoch's first batch, and read images of 16 bits by their range.

        Raises:
            ValueError: It is no batch of images in [0, 1].
        """
        del pl_module
        for images in TrainingBatch.of(batch).images:
            if trainer.datamodule is None:  # those of a data module are read as they should be
                read_deep_again(images)
            if batch_idx == 0:
                _check(images, AUGMENTED)

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, *_: Any) -> None:
        """Look at a batch, and read images of 16 bits by their range.

        Raises:
            ValueError: It is no batch of images in [0, 1].
        """
        del pl_module
        if trainer.datamodule is None:
            read_deep_again(batch)
        _check(batch, ROUNDING)

    on_test_batch_start = on_validation_batch_start
    on_predict_batch_start = on_validation_batch_start


def _check(batch: ImageBatch, slack: float) -> None:
    check_values(str(batch.image.dtype).removeprefix("torch."), batch.image, slack)
