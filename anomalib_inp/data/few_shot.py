# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Few-shot training: the views that a handful of normal images are multiplied into."""

import torch
from anomalib.data import AnomalibDataset, ImageItem
from kornia.geometry.transform import rotate
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as T
from torchvision.tv_tensors import Image, Mask

from anomalib_inp.data.deep import with_deep_images
from anomalib_inp.frame import centre_offset
from anomalib_inp.preprocessing import IMAGENET_MEAN, IMAGENET_STD, InpPreProcessor

ROTATIONS = (-45.0, -33.75, -22.5, -11.25, 11.25, 22.5, 33.75, 45.0)
"""Degrees; a positive angle turns the content counter-clockwise."""

TRANSLATIONS = tuple((a * step, b * step) for step in (0.2, 0.1) for a, b in ((1, 1), (-1, 1), (-1, -1), (1, -1)))
"""To the left and up, in half sides: 0.2 moves by 10 % of the side."""

QUARTER_TURNS = (90.0, 180.0, 270.0)
"""Degrees, counter-clockwise."""

GREY_WEIGHTS = (0.299, 0.587, 0.114)
"""Red, green and blue; the reference applies them to normalised values."""

NUM_VIEWS = 1 + len(ROTATIONS) + len(TRANSLATIONS) + 2 + len(QUARTER_TURNS)


def few_shot_views(image: Tensor) -> Tensor:
    """Multiply one normal image into the views that few-shot training uses (reference, few-shot training).

    The published few-shot numbers come from 1, 2 or 4 normal images per category, each with all of these views. The
    geometry acts on the normalised crop; what comes in from outside is its mirror image.

    The reference knows square images only. On others every view keeps the image's size, translations move by the same
    fraction of each side, the rotations by up to 45 degrees also stretch (they turn coordinates that run from -1 to 1
    along both sides), and the turns by 90 and 270 degrees keep their scale, so that what leaves the frame is lost.

    Args:
        image: Normalised crop ``(3, H, W)``; ``H`` and ``W`` are at least 2 pixels.

    Returns:
        Views ``(22, 3, H, W)``: the image itself, 8 rotations, 8 translations, horizontal mirror image, grey image, and
        turns by 90, 180 and 270 degrees.

    Raises:
        ValueError: The image is not one image with three channels.
    """
    if image.ndim != 3 or image.shape[0] != 3:
        msg = f"Few-shot views are made of one image with three channels, (3, H, W), got {tuple(image.shape)}."
        raise ValueError(msg)
    moves = image.new_tensor([[[1, 0, a], [0, 1, b]] for a, b in TRANSLATIONS])
    maps = torch.cat([_rotations(image.new_tensor(ROTATIONS)), moves])
    copies = image.expand(len(maps), -1, -1, -1)
    grid = F.affine_grid(maps, list(copies.shape), align_corners=False)
    moved = F.grid_sample(copies, grid, mode="bilinear", padding_mode="reflection", align_corners=False)

    mirrored = image.flip(-1)
    grey = (image * image.new_tensor(GREY_WEIGHTS).view(3, 1, 1)).sum(dim=0).expand_as(image)

    copies = image.expand(len(QUARTER_TURNS), -1, -1, -1)
    turned = rotate(copies, image.new_tensor(QUARTER_TURNS), padding_mode="reflection")
    return torch.cat([torch.stack([image]), moved, torch.stack([mirrored, grey]), turned])


def _rotations(degrees: Tensor) -> Tensor:
    """Where the pixels of rotated images come from, as ``affine_grid`` takes it: ``(K,)`` -> ``(K, 2, 3)``."""
    angle = torch.deg2rad(degrees)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return torch.stack([cos, -sin, zero, sin, cos, zero], dim=1).unflatten(1, (2, 3))


class FewShotViews(AnomalibDataset):
    """All views of a few normal images, made once.

    The views are images that the pre-processor turns into what ``few_shot_views`` makes of the normalised crop: they
    have its ``image_size``, and around the crop, which is all that is inspected, the nearest pixels are repeated.

    Args:
        images: The normal images.
        pre_processor: The pre-processor of the model.
    """

    def __init__(self, images: AnomalibDataset, pre_processor: InpPreProcessor) -> None:
        super().__init__(images.augmentations)
        self.images = images = with_deep_images(images)
        crops = (pre_processor.transform(images[index].image) for index in range(len(images)))
        self.views = torch.cat([few_shot_views(crop) for crop in crops])
        mean, std = (self.views.new_tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        self.views.mul_(std).add_(mean)
        self.image_size, self.crop_box = pre_processor.image_size, pre_processor.crop_box
        samples = images.samples.loc[images.samples.index.repeat(NUM_VIEWS)].reset_index(drop=True)
        samples["view"] = range(len(samples))
        samples.attrs = images.samples.attrs
        self.samples = samples
        rank_zero_info(
            f"Few-shot: {len(images)} images as {NUM_VIEWS} views each, {self.views.nbytes / 2**30:.2f} GiB of memory."
        )

    def fits(self, pre_processor: InpPreProcessor) -> bool:
        """Tell whether these are the views of a model with this pre-processor."""
        return (self.image_size, self.crop_box) == (pre_processor.image_size, pre_processor.crop_box)

    def __getitem__(self, index: int) -> ImageItem:
        """Read a view."""
        place = self.samples.iloc[index]
        view = self.views[place["view"]]
        (height, width), (rows, columns) = self.image_size, view.shape[-2:]
        top, left = centre_offset(self.image_size, (rows, columns))  # as the crop is cut out
        image = T.pad(view, [left, top, width - columns - left, height - rows - top], padding_mode="edge")
        return ImageItem(
            image=Image(image),
            gt_label=torch.tensor(0),
            gt_mask=Mask(torch.zeros(self.image_size, dtype=torch.bool)),
            image_path=place.image_path,
        )
