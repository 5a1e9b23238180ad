# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Puts tiles of the training images in their place, and gives the images back in the end."""

from anomalib.data import AnomalibDataset
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_info

from anomalib_inp.data.few_shot import FewShotViews
from anomalib_inp.data.file_checks import DataError
from anomalib_inp.data.tile_views import TileViews, check_sizes, size_of
from anomalib_inp.tiles import Tiles

EVALUATED = {"fit": ("val", "test"), "validate": ("val",), "test": ("test",)}


class TileCut(Callback):
    """Trains on tiles; checks that all images of a run can be cut into them.

    Args:
        tiles: How images are cut.
        per_image: Tiles of each training image that are drawn at random; ``None`` takes all.
        anew: Whether others are drawn in each epoch.
    """

    def __init__(self, tiles: Tiles, per_image: int | None = None, anew: bool = True) -> None:
        self.tiles = tiles
        self.per_image = per_image
        self.anew = anew
        self._images: AnomalibDataset | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Cut the training images where a training begins.

        Raises:
            DataError: An image is smaller than a tile, there is no data module, or its images are few-shot views.
        """
        data, pre_processor = trainer.datamodule, pl_module.pre_processor
        if data is None:
            if stage == "fit":
                msg = "Tiles need a data module with train_data, got plain data loaders."
                raise DataError(msg)
            return
        if pre_processor.fixed_size is None:
            tables = [
                getattr(getattr(data, f"{split}_data", None), "samples", None) for split in EVALUATED.get(stage, ())
            ]
            # validation images may be the test images: each header is read once
            paths = list(dict.fromkeys(path for table in tables if table is not None for path in table.image_path))
            check_sizes(paths, list(map(size_of, paths)), self.tiles)
        if stage != "fit":
            return
        images = data.train_data
        if isinstance(images, FewShotViews):
            msg = "Few-shot views are of whole images: leave tiles, or shots, out."
            raise DataError(msg)
        cut = TileViews(images, self.tiles, pre_processor.resize, pre_processor.fixed_size, self.per_image, self.anew)
        data.train_data, self._images = cut, images
        rank_zero_info(
            f"Tiles: {len(cut)} of {len(images)} images, {self.tiles.size[1]} x {self.tiles.size[0]} pixels each, "
            f"{self.tiles.overlap} shared with neighbours."
        )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the images back."""
        del pl_module, stage
        self._give_back(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the images back after an interrupted training too: it ends without a teardown."""
        del pl_module, exception
        self._give_back(trainer)

    def _give_back(self, trainer: Trainer) -> None:
        if self._images is not None:
            trainer.datamodule.train_data, self._images = self._images, None
