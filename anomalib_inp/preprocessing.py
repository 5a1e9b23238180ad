# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Look at the values, resize, crop, normalise: the same arithmetic in training and in the exported graph."""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
from anomalib.data import ImageBatch
from anomalib.data.transforms import ExportableCenterCrop
from anomalib.pre_processing import PreProcessor
from lightning import LightningModule, Trainer
from torch import Tensor
from torchvision.transforms.v2 import (
    CenterCrop,
    Compose,
    GaussianBlur,
    Grayscale,
    Identity,
    Normalize,
    Resize,
    ToDtype,
    ToImage,
    ToPureTensor,
    Transform,
)

from anomalib_inp.frame import WHOLE_IMAGE, CropBox, as_pair
from anomalib_inp.images import WHITE, channels_first, check_values
from anomalib_inp.outputs import TrainingBatch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

KEEP_PLACES = (Normalize, ToDtype, ToImage, ToPureTensor, Grayscale, GaussianBlur, Identity)
"""Transforms that leave every pixel in its place."""


class InpPreProcessor(PreProcessor):
    """Resizes the whole image, optionally keeps its centre, and normalises with ImageNet statistics.

    anomalib's own pre-processor drops the antialiasing on export, so its exported model scores an image differently
    from its Engine. This one exports the transform that it trains with.

    Args:
        image_size: Height and width in pixels that every image is resized to (bilinear, antialiased); the aspect ratio
            is not kept.
        crop_size: Height and width in pixels of the centre that is inspected; ``None`` inspects the whole image.

    Raises:
        ValueError: The crop is larger than the resized image, or a size is not positive.
    """

    def __init__(self, image_size: tuple[int, int], crop_size: tuple[int, int] | None = None) -> None:
        if min(image_size) < 1 or (crop_size is not None and min(crop_size) < 1):
            msg = f"Sizes must be positive, got image_size {image_size} and crop_size {crop_size}."
            raise ValueError(msg)
        if crop_size is not None and (crop_size[0] > image_size[0] or crop_size[1] > image_size[1]):
            msg = (
                f"The crop must fit into the resized image, got crop_size {crop_size} and image_size {image_size} "
                "(height, width). Enlarge image_size, or leave crop_size out to inspect the whole image."
            )
            raise ValueError(msg)
        crop = [] if crop_size is None else [CenterCrop(crop_size)]
        super().__init__(Compose([Resize(image_size, antialias=True), *crop, Normalize(IMAGENET_MEAN, IMAGENET_STD)]))
        self.export_transform = _exportable(self.transform)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels that images are resized to."""
        return as_pair(self._find(Resize).size, "image_size")

    @property
    def crop_size(self) -> tuple[int, int]:
        """Height and width in pixels of what the model sees."""
        crop = self._find(CenterCrop)
        return self.image_size if crop is None else as_pair(crop.size, "crop_size")

    @property
    def crop_box(self) -> CropBox:
        """The inspected part of the image, in fractions of its width and height."""
        return crop_box_of(self)

    @property
    def training_transform(self) -> Transform:
        """What is done to the images of a training."""
        return self.transform

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: ImageBatch | TrainingBatch,
        batch_idx: int,
    ) -> None:
        """Transform the images of a batch."""
        del trainer, pl_module, batch_idx
        for images in TrainingBatch.of(batch).images:
            images.image, images.gt_mask = self.training_transform(images.image, images.gt_mask)

    def load_checkpoint_config(self, config: dict[str, Any]) -> None:
        """Restore the transform that a checkpoint was trained with."""
        super().load_checkpoint_config(config)
        self.export_transform = _exportable(self.transform)

    def _find(self, kind: type[Transform]) -> Any:
        transforms = self.transform.transforms if isinstance(self.transform, Compose) else [self.transform]
        return next((transform for transform in transforms if isinstance(transform, kind)), None)


class TilePreProcessor(InpPreProcessor):
    """Normalises whole images, resized or at their native size; and the tiles of them that are trained on.

    Args:
        tile_size: Height and width of a tile in pixels.
        image_size: Height and width in pixels that every image is resized to; ``None`` leaves it as it is.
    """

    def __init__(self, tile_size: tuple[int, int], image_size: tuple[int, int] | None = None) -> None:
        super().__init__(image_size or tile_size)
        self.tile_size = tile_size
        resize = [] if image_size is None else [self._find(Resize)]
        self.transform = Compose([*resize, self._find(Normalize)])
        self.export_transform = _exportable(self.transform)

    @property
    def resize(self) -> Transform | None:
        """What brings a whole image to the size that is cut; ``None`` leaves it as it is."""
        return self._find(Resize)

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """Height and width that images are resized to; ``None`` for their own."""
        return None if self.resize is None else as_pair(self.resize.size, "image_size")

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels of what the model sees at a time."""
        return self.tile_size

    @property
    def crop_size(self) -> tuple[int, int]:
        """Height and width in pixels of what the model sees at a time."""
        return self.tile_size

    @property
    def training_transform(self) -> Transform:
        """Normalise: tiles are cut when they are read."""
        return self._find(Normalize)

    def _transform_batch(
        self, trainer: Trainer, pl_module: LightningModule, batch: ImageBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Transform the images of a batch; at their native size where they lie: large ones need half the memory."""
        del trainer, pl_module, batch_idx, dataloader_idx
        if self.resize is None:
            batch.image = Normalize(IMAGENET_MEAN, IMAGENET_STD, inplace=True)(batch.image)
        else:
            batch.image, batch.gt_mask = self.transform(batch.image, batch.gt_mask)

    on_validation_batch_start = on_test_batch_start = on_predict_batch_start = _transform_batch

    def checkpoint_config(self) -> dict[str, Any]:
        """Note the size of the tiles beside the transform."""
        return {**super().checkpoint_config(), "tile_size": list(self.tile_size)}


def crop_box_of(pre_processor: PreProcessor | None) -> CropBox:
    """Find the part of the image that a pre-processor leaves, in fractions of its width and height.

    Args:
        pre_processor: Ours, another, or none, which leaves the whole image.

    Raises:
        ValueError: Its transform moves pixels in a way that tells no such part: maps could not be laid over the image.
    """
    size: tuple[int, int] | None = None  # of what the image has become, where the transform says
    box = WHOLE_IMAGE
    for step in steps_of(getattr(pre_processor, "transform", None)):
        if isinstance(step, Resize):
            sides = np.ravel(step.size).tolist()
            size = (sides[0], sides[1]) if len(sides) == len(("height", "width")) else None
        elif isinstance(step, CenterCrop | ExportableCenterCrop) and size is not None:
            crop = as_pair(step.size, "size")
            if crop[0] > size[0] or crop[1] > size[1]:
                msg = f"The pre-processor crops {crop} out of {size} (height, width), which pads. Enlarge the Resize."
                raise ValueError(msg)
            box, size = box.within(CropBox.centre(size, crop)), crop
        elif not isinstance(step, KEEP_PLACES):
            msg = (
                f"Where the pixels of an image lie after the pre-processor's {type(step).__name__} cannot be told, so "
                "maps could not be laid over it. Use Resize to height and width, CenterCrop after it, and Normalize, "
                "or image_size and crop_size of the model."
            )
            raise ValueError(msg)
    return box


def steps_of(transform: Any) -> Iterator[Any]:
    """List the steps of a transform, those of nested ones too."""
    if isinstance(transform, Compose):
        for step in transform.transforms:
            yield from steps_of(step)
    elif transform is not None:
        yield transform


def as_images(images: Tensor) -> Tensor:
    """Bring a tensor to ``(B, 3, H, W)`` in [0, 1], as :func:`anomalib_inp.images.as_batch` does an array.

    Raises:
        ValueError: It is no image.
    """
    batch, dtype = channels_first(images), str(images.dtype).removeprefix("torch.")
    if dtype in WHITE:
        return batch.float() * (1 / WHITE[dtype])
    check_values(dtype, batch)
    return batch


def _exportable(transform: Transform) -> Transform:
    """Copy the transform with a centre crop that survives tracing; the antialiasing stays."""
    transform = copy.deepcopy(transform)
    if isinstance(transform, Compose):
        transform.transforms = [
            ExportableCenterCrop(step.size) if isinstance(step, CenterCrop) else step for step in transform.transforms
        ]
    return transform
