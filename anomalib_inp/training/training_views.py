# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Puts views of the training images in their place, tiles or images in other light, and gives the images back."""

from typing import Any

from anomalib.data import AnomalibDataset
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_info
from torchvision.transforms.v2 import Transform

from anomalib_inp.data.changed_views import NUM_VIEWS, Augment, ChangedViews
from anomalib_inp.data.file_checks import DataError
from anomalib_inp.data.tile_views import TileViews, check_sizes, size_of
from anomalib_inp.data.wrapped import LargeImages
from anomalib_inp.tiles import Tiles

EVALUATED = {"fit": ("val", "test"), "validate": ("val",), "test": ("test",)}


def refuse_few_shots(data: Any) -> None:
    """Refuse tiles of few-shot views, before these are made.

    Raises:
        DataError: The data module makes some.
    """
    if getattr(data, "shots", None) is not None:
        msg = "Few-shot views are of whole images: leave tiles, or shots, out."
        raise DataError(msg)


class TrainingViews(Callback):
    """Trains on tiles, or in other light and with noise; checks that all images of a run can be cut into tiles.

    Images at their native size are evaluated one at a time.

    Args:
        tiles: How images are cut; ``None`` leaves them whole.
        per_image: Tiles of each training image that are drawn at random; ``None`` takes all.
        augment: What is changed at random; ``None`` for nothing.
        anew: Whether others are drawn in each epoch.
    """

    def __init__(
        self,
        tiles: Tiles | None = None,
        per_image: int | None = None,
        augment: Augment | None = None,
        anew: bool = True,
    ) -> None:
        self.tiles = tiles
        self.per_image = per_image
        self.augment = augment
        self.anew = anew
        self._images: dict[str, AnomalibDataset] = {}
        self._eval_batch_size: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the views in their place where a training begins.

        Raises:
            DataError: An image is smaller than a tile, or there is no data module.
        """
        data, pre_processor = trainer.datamodule, pl_module.pre_processor
        if data is None:
            if stage == "fit":
                msg = "Tiles and augment need a data module with train_data, got plain data loaders."
                raise DataError(msg)
            return
        if self.tiles is not None and pre_processor.fixed_size is None:
            # in a batch, anomalib brings images to one size
            self._eval_batch_size, data.eval_batch_size = self._eval_batch_size or data.eval_batch_size, 1
            evaluated = {f"{split}_data": getattr(data, f"{split}_data", None) for split in EVALUATED.get(stage, ())}
            found = {name: images for name, images in evaluated.items() if isinstance(images, AnomalibDataset)}
            # validation images may be the test images: each header is read once
            paths = list(dict.fromkeys(path for images in found.values() for path in images.samples.image_path))
            check_sizes(paths, list(map(size_of, paths)), self.tiles)
            for name, images in found.items():
                self._put(data, name, LargeImages(images))
        if stage != "fit":
            return
        images = views = data.train_data
        if self.tiles is not None:
            views = self._cut(self.tiles, images, pre_processor.resize, pre_processor.fixed_size)
        if self.augment is not None:
            views = ChangedViews(views, self.augment, self.anew)
            often = "anew in each epoch" if self.anew else f"as {NUM_VIEWS} views of each"
            rank_zero_info(f"Augment: noise up to {self.augment.noise:g}, light by {self.augment.light:.0%}, {often}.")
        self._put(data, "train_data", views)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the images back."""
        del pl_module, stage
        self._give_back(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the images back after an interrupted training too: it ends without a teardown."""
        del pl_module, exception
        self._give_back(trainer)

    def _cut(
        self, tiles: Tiles, images: AnomalibDataset, resize: Transform | None, image_size: tuple[int, int] | None
    ) -> TileViews:
        cut = TileViews(images, tiles, resize, image_size, self.per_image, self.anew)
        rank_zero_info(
            f"Tiles: {len(cut)} of {len(images)} images, {tiles.size[1]} x {tiles.size[0]} pixels each, "
            f"{tiles.overlap} shared with neighbours."
        )
        return cut

    def _put(self, data: Any, name: str, images: AnomalibDataset) -> None:
        self._images.setdefault(name, getattr(data, name))
        setattr(data, name, images)

    def _give_back(self, trainer: Trainer) -> None:
        for name, images in self._images.items():
            setattr(trainer.datamodule, name, images)
        self._images.clear()
        if self._eval_batch_size is not None:
            trainer.datamodule.eval_batch_size, self._eval_batch_size = self._eval_batch_size, None
