# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""How many prototypes are in use, counted on the validation images."""

from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from anomalib_inp.outputs import Reconstruction
from anomalib_inp.scoring.prototypes import IN_USE, count_in_use, explain


class PrototypeUse(Callback):
    """Logs ``prototypes_in_use`` with each validation, and says so at the end of a training.

    A prototype is in use where it is the nearest one of a share of the patches. Models without prototypes log nothing.
    """

    def __init__(self) -> None:
        self._hook: RemovableHandle | None = None
        self._shares: list[Tensor] = []
        self._last: Tensor | None = None

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to what the network gives."""
        del trainer
        self._shares = []
        self._hook = pl_module.model.network.register_forward_hook(self._count)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log how many are in use."""
        del trainer
        self._stop()
        if self._shares:
            self._last = torch.cat(self._shares).mean(dim=0)
            pl_module.log("prototypes_in_use", float(count_in_use(self._last)), sync_dist=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Listen no more."""
        del trainer, pl_module, exception
        self._stop()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how many are in use."""
        del trainer
        if self._last is None:
            return
        count, shares = count_in_use(self._last), sorted(self._last.tolist(), reverse=True)
        listed = ", ".join(f"{share:.0%}" for share in shares)
        of_tiles = getattr(pl_module, "tiles", None) is not None  # each tile has its own
        drawn = "" if of_tiles else " anomalib-inp explain draws which explains what."
        rank_zero_info(
            f"Prototypes in use: {count} of {len(shares)} (nearest to at least {IN_USE:.0%} of the patches of the "
            f"validation images; shares {listed}).{drawn}"
        )

    def _count(self, _network: nn.Module, _inputs: Any, output: Reconstruction) -> None:
        if output.prototypes is not None:
            self._shares.append(explain(output.full_precision()).shares)

    def _stop(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
