# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""INP-Former as an anomalib model."""

from pathlib import Path
from typing import Any, ClassVar

from anomalib.data import ImageBatch
from anomalib.models.components import AnomalibModule
from torch import Tensor

from anomalib_inp.checkpoints.published import load_trained, take_apart
from anomalib_inp.encoder.weights import read_weights
from anomalib_inp.models.encoder_model import InpModel
from anomalib_inp.models.steps import num_images, source_of
from anomalib_inp.outputs import PatchFeatures
from anomalib_inp.training.recipe import SHORT, Recipe


class InpFormer(InpModel, AnomalibModule):
    """INP-Former (CVPR 2025): detects what an image's own intrinsic normal prototypes cannot reconstruct.

    By default the whole image is inspected; the paper's protocol is ``image_size=448, crop_size=392``. Training takes
    200 epochs unless ``--trainer.max_epochs`` or ``--trainer.max_steps`` says otherwise.

    Example:
        >>> from anomalib.data import MVTecAD
        >>> from anomalib.engine import Engine
        >>> from anomalib_inp import InpFormer
        >>> Engine().train(InpFormer(), datamodule=MVTecAD(category="screw"))  # doctest: +SKIP
    """

    recipes: ClassVar = {"published": Recipe(), "short": SHORT}

    def training_step(self, batch: ImageBatch | PatchFeatures, *_: Any) -> Tensor:
        """Reconstruct a batch of normal images."""
        terms = self.reconstruction_terms(source_of(batch))
        self.log_terms(terms, num_images(batch))
        return terms["loss"]

    @classmethod
    def from_reference(cls, path: str | Path, **kwargs: Any) -> "InpFormer":
        """Build the model of a published checkpoint; all sizes are read off the file.

        Args:
            path: State dict of the reference code, ``model.pth``; it holds the encoder too.
            **kwargs: Other arguments of the model. Sizes default to the paper's protocol, 448 cropped to 392.

        Raises:
            FileNotFoundError: No such file.
            ValueError: A key is missing, left over or of another shape; the message names it.
        """
        reference = take_apart(read_weights(path))
        protocol = {"image_size": 448, "crop_size": 392, "encoder_weights": str(path)}
        model = cls(**{**protocol, **reference.arguments, **kwargs})
        load_trained(model.model.network, reference.trained)
        return model
