# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Draws what each depth of the encoder sees of a pseudo-anomaly, and so why it has its weight."""

from collections.abc import Sequence
from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_only
from PIL.Image import Image

from anomalib_inp.frame import CropBox
from anomalib_inp.pictures.gallery import gallery
from anomalib_inp.pictures.strip import draw_result
from anomalib_inp.preprocessing import crop_box_of
from anomalib_inp.scoring.memory import NormalMemory
from anomalib_inp.training.memory_fill import Example, MemoryFill

NAME = "depths.png"
HEIGHT = 128


class DepthPicture(Callback):
    """Draws ``depths.png`` into the folder of a training: a row for each depth, a column for each example.

    Args:
        memory_fill: What has filled the memory.
    """

    def __init__(self, memory_fill: MemoryFill) -> None:
        self.memory_fill = memory_fill

    @rank_zero_only
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, if depths were measured and pictures are wanted at all."""
        examples = self.memory_fill.examples
        if not examples or pl_module.visualizer is None:
            return
        memory, encoder = pl_module.model.head_of(NormalMemory), pl_module.model.network.encoder
        path = Path(trainer.default_root_dir) / NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_depths(examples, encoder.depth_names, memory, crop_box_of(pl_module.pre_processor)).save(path)


def draw_depths(examples: Sequence[Example], names: Sequence[str], memory: NormalMemory, crop_box: CropBox) -> Image:
    """Draw what each depth has seen of examples.

    Args:
        examples: Images that were made anomalous.
        names: Names of the depths.
        memory: The memory, whose depths are weighted.
        crop_box: The inspected part of the images.
    """
    strips = []
    for number, (name, weight, found) in enumerate(
        zip(names, memory.weights.tolist(), memory.average_precision.tolist(), strict=True)
    ):
        for example in examples:
            depth = example.maps[number]
            strip = draw_result(
                example.image,
                depth,
                gt_mask=example.mask,
                crop_box=crop_box,
                name=f"{name}: weight {weight:.2f}, AP {found:.2f}",
                vmax=max(1.0, float(depth.max())),
                height=HEIGHT,
            )
            strips.append(strip)
    return gallery(strips, columns=len(examples), title="Which depth sees what: pseudo-anomalies of the training")
