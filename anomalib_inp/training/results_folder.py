# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""One folder for the results of a run: anomalib makes a new one in each of several processes."""

from contextlib import suppress
from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch import Callback


def results_folder(trainer: Trainer) -> Path:
    """Return the folder of the first process; all processes have to ask."""
    return Path(trainer.strategy.broadcast(str(trainer.default_root_dir)))


class SharedResultsFolder(Callback):
    """Removes the folders of all processes but the first, and lets ``latest`` point to that one again."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tidy up before anything is written."""
        del pl_module, stage
        folder = results_folder(trainer)
        if folder != Path(trainer.default_root_dir):
            with suppress(OSError):  # something is in it after all
                Path(trainer.default_root_dir).rmdir()
        trainer.strategy.barrier()
        latest = folder.parent / "latest"
        if trainer.is_global_zero and latest.is_symlink() and not latest.exists():
            latest.unlink()
            latest.symlink_to(folder, target_is_directory=True)
