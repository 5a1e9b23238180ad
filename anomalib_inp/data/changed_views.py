# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Training images in other light and with noise."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from anomalib.data import AnomalibDataset, ImageItem
from pandas import DataFrame
from torch import Tensor
from torchvision.transforms.v2 import functional as T
from torchvision.tv_tensors import Image
from typing_extensions import TypedDict

NUM_VIEWS = 4
"""Views of each image where images are looked at once, the image itself among them."""


class AugmentSettings(TypedDict, total=False):
    """What is changed in training images, as a model is told of it; what is left out stays as it is.

    noise: largest standard deviation of Gaussian noise, of values in [0, 1]. light: largest change of the light, as a
    share of it: of the whole image, and beside that from its middle to its sides.
    """

    noise: float
    light: float


class Augment(NamedTuple):
    """Changes light and adds noise at random.

    Attributes:
        noise: Largest standard deviation of the noise, of values in [0, 1].
        light: Largest change of the light, as a share of it.
    """

    noise: float = 0.0
    light: float = 0.0

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Augment":
        """Read the settings of a model.

        Raises:
            ValueError: An unknown setting, one that is no number from 0 to 1, or none.
        """
        if not isinstance(settings, Mapping):
            msg = f"augment must be settings, for example {{noise: 0.02, light: 0.3}}, got {settings!r}."
            raise ValueError(msg)  # noqa: TRY004 - a choice of the user, which the command line shows as one line
        if unknown := settings.keys() - set(cls._fields):
            msg = f"augment has {' and '.join(cls._fields)}, got {', '.join(sorted(map(str, unknown)))}."
            raise ValueError(msg)
        for name, value in settings.items():
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float | np.integer | np.floating)
                or not 0 <= value < 1
            ):
                msg = f"augment: {name} must be a number from 0 to below 1, got {value!r}."
                raise ValueError(msg)
        if not any(settings.values()):
            msg = "augment changes nothing: give noise, light or both, for example {noise: 0.02, light: 0.3}."
            raise ValueError(msg)
        return cls(**settings)

    def __call__(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Change an image ``(C, H, W)`` with values in [0, 1]; ``None`` draws from PyTorch's own generator."""
        common, across, heading, noise = torch.rand(4, generator=generator).tolist()
        rows, columns = (torch.linspace(-1, 1, side) for side in image.shape[-2:])
        direction = 2 * math.pi * heading
        slope = (math.sin(direction) * rows[:, None] + math.cos(direction) * columns) / math.sqrt(2)  # in [-1, 1]
        light = 1 + self.light * ((2 * common - 1) + across * slope)
        drawn = torch.randn(image.shape, generator=generator)
        return (image * light + self.noise * noise * drawn).clamp(0, 1)


class ChangedViews(AnomalibDataset):
    """Training images in other light and with noise.

    Args:
        images: The training images.
        augment: What is changed.
        anew: Whether each image is changed in another way each time that it is read; otherwise there are 4 views of
            each, the image as it is and three others, always the same ones.
    """

    def __init__(self, images: AnomalibDataset, augment: Augment, anew: bool = True) -> None:
        super().__init__(images.augmentations)
        self.images = images
        self.augment = augment
        self.anew = anew
        views = 1 if anew else NUM_VIEWS
        samples = images.samples.loc[images.samples.index.repeat(views)].reset_index(drop=True)
        samples["source"], samples["seed"] = np.arange(len(samples)) // views, np.arange(len(samples))
        if not anew:
            samples["change"] = ["" if number % views == 0 else str(tuple(augment)) for number in range(len(samples))]
        samples.attrs = images.samples.attrs
        self.samples: DataFrame = samples  # which sorts them by their path

    def __getitem__(self, index: int) -> ImageItem:
        """Read a view."""
        view = self.samples.iloc[index]
        item = self.images[int(view.source)]
        generator = None if self.anew else torch.Generator().manual_seed(int(view.seed))
        if self.anew or view.change:
            item.image = Image(self.augment(T.to_dtype(item.image, torch.float32, scale=True), generator))
        return item
