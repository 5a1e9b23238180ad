# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Fills a memory with normal tokens of the training images, and weighs its depths, before the first step."""

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from anomalib.data import AnomalibDataset
from lightning import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng
from pandas import DataFrame, factorize
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_average_precision
from torchvision.tv_tensors import Mask

from anomalib_inp.data.file_checks import DataError
from anomalib_inp.data.pseudo_anomaly import PseudoAnomaly
from anomalib_inp.files import readable
from anomalib_inp.scoring.memory import NormalMemory, NormalTokens, nearest_distances, weights_of
from anomalib_inp.training.feature_cache import CachedFeatures, encode, encode_batch, transform_of

Depths = Literal["auto", "equal"] | list[float]

MEMORY_SIZE = 2500
"""Tokens that are remembered at each depth, where nothing else is asked for."""
CANDIDATES = 4
"""Tokens drawn at random for each that is remembered: more cost time and change nothing (docs/memory.md)."""
MEASURED = 32
"""Images that depths are measured on, at most."""
DRAWS = 2
"""Pseudo-anomalies of each: with one, the weights change from seed to seed by a fifth."""
PIXEL_STRIDE = 2
"""Of a map that is upsampled from patches and blurred, every second pixel in each direction holds what all hold."""
BATCH = 8
EXAMPLES = 2
"""Images that are shown."""


class Example(NamedTuple):
    """What each depth sees of an image that was made anomalous.

    Attributes:
        image: The image, uint8 ``(H, W, 3)``.
        mask: What was changed ``(H, W)``.
        maps: Map of each depth, in standard deviations of normal images ``(K, h, w)``.
    """

    image: np.ndarray
    mask: np.ndarray
    maps: np.ndarray


class Others(NamedTuple):
    """What is remembered, for comparing a training image with that of all others.

    Attributes:
        images: The image that each token is of ``(K, M)``.
        tokens: What is remembered ``(K, M, D + 1)``.
        numbers: Number of each training image; all views of an image have the same.
        num_further: How many of the depths are single blocks, the first ones.
    """

    images: Tensor
    tokens: Tensor
    numbers: Tensor
    num_further: int

    def distances(self, tokens: Tensor, place: int) -> Tensor:
        """Compare tokens ``(K, N, D)`` of a training image with what is remembered of all others: ``(K, 2, N)``."""
        other = self.images != self.numbers[place]
        depths = enumerate(zip(tokens.float(), self.tokens.float(), other, strict=True))
        return torch.stack(
            [nearest_distances(each, known[of], depth >= self.num_further) for depth, (each, known, of) in depths]
        )


class MemoryFill:
    """Fills a memory in one pass over the training images, and weighs its depths by pseudo-anomalies.

    How well a depth sees anomalies is measured on training images that are made anomalous, each compared with what is
    remembered of all others, by the average precision of the pixels.

    Args:
        size: Tokens to remember at each depth.
        depths: How depths are weighted: ``auto`` by pseudo-anomalies, ``equal``, or a weight for each, from shallow to
            deep.

    Attributes:
        examples: What each depth has seen of some images that were made anomalous, once it was measured.

    Raises:
        ValueError: A size below 1, or weights that are negative or all 0.
    """

    def __init__(self, size: int, depths: Depths) -> None:
        if size < 1:
            msg = f"memory_size must be at least 1 token at each depth, got {size}."
            raise ValueError(msg)
        if isinstance(depths, str):
            if depths not in {"auto", "equal"}:
                msg = f"depths must be auto, equal or a list of weights, got {depths!r}."
                raise ValueError(msg)
        elif not all(weight >= 0 for weight in depths) or not 0 < sum(depths) < math.inf:
            msg = f"The weights of the depths must be finite and not negative, nor all 0, got {list(depths)}."
            raise ValueError(msg)
        self.size = size
        self.depths = depths
        self.examples: list[Example] = []

    def __getstate__(self) -> dict[str, Any]:
        """Leave the pictures out of a model that is pickled (``to_torch``)."""
        return {**self.__dict__, "examples": []}

    @torch.no_grad()
    def __call__(
        self,
        memory: NormalMemory,
        encoder: nn.Module,
        trainer: Trainer,
        pl_module: LightningModule,
        images: AnomalibDataset,
        cached: CachedFeatures | None,
        pseudo_anomaly: PseudoAnomaly,
    ) -> None:
        """Fill a memory.

        Args:
            memory: What is filled.
            encoder: Delivers tokens at several depths, and names them (``depth_names``).
            trainer: The trainer.
            pl_module: The model.
            images: The training images.
            cached: What a cache holds of them; ``None`` encodes them.
            pseudo_anomaly: What makes images anomalous; here, each one is.

        Raises:
            DataError: There is a single training image, which cannot be compared with others; or there are weights for
                another number of depths.
        """
        names = encoder.depth_names
        if not isinstance(self.depths, str) and len(self.depths) != len(names):
            msg = (
                f"depths needs a weight for each of {len(names)} depths ({', '.join(names)}), got {list(self.depths)}."
            )
            raise DataError(msg)
        if len(images) < 2:
            msg = (
                f"A memory compares the training images with each other, but there is {len(images)}. For so few: "
                "--data MultiCategory --data.shots 1 makes 22 views of each image."
            )
            raise DataError(msg)
        paths = images.samples.image_path
        number = torch.from_numpy(_numbers(images.samples))
        measured = torch.linspace(0, len(images) - 1, min(MEASURED, len(images))).round().long().tolist()
        with isolate_rng():  # the training draws the same numbers, with or without a memory
            seed = int(torch.randint(2**31, ()))
            encoded = _read(images, cached) if cached else encode(trainer, pl_module, encoder, images)
            normal, kept = self._draw(encoded, number, measured, seed)
            others = Others(memory.remember(normal, self.size), memory.tokens, number, len(encoder.further_layers))
            distances = torch.stack([others.distances(kept[place], place) for place in measured])  # (images, K, 2, N)
            mean, spread = distances.mean(dim=(0, 3)), distances.std(dim=(0, 3))
            found = torch.full([len(names)], torch.nan)
            if self.depths == "auto":
                torch.manual_seed(seed)  # reading images draws numbers, and a cache reads none
                cosine = distances[:, :, 0]
                found = self._measure(trainer, pl_module, encoder, images, cosine, measured, others, pseudo_anomaly)
        if self.depths == "auto":
            weights = weights_of(found)
        elif self.depths == "equal":
            weights = torch.full([len(names)], 1 / len(names))
        else:
            weights = torch.tensor([weight / sum(self.depths) for weight in self.depths])
        memory.weigh(mean, spread, weights, found)
        memory.to(pl_module.device)
        views = f"{len(images)} views of {paths.nunique()}" if paths.nunique() < len(images) else f"{len(images)}"
        rank_zero_info(
            f"Memory: {memory.tokens.shape[1]} tokens of {views} images at each of {len(names)} depths, "
            f"{readable(memory.tokens.nbytes)}. {memory.describe(names)}"
        )

    def _draw(
        self, encoded: Iterator[Tensor], number: Tensor, measured: Sequence[int], seed: int
    ) -> tuple[NormalTokens, dict[int, Tensor]]:
        """Draw as many tokens of each image, and keep all of those that are measured on."""
        each = math.ceil(CANDIDATES * self.size / len(number))
        generator = torch.Generator().manual_seed(seed)
        drawn, of_image, kept = [], [], {}
        place = 0
        for batch in encoded:
            for tokens in batch.float():  # (K, N, D)
                chosen = torch.randperm(tokens.shape[1], generator=generator)[:each]
                drawn.append(tokens[:, chosen])
                of_image.append(number[place].expand(len(chosen)))
                if place in measured:
                    kept[place] = tokens.half()
                place += 1
        return NormalTokens(torch.cat(drawn, dim=1), torch.cat(of_image)), kept

    def _measure(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        encoder: nn.Module,
        images: AnomalibDataset,
        normal: Tensor,
        measured: Sequence[int],
        others: Others,
        pseudo_anomaly: PseudoAnomaly,
    ) -> Tensor:
        """Average precision of each depth ``(K,)`` on images made anomalous, and on the same images as they are.

        By the cosine distance alone, ``normal`` ``(images, K, N)``: pasted textures are long tokens or short ones, and
        defects need not be.
        """
        transform, smoothing = transform_of(pl_module), pl_module.model.smoothing
        maps, masks = [], []
        shown: list[tuple[Tensor, Tensor]] = []
        pseudo_anomaly = copy.copy(pseudo_anomaly)
        pseudo_anomaly.probability = 1.0
        places_of_draws, normal_of_draws = list(measured) * DRAWS, normal.repeat(DRAWS, 1, 1)
        for first in range(0, len(places_of_draws), BATCH):
            places = places_of_draws[first : first + BATCH]
            batch = images.collate_fn([images[place] for place in places])
            anomalous = _made_anomalous(pseudo_anomaly, batch.image)
            shown += list(zip(*anomalous, strict=True))[: EXAMPLES - len(shown)]
            changed, mask = transform(*anomalous)
            features = encode_batch(trainer, encoder, changed).full_precision()
            encoded = torch.stack(features.depths, dim=1).cpu()  # (B, K, N, D)
            found = torch.stack([others.distances(*each)[:, 0] for each in zip(encoded, places, strict=True)])
            for distances in (found, normal_of_draws[first : first + BATCH]):  # (B, K, N)
                readings = distances.flatten(0, 1).unflatten(1, features.grid)
                smooth = smoothing.cpu()(readings, tuple(changed.shape[-2:]))[:, 0]
                maps.append(smooth[:, ::PIXEL_STRIDE, ::PIXEL_STRIDE].unflatten(0, distances.shape[:2]))
            mask = F.interpolate(mask.unsqueeze(1).float(), size=smooth.shape[-2:], mode="nearest")[:, 0].bool()
            mask = mask[:, ::PIXEL_STRIDE, ::PIXEL_STRIDE]
            masks += [mask, torch.zeros_like(mask)]
        smoothing.to(pl_module.device)
        truth = torch.cat(masks).flatten().int()
        mean, spread = (getattr(normal, name)(dim=(0, 2)).view(-1, 1, 1) for name in ("mean", "std"))
        self.examples = [
            Example(_pixels(image), mask.bool().numpy(), ((seen - mean) / spread).numpy())
            for (image, mask), seen in zip(shown, maps[0], strict=False)
        ]
        precision = [binary_average_precision(depth.flatten(), truth) for depth in torch.cat(maps).unbind(dim=1)]
        return torch.stack(precision).nan_to_num()  # NaN where a crop holds nothing of what was changed


def _numbers(samples: DataFrame) -> np.ndarray:
    """Number the images ``(images,)``: what has the same number is not compared with each other.

    All views of an image go together, but for the one image of a category that has no other: its views are compared,
    since images of another category say nothing of it.
    """
    category = samples.category if "category" in samples else samples.image_path.str.len() * 0
    alone = samples.image_path.groupby(category).transform("nunique") == 1
    names = samples.image_path.where(~alone, samples.image_path + " " + samples.index.astype(str))
    return factorize(names)[0]


def _read(images: AnomalibDataset, cached: CachedFeatures) -> Iterator[Tensor]:
    """Read the tokens of the images from a cache, in their order, batch by batch ``(B, K, N, D)``."""
    for first in range(0, len(images), BATCH):
        yield cached.depths(list(range(first, min(first + BATCH, len(images)))))


def _made_anomalous(pseudo_anomaly: PseudoAnomaly, images: Tensor) -> tuple[Tensor, Mask]:
    changed, masks = pseudo_anomaly(images.as_subclass(Tensor))
    return changed, Mask(masks)


def _pixels(image: Tensor) -> np.ndarray:
    return (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
