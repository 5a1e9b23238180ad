# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""One folder for the results of a run, and a link ``latest`` to the newest run that has some.

anomalib makes a folder in each of several processes, and moves the link before it knows whether the run will come to
anything.
"""

import re
from contextlib import suppress
from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch import Callback

VERSION = re.compile(r"v\d+")


def results_folder(trainer: Trainer) -> Path:
    """Return the folder of the first process; all processes have to ask."""
    return Path(trainer.strategy.broadcast(str(trainer.default_root_dir)))


class ResultsFolder(Callback):
    """Removes the folders of all processes but the first, and those of failed runs; puts ``latest`` right."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tidy up before anything is written."""
        del pl_module, stage
        if results_folder(trainer) != Path(trainer.default_root_dir):
            _remove_if_empty(trainer)
        trainer.strategy.barrier()
        _point_to_newest(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, object]) -> None:
        """Point to this run: a training that is killed is resumed from there."""
        del pl_module, checkpoint
        _point_to_newest(trainer, about_to_write=True)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Point to this run, if anything came of it."""
        del pl_module, stage
        _number_a_test(trainer)
        _point_to_newest(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no empty folder, and no link to one."""
        del pl_module, exception
        _remove_if_empty(trainer)
        _number_a_test(trainer)
        _point_to_newest(trainer)


def _number_a_test(trainer: Trainer) -> None:
    """Number the folder of a test where nothing was trained: anomalib calls it ``latest``, and no link can be there."""
    own = Path(trainer.default_root_dir)
    if not (trainer.is_global_zero and own.name == "latest" and own.is_dir() and not own.is_symlink()):
        return
    numbers = [int(path.name[1:]) for path in own.parent.iterdir() if VERSION.fullmatch(path.name)]
    numbered = own.with_name(f"v{max(numbers, default=-1) + 1}")
    with suppress(OSError):  # where links are not allowed, anomalib makes something else
        link = _link_beside(own, numbered.name)
        own.rename(numbered)
        link.replace(own)


def _remove_if_empty(trainer: Trainer) -> None:
    folder = Path(trainer.default_root_dir)
    if VERSION.fullmatch(folder.name):
        with suppress(OSError):  # something is in it after all
            folder.rmdir()


def _point_to_newest(trainer: Trainer, about_to_write: bool = False) -> None:
    """Let ``latest`` point to the newest run with a file in it, by a relative path; without one, there is no link."""
    own = Path(trainer.default_root_dir)
    latest = own.with_name("latest")
    if not (trainer.is_global_zero and VERSION.fullmatch(own.name) and latest.parent.is_dir()):
        return
    if latest.exists() and not latest.is_symlink():  # where links are not allowed, anomalib makes something else
        return
    runs = [path for path in latest.parent.iterdir() if VERSION.fullmatch(path.name)]
    full = [path for path in runs if (about_to_write and path == own) or _holds_a_file(path)]
    if not full:
        latest.unlink(missing_ok=True)
        return
    newest = max(full, key=lambda path: int(path.name[1:]))
    if not latest.is_symlink() or latest.readlink() != Path(newest.name):
        _link_beside(latest, newest.name).replace(latest)


def _link_beside(latest: Path, run: str) -> Path:
    """Make the link to a run that is to take the place of ``latest``."""
    link = latest.with_name(f".latest-{run}")
    link.unlink(missing_ok=True)
    link.symlink_to(run, target_is_directory=True)
    return link


def _holds_a_file(folder: Path) -> bool:
    return any(path.is_file() for path in folder.rglob("*"))
