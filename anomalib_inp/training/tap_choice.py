# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Chooses the blocks that are reconstructed by what each choice sees of pseudo-anomalies."""

from anomalib.data import AnomalibDataset
from lightning import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from anomalib_inp.data.pseudo_anomaly import PseudoAnomaly
from anomalib_inp.encoder.frozen import FrozenEncoder, Windows
from anomalib_inp.scoring.memory import NormalMemory
from anomalib_inp.training.memory_fill import MemoryFill

SIZE = 1000
"""Tokens that each choice is measured with."""


def choose_taps(
    encoder: FrozenEncoder,
    trainer: Trainer,
    pl_module: LightningModule,
    images: AnomalibDataset,
    pseudo_anomaly: PseudoAnomaly,
) -> None:
    """Decide which consecutive blocks an encoder taps: those whose mean finds pseudo-anomalies best.

    Each choice is measured as the depths of a memory are (:class:`MemoryFill`), by the distance to the nearest normal
    token; nothing is trained for it.

    Args:
        encoder: The encoder, undecided.
        trainer: The trainer.
        pl_module: The model.
        images: The training images.
        pseudo_anomaly: What makes images anomalous.
    """
    choices, memory = Windows(encoder), NormalMemory()
    MemoryFill(SIZE, "auto")(memory, choices, trainer, pl_module, images, None, pseudo_anomaly)
    chosen = choices.windows[int(memory.average_precision.argmax())]
    encoder.retap(chosen)
    pl_module.hparams["target_layers"] = chosen  # what a checkpoint is built from again
    rank_zero_info(f"Target layers: {chosen}, by pixel AP on pseudo-anomalies; --model.target_layers fixes them.")
