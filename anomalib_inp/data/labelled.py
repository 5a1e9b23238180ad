# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""A few real anomalous images with masks, for semi-supervised training; what is trained on is never tested on."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anomalib.data import AnomalibDataset
from anomalib.data.utils import LabelName, read_mask
from lightning import LightningDataModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from pandas import DataFrame
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as T

from anomalib_inp.data.changed_views import ChangedViews
from anomalib_inp.data.deep import read_tensor
from anomalib_inp.data.file_checks import DataError, check_headers
from anomalib_inp.data.pseudo_anomaly import Defect, cut_out
from anomalib_inp.data.quirks import mask_files
from anomalib_inp.data.tile_views import TileViews
from anomalib_inp.files import file_digest, first_few, image_files

HELD_OUT = "held_out_samples"
"""Attribute of a data set: the images that were taken out of it."""


class LabelledAnomalies:
    """Finds the labelled anomalies of a training and takes them out of the images that are tested and validated on.

    Args:
        source: How many anomalous test images of each category to draw; or a folder with the subfolders ``images`` and
            ``masks``, in which ``images/NAME.png`` belongs to ``masks/NAME.png`` or ``masks/NAME_mask.png``; ``None``
            for none.
        seed: Seed of the draw.

    Attributes:
        digests: Size and content of the files that were trained on, by their path below the root of the data; a
            checkpoint keeps it, so that a later test leaves them out as well, whatever they are called there.
        defects: The defects of these images.

    Raises:
        ValueError: Fewer than one image, or a negative seed.
    """

    def __init__(self, source: int | str | None = None, seed: int = 0) -> None:
        if isinstance(source, Integral) and source < 1:
            msg = f"labelled_anomalies must be a number of images, at least 1, or a folder, got {source}."
            raise ValueError(msg)
        if seed < 0:
            msg = f"labelled_seed must not be negative, got {seed}."
            raise ValueError(msg)
        self.source = source
        self.seed = seed
        self.digests: dict[str, str] = {}
        self.defects: list[Defect] = []

    def __getstate__(self) -> dict[str, Any]:
        """Leave the pixels of the defects out of a model that is pickled (``to_torch``)."""
        return {**self.__dict__, "defects": []}

    def take_out(self, data: LightningDataModule) -> None:
        """Take what was trained on out of the test and validation images, and put back what another model took out."""
        for name in ("test_data", "val_data"):
            dataset = getattr(data, name, None)
            if not isinstance(dataset, AnomalibDataset) or not (self.digests or hasattr(dataset, HELD_OUT)):
                continue
            samples = _all_samples(dataset)
            trained = samples.image_path.map(self._was_trained_on).to_numpy(dtype=bool)
            dataset.samples = samples[~trained]
            setattr(dataset, HELD_OUT, samples[trained])
            if trained.any():
                rank_zero_info(f"{trained.sum()} labelled anomalies are left out of {name}.")

    def note(self, checkpoint: dict[str, Any]) -> None:
        """Note in a checkpoint what was trained on."""
        checkpoint["labelled_anomalies"] = dict(self.digests)

    def recall(self, checkpoint: Mapping[str, Any], trainer: Trainer | None) -> None:
        """Take what a checkpoint was trained on out of what is tested, if something is."""
        trained_on = dict(checkpoint.get("labelled_anomalies", {}))
        # A training that is resumed with another draw has been trained on both.
        resumed = trainer is not None and trainer.training
        self.digests = trained_on | (self.digests if resumed else {})
        if trainer is not None and trainer.datamodule is not None:
            self.take_out(trainer.datamodule)

    def find(self, data: LightningDataModule) -> None:
        """Find the images of a data module, and cut their defects out; :meth:`take_out` comes next.

        Raises:
            DataError: There are too few, or one has no mask or an empty one.
        """
        source = self.source
        if source is None:
            return
        if not len(data.train_data):
            msg = "There are no training images that the defects of labelled anomalies could be pasted onto."
            raise DataError(msg)
        drawn = list(_drawn(data, source, self.seed) if isinstance(source, Integral) else _of_folder(Path(str(source))))
        missing = [str(image) for image, masks in drawn if not masks]
        if missing:
            msg = (
                f"Labelled anomalies need masks, because only their defects are trained on: no mask for "
                f"{first_few(missing)}."
            )
            raise DataError(msg)
        check_headers({str(path): path != image for image, masks in drawn for path in (image, *masks)})
        size = _size_trained_on(data.train_data)
        read = {image: _read(image, masks, size) for image, masks in drawn}
        empty = [str(image) for image, (_, mask) in read.items() if not mask.any()]
        if empty:
            msg = f"The masks of labelled anomalies must mark a defect, but those of {first_few(empty)} are empty."
            raise DataError(msg)
        self.defects = [cut_out(*pair) for pair in read.values()]
        # A model that is trained once more has been trained on both draws.
        self.digests |= {_below(image, getattr(data, "root", None)): file_digest(image) for image in read}
        rank_zero_info("Labelled anomalies, trained on and not tested on: " + ", ".join(sorted(map(str, read))))

    def _was_trained_on(self, path: str) -> bool:
        # First the size, which costs little, and then the content: names say nothing, neither equal nor different ones.
        trained = set(self.digests.values())
        size = f"{Path(path).stat().st_size}-"
        return any(one.startswith(size) for one in trained) and file_digest(Path(path)) in trained


def _all_samples(dataset: AnomalibDataset) -> DataFrame:
    """All images of a data set, with those that were taken out of it."""
    if not hasattr(dataset, HELD_OUT):
        return dataset.samples
    samples = pd.concat([dataset.samples, getattr(dataset, HELD_OUT)]).sort_values("image_path", ignore_index=True)
    samples.attrs = dataset.samples.attrs
    return samples


def _drawn(data: LightningDataModule, count: int, seed: int) -> Iterator[tuple[Path, list[Path]]]:
    """Draw images and their masks from the test images of each category that is trained on."""
    dataset = getattr(data, "test_data", None)
    if not isinstance(dataset, AnomalibDataset):
        msg = f"Labelled anomalies are drawn from test images, but {type(data).__name__} has none."
        raise DataError(msg)
    samples = _all_samples(dataset)
    samples = samples[samples.label_index == LabelName.ABNORMAL]
    if samples.empty:
        msg = f"Labelled anomalies are drawn from test images, but {type(data).__name__} has no anomalous ones."
        raise DataError(msg)
    if "category" in samples and "category" in data.train_data.samples:
        samples = samples[samples.category.isin(data.train_data.samples.category)]
        if not samples.empty and (none := set(data.train_data.samples.category) - set(samples.category)):
            rank_zero_warn(
                f"There are no labelled anomalies of {', '.join(sorted(none))}, which are trained on but not tested "
                "on: they are drawn from the test images."
            )
    if samples.empty:
        msg = (
            "Labelled anomalies are drawn from the test images of what is trained on, but none of that is tested on. "
            "Give a folder of labelled anomalies, or none: zero-shot has none."
        )
        raise DataError(msg)
    categories = samples.category if "category" in samples else samples.split
    for category, images in samples.groupby(categories):
        if len(images) <= count:
            msg = (
                f"labelled_anomalies={count} leaves no anomalous image of {category} to test on: there are "
                f"{len(images)}. Take fewer, or give a folder of other images."
            )
            raise DataError(msg)
        rows = np.random.default_rng(seed).choice(len(images), count, replace=False)
        for row in images.iloc[sorted(rows)].itertuples():
            yield Path(row.image_path), [Path(mask) for mask in mask_files(row)]


def _of_folder(folder: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Pair images and masks of a folder."""
    images, masks = (_images_by_name(folder / part) for part in ("images", "masks"))
    if not images:
        msg = f"Expected labelled anomalies in {folder}/images and their masks in {folder}/masks, found no image."
        raise DataError(msg)
    for name, path in images.items():
        found = [masks[mask] for mask in (name, f"{name}_mask") if mask in masks]
        if len(found) > 1:
            msg = f"{path} has two masks, {found[0]} and {found[1]}. Remove one."
            raise DataError(msg)
        yield path, found


def _size_trained_on(images: AnomalibDataset) -> tuple[int, ...] | None:
    """Height and width that whole images are trained on at; ``None`` where each has its own."""
    if isinstance(images, ChangedViews):
        images = images.images
    return images.image_size if isinstance(images, TileViews) else tuple(images[0].image.shape[-2:])


def _read(image: Path, masks: list[Path], size: tuple[int, ...] | None) -> tuple[Tensor, Tensor]:
    """Read an image ``(3, H, W)`` in [0, 1] and what its masks mark ``(H, W)``, at the size of the training images."""
    picture = _decoded(image, read_tensor)
    marked = torch.zeros(1, *picture.shape[-2:], dtype=torch.bool)
    for path in masks:
        mask = _decoded(path, partial(read_mask, as_tensor=True))
        if picture.shape[-2:] != mask.shape[-2:]:
            msg = f"A mask must be as large as its image, but {path} has another size than {image}."
            raise DataError(msg)
        marked |= mask > 0
    if size is None:
        return picture, marked[0]
    picture = T.resize(picture, list(size), antialias=True)
    shrunk = T.resize(marked.byte(), list(size), interpolation=T.InterpolationMode.NEAREST)[0] > 0
    # nearest neighbour steps over the smallest defects
    return picture, shrunk if shrunk.any() else F.adaptive_max_pool2d(marked.float(), list(size))[0] > 0


def _decoded(path: Path, read: Callable[..., Any]) -> Tensor:
    try:
        return read(path)
    except (OSError, SyntaxError, ValueError) as error:  # Pillow calls a broken PNG a syntax error
        msg = f"A labelled anomaly cannot be decoded, the image or mask {path}: {error}"
        raise DataError(msg) from error


def _images_by_name(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in image_files(folder):
        name = str(path.relative_to(folder).with_suffix(""))
        if name in found:
            msg = f"Which of {found[name]} and {path} belongs to the mask or image of that name? Rename one."
            raise DataError(msg)
        found[name] = path
    return found


def _below(path: Path, root: Any) -> str:
    """Path below a root, or the path itself where it lies elsewhere."""
    whole, above = path.resolve(), None if root is None else Path(root).resolve()
    return str(whole.relative_to(above)) if above and whole.is_relative_to(above) else str(path)
