# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Pseudo-anomalies: foreign textures and pasted defects on normal images, with the mask of what was changed.

Everything random is drawn from torch's global generator: DataLoader seeds it differently in every worker and in every
epoch, and equally in two runs of one seed.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from anomalib.data.utils.generators.perlin import generate_perlin_noise
from PIL import Image
from skimage.filters import threshold_otsu
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import ColorJitter, Compose, RandomChannelPermutation
from torchvision.transforms.v2 import functional as T

from anomalib_inp.data.deep import read_tensor
from anomalib_inp.data.file_checks import DataError, check_headers
from anomalib_inp.files import image_files
from anomalib_inp.images import is_deep

TILES = 8
"""Rows and columns of the patches that another training image is shuffled in, where there are no textures."""

NOISE = 128
"""Side of the noise in pixels, which has 1 to 32 waves along each side."""

CHANGE_COLOURS = Compose([ColorJitter(brightness=0.5, contrast=0.5, saturation=0.5), RandomChannelPermutation()])
CHANGE_LIGHT = ColorJitter(brightness=0.2, contrast=0.2)
TURN = 180.0
SCALE = (0.7, 1.4)
"""Degrees, and the factor of the size, that a defect is turned and scaled by before it is pasted."""

MARGIN = 4
"""Pixels of its surroundings that a defect keeps, so that turning and scaling it draw in no black."""


class Defect(NamedTuple):
    """A real defect, cut out.

    Attributes:
        image: The defect with what surrounds it, ``(3, h, w)`` in [0, 1].
        mask: Where in it the defect is, ``(h, w)``, 0 or 1.
    """

    image: Tensor
    mask: Tensor


class PseudoAnomaly:
    """Turns normal images into anomalous ones (INP-Former++, pseudo-anomalies).

    The papers say: a Perlin mask, and a texture blended in. The numbers are ours.

    Args:
        textures: Files of texture images, see :func:`texture_files`; none makes textures of other training images,
            their patches shuffled and their colours changed.
        probability: Share of the images that become anomalous.
        blend: Least and largest share of the texture inside the mask.
        threshold: Perlin noise, in [-1, 1], above which the mask is.
        foreground: Keep to what differs from the border of the image, for objects on a plain background.
        defects: Real defects; every second anomaly is then one of them, changed and pasted.

    Raises:
        ValueError: A number outside its range.
    """

    def __init__(
        self,
        textures: Sequence[Path] = (),
        probability: float = 0.5,
        blend: tuple[float, float] = (0.2, 1.0),
        threshold: float = 0.5,
        foreground: bool = False,
        defects: Sequence[Defect] = (),
    ) -> None:
        if not 0 < probability <= 1:
            msg = f"The probability of a pseudo-anomaly must be above 0 and at most 1, got {probability}."
            raise ValueError(msg)
        if not (isinstance(blend, Sequence) and len(blend) == 2 and 0 < blend[0] <= blend[1] <= 1):
            msg = (
                f"The blend of a pseudo-anomaly must be two shares of the texture, 0 < least <= most <= 1, got {blend}."
            )
            raise ValueError(msg)
        if not -1 < threshold < 1:
            msg = f"The threshold of the Perlin noise must be between -1 and 1, got {threshold}."
            raise ValueError(msg)
        self.textures = list(textures)
        self.probability = probability
        self.blend = blend
        self.threshold = threshold
        self.foreground = foreground
        self.defects = list(defects)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Make a batch of normal images anomalous.

        Args:
            images: Normal images ``(B, 3, H, W)`` in [0, 1]; where there are no textures, those of one image come from
                another one of the batch, or from itself where there is no other.

        Returns:
            Images ``(B, 3, H, W)`` and the masks ``(B, H, W)`` of what was changed, 0 or 1; empty for images that stay
            normal.
        """
        changed, masks = images.clone(), images.new_zeros(len(images), *images.shape[-2:])
        for index, image in enumerate(images):
            if torch.rand(()) >= self.probability:
                continue
            allowed = foreground(image) if self.foreground else None
            if self.defects and torch.rand(()) < 0.5:
                layer, mask = paste(self.defects[_draw(len(self.defects))], image.shape[-2:])
            else:
                other = images[(index + 1 + _draw(max(1, len(images) - 1))) % len(images)]
                strength = self.blend[0] + (self.blend[1] - self.blend[0]) * torch.rand(())
                layer, mask = torch.lerp(image, self._texture(other), strength), perlin_mask(image, self.threshold)
            mask = mask if allowed is None else mask * allowed
            changed[index] = torch.lerp(image, layer, mask)
            masks[index] = mask > mask.max() / 2  # a thin defect is nowhere opaque
        return changed, masks

    def _texture(self, other: Tensor) -> Tensor:
        if not self.textures:
            return CHANGE_COLOURS(shuffle_patches(other))
        return CHANGE_COLOURS(read_texture(self.textures[_draw(len(self.textures))], list(other.shape[-2:])))


def read_texture(path: Path, size: list[int]) -> Tensor:
    """Read a texture at a height and width in pixels, ``(3, H, W)`` in [0, 1].

    Raises:
        DataError: It cannot be decoded.
    """
    try:
        with Image.open(path) as file:
            if is_deep(file):
                return T.resize(read_tensor(path), size, antialias=True)
            file.draft("RGB", (size[1], size[0]))  # a JPEG is decoded no larger than need be
            texture = T.pil_to_tensor(file.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:  # Pillow calls a broken PNG a syntax error
        msg = f"The texture {path} cannot be decoded: {error}. Replace or remove it; training can be resumed."
        raise DataError(msg) from error
    return T.to_dtype(T.resize(texture, size, antialias=True), scale=True)  # torch resizes bytes faster than floats


def texture_files(folder: Path) -> list[Path]:
    """List the texture images of a folder and its subfolders, such as the Describable Textures.

    Raises:
        DataError: There are none, or a file there is no image.
    """
    files = image_files(folder)
    if not files:
        msg = f"Expected a folder of texture images, such as the Describable Textures, but there are none in {folder}."
        raise DataError(msg)
    check_headers(dict.fromkeys(map(str, files), False))
    return files


def perlin_mask(image: Tensor, threshold: float) -> Tensor:
    """Draw a mask ``(H, W)`` of Perlin noise, turned by any angle; never empty before it is turned.

    The noise is smooth, so that it is drawn small and enlarged.
    """
    height, width = image.shape[-2:]
    noise = generate_perlin_noise(NOISE, NOISE, device=image.device)
    if noise.max() <= threshold:  # as anomalib does: stretch what is too flat
        low, high = noise.aminmax()
        noise = (noise - low) / (high - low).clamp(min=1e-6) * 2 - 1
    angle = 2 * math.pi * torch.rand(())
    cos, sin = angle.cos(), angle.sin()
    turn = torch.stack([cos, -sin, cos * 0, sin, cos, cos * 0]).view(1, 2, 3)
    grid = F.affine_grid(turn, [1, 1, height, width], align_corners=False)
    turned = F.grid_sample(noise[None, None], grid, padding_mode="reflection", align_corners=False)
    return (turned[0, 0] > threshold).to(image.dtype)


def shuffle_patches(image: Tensor) -> Tensor:
    """Shuffle the patches of an image ``(3, H, W)``; what does not fill a patch is mirrored from inside."""
    height, width = image.shape[-2:]
    rows, columns = max(1, height // TILES), max(1, width // TILES)
    tiles = image.unfold(1, rows, rows).unfold(2, columns, columns)  # (3, a, b, rows, columns)
    down, across = tiles.shape[1:3]
    order = torch.randperm(down * across)
    shuffled = tiles.flatten(1, 2)[:, order].unflatten(1, (down, across)).transpose(2, 3).flatten(3).flatten(1, 2)
    rest = (0, width - shuffled.shape[2], 0, height - shuffled.shape[1])
    return F.pad(shuffled.unsqueeze(0), rest, mode="reflect")[0]


def paste(defect: Defect, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Mirror, turn, scale and relight a defect and put it anywhere.

    Args:
        defect: The defect.
        size: Height and width of the image that it is put into.

    Returns:
        The defect on black ``(3, H, W)`` and its opacity ``(H, W)`` in [0, 1].
    """
    patch = torch.cat([CHANGE_LIGHT(defect.image), defect.mask.unsqueeze(0)])
    for axis in (1, 2):
        if torch.rand(()) < 0.5:
            patch = patch.flip(axis)
    scale = SCALE[0] * (SCALE[1] / SCALE[0]) ** float(torch.rand(()))
    patch = T.resize(patch, [max(1, round(side * scale)) for side in patch.shape[1:]], antialias=True)
    angle = TURN * (2 * float(torch.rand(())) - 1)
    patch = T.rotate(patch, angle, interpolation=T.InterpolationMode.BILINEAR, expand=True)
    patch = T.center_crop(patch, [min(side, most) for side, most in zip(patch.shape[1:], size, strict=True)])
    top, left = (_draw(most - side + 1) for side, most in zip(patch.shape[1:], size, strict=True))
    bottom, right = (most - side - start for side, most, start in zip(patch.shape[1:], size, (top, left), strict=True))
    whole = F.pad(patch, (left, right, top, bottom))
    return whole[:3], whole[3]


def cut_out(image: Tensor, mask: Tensor) -> Defect:
    """Cut a defect out of its image ``(3, H, W)``, by its mask ``(H, W)``, which must not be empty."""
    height, width = mask.shape
    rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
    down = slice(max(0, int(rows.min()) - MARGIN), min(height, int(rows.max()) + 1 + MARGIN))
    across = slice(max(0, int(columns.min()) - MARGIN), min(width, int(columns.max()) + 1 + MARGIN))
    return Defect(image[:, down, across].clone(), mask[down, across].to(image.dtype))


def foreground(image: Tensor) -> Tensor:
    """Find what differs from the border of an image ``(3, H, W)``, by Otsu's threshold: ``(H, W)``, 0 or 1."""
    border = torch.cat([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], dim=1)
    distance = (image - border.median(dim=1).values.view(3, 1, 1)).abs().amax(dim=0)
    return (distance >= threshold_otsu(distance.numpy())).to(image.dtype)


def _draw(count: int) -> int:
    """Draw a number from 0 to ``count - 1``."""
    return int(torch.randint(count, ()))
