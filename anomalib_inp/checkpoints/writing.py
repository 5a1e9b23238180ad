# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""How a training writes its checkpoints: there is room for them, each is whole, and the last one is the model alone."""

import os
import shutil
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.fabric.plugins import CheckpointIO, TorchCheckpointIO
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from anomalib_inp.checkpoints.own import write_checkpoint
from anomalib_inp.files import DiskError, readable

FINISHED = "finished.ckpt"
"""The model that a training ends with."""
COPIES = 9
"""Sizes of the trained parameters that a training writes at a time.

A checkpoint holds them and three numbers of the optimiser for each; a new one is written before the old one goes;
and the finished model stands beside them.
"""


class WholeCheckpoints(CheckpointIO):
    """Writes a checkpoint in one step, on the disk that it is meant for; what fails costs that checkpoint alone.

    Args:
        others: What reads and removes checkpoints.

    Attributes:
        fault: Why the last one was not written, if it was not.
    """

    def __init__(self, others: CheckpointIO) -> None:
        self.others = others
        self.fault: DiskError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint; where the disk is full, the one that was there stays, and training goes on."""
        if "://" in str(path):  # no folder of this computer
            self.others.save_checkpoint(checkpoint, path, storage_options)
            return
        self.fault = None
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            write_checkpoint(Path(path), checkpoint)
        except DiskError as error:
            self.fault = error
            rank_zero_warn(f"{error} The training goes on.")

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint."""
        return self.others.load_checkpoint(*args, **kwargs)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint."""
        self.others.remove_checkpoint(path)


class CheckpointWriter(Callback):
    """Sees that there is room for checkpoints, and writes the finished model, weights only, beside the last one."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look at the disk before hours are spent.

        Raises:
            DiskError: It has no room for the checkpoints.
        """
        if stage != "fit" or trainer.checkpoint_callback is None or trainer.fast_dev_run:
            return
        if isinstance(trainer.strategy.checkpoint_io, TorchCheckpointIO):  # Lightning's or anomalib's, not a user's
            trainer.strategy.checkpoint_io = WholeCheckpoints(trainer.strategy.checkpoint_io)
        folder = existing(Path(trainer.checkpoint_callback.dirpath or trainer.default_root_dir))
        size = sum(weight.nbytes for weight in pl_module.parameters() if weight.requires_grad) * COPIES
        free = shutil.disk_usage(folder).free
        if free < size:
            msg = (
                f"The checkpoints of this training take {readable(size)}, but the disk of {folder} has "
                f"{readable(free)} left. Make room, or write elsewhere: --default_root_dir."
            )
            raise DiskError(0, msg)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write ``finished.ckpt``.

        Raises:
            DiskError: It cannot be written.
        """
        del pl_module
        if trainer.checkpoint_callback is None or trainer.fast_dev_run:
            return
        path = Path(trainer.checkpoint_callback.dirpath or trainer.default_root_dir) / FINISHED
        trainer.save_checkpoint(path, weights_only=True)
        fault = getattr(trainer.strategy.checkpoint_io, "fault", None)
        if fault is not None:
            raise fault
        rank_zero_info(f"Finished model, without optimiser and encoder: {path}")


def existing(folder: Path) -> Path:
    """Find the first folder above that is there: its disk is the one."""
    return next(place for place in (folder, *folder.absolute().parents) if os.path.exists(place))  # noqa: PTH110
