# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Pictures of what is tested or predicted, one for every image."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from anomalib.data import ImageBatch, ImageItem, NumpyImageBatch, NumpyImageItem
from anomalib.data.utils import read_mask
from anomalib.visualization import ImageVisualizer
from lightning.pytorch import LightningModule, Trainer
from PIL import Image

from anomalib_inp.data.loaders import image_paths_of
from anomalib_inp.data.subset import Subset
from anomalib_inp.frame import WHOLE_IMAGE, CropBox
from anomalib_inp.images import read_picture, to_rgb
from anomalib_inp.pictures.names import common_root, picture_names
from anomalib_inp.pictures.strip import draw_result, place_mask
from anomalib_inp.preprocessing import crop_box_of
from anomalib_inp.training.results_folder import results_folder


class InpVisualizer(ImageVisualizer):
    """Saves a ``draw_result`` strip for every image that is tested or predicted.

    The image and its mask are read from their files, at their own size; the crop box comes from the model's
    pre-processor.

    Args:
        output_dir: Folder of the pictures; ``None`` means ``images`` in the trainer's ``default_root_dir``.
        panel_height: Height of a panel in pixels.
    """

    def __init__(self, output_dir: str | Path | None = None, panel_height: int = 256) -> None:
        super().__init__(output_dir=output_dir)
        self.panel_height = panel_height
        self._root = Path()
        self._crop_box = WHOLE_IMAGE
        self._places: np.ndarray | None = None
        self._loaders: Any = None
        self._names: dict[str, Path] = {}

    def visualize(
        self,
        predictions: ImageItem | NumpyImageItem | ImageBatch | NumpyImageBatch,
        crop_box: CropBox = WHOLE_IMAGE,
    ) -> Image.Image | list[Image.Image | None] | None:
        """Draw one result, or each result of a batch.

        Args:
            predictions: Items with an anomaly map. Without ``image_path``, ``image`` must hold the whole image.
            crop_box: The part of the image that the maps cover: ``model.pre_processor.crop_box``.

        Returns:
            The strip of an item or of a batch of one, else a list of strips; ``None`` for an item without anomaly map.

        Raises:
            TypeError: ``predictions`` is neither an item nor a batch.
        """
        if isinstance(predictions, ImageItem | NumpyImageItem):
            return self._draw(predictions, crop_box)
        if isinstance(predictions, ImageBatch | NumpyImageBatch):
            strips = [self._draw(item, crop_box) for item in predictions]
            return strips[0] if len(strips) == 1 else strips
        msg = (
            f"Expected ImageItem, NumpyImageItem, ImageBatch or NumpyImageBatch, got {type(predictions).__name__}. "
            "For bare arrays, call draw_result."
        )
        raise TypeError(msg)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look up the results folder, and which part of an image the maps cover.

        Raises:
            ValueError: The pre-processor does not tell.
        """
        super().setup(trainer, pl_module, stage)
        self._crop_box = crop_box_of(getattr(pl_module, "pre_processor", None))
        self._root = results_folder(trainer)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Save the strips of a tested batch, in a folder for each category where there are several.

        anomalib calls this for predicted batches as well.

        Raises:
            ValueError: A picture would replace the image that it shows.
        """
        del pl_module, outputs
        output_dir = self.output_dir or self._root / "images"
        subset = Subset.from_trainer(trainer, "test")
        raw_scores = getattr(batch, "raw_score", None)
        self._places = to_array(getattr(batch, "inspected", None))
        names = subset.attach(batch).names if len(subset.names) > 1 else [""] * len(batch)
        for index, (item, category) in enumerate(zip(items_of(batch), names, strict=True)):
            # By now the batch holds what the model saw: without a file, the image is the crop itself.
            box, name = self._crop_box if item.image_path else WHOLE_IMAGE, short_name(item.image_path, category)
            raw = None if raw_scores is None else float(raw_scores[index])
            strip = self._draw(item, box, name, raw_score=raw)
            if strip is None:
                continue
            unnamed = Path(f"loader{dataloader_idx}/batch{batch_idx:05d}_{index:03d}.png")
            path = output_dir / category / (self._picture_name(trainer, item.image_path) or unnamed)
            if item.image_path and path.resolve() == Path(item.image_path).resolve():
                msg = f"The picture would overwrite its own image {path}. Choose an output_dir outside the dataset."
                raise ValueError(msg)
            path.parent.mkdir(parents=True, exist_ok=True)
            strip.save(path)

    def _picture_name(self, trainer: Trainer, image: str | None) -> Path | None:
        """Name the picture of an image by its path below the folder that all images of its category lie in."""
        if image is None:
            return None
        loaders = trainer.predict_dataloaders if trainer.predicting else trainer.test_dataloaders
        if loaders is not self._loaders:
            self._loaders, self._names = loaders, {}
            subset, by_category = Subset.from_trainer(trainer, "test"), dict[str, list[str]]()
            for path in image_paths_of(loaders):
                by_category.setdefault(subset.category_of(path), []).append(path)
            for paths in by_category.values():
                self._names |= picture_names(sorted(paths), common_root(paths))
        # An image of a data set that does not list its own has its whole path for a name.
        return self._names.get(image, Path(*Path(f"{image}.png").absolute().parts[1:]))

    def _draw(
        self,
        item: ImageItem | NumpyImageItem,
        crop_box: CropBox,
        name: str = "",
        vmin: float = 0.0,
        vmax: float = 1.0,
        raw_score: float | None = None,
    ) -> Image.Image | None:
        anomaly_map, pred_mask = to_array(item.anomaly_map), to_array(item.pred_mask)
        if anomaly_map is None:
            return None
        image = _item_image(item)
        return draw_result(
            image,
            anomaly_map,
            pred_mask=pred_mask,
            gt_mask=_item_truth(item, crop_box, image.size),
            crop_box=crop_box,
            places=self._places,
            score=None if item.pred_score is None else float(item.pred_score),
            raw_score=raw_score,
            anomalous=None if item.pred_label is None else bool(item.pred_label),
            truth=None if item.gt_label is None else bool(item.gt_label),
            name=name,
            vmin=vmin,
            vmax=vmax,
            height=self.panel_height,
        )


def items_of(batch: ImageBatch) -> list[ImageItem]:
    """List the items of a batch; of images that have files, without their pixels, which would all be copied."""
    if batch.image_path:
        batch = batch.update(in_place=False, image=batch.image[..., :1, :1])
    return batch.items


def short_name(path: str | None, category: str = "") -> str:
    """Name an image by its category, where there are several, its folder and its file."""
    return "/".join(part for part in (category, *Path(path or "").parts[-2:]) if part)


def _item_image(item: ImageItem | NumpyImageItem) -> Image.Image:
    if item.image_path:
        # Opened as anomalib opens it (no EXIF rotation): the map belongs to those pixels.
        return read_picture(item.image_path)
    pixels = to_array(item.image)
    if isinstance(item, ImageItem):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.min() < 0 or pixels.max() > 1:
        pixels = (pixels - pixels.min()) / max(np.ptp(pixels), 1e-6)
    return to_rgb((pixels * 255).round().astype(np.uint8))


def _item_truth(item: ImageItem | NumpyImageItem, crop_box: CropBox, size: tuple[int, int]) -> np.ndarray | None:
    if item.mask_path and Path(item.mask_path).is_file():
        return np.asarray(read_mask(item.mask_path)) > 0
    gt_mask = to_array(item.gt_mask)
    if gt_mask is not None and not gt_mask.any() and item.gt_label and item.image_path and not item.mask_path:
        return None  # an anomalous image without a mask has been given an empty one, beside others that have theirs
    # The pre-processor has cropped this one together with the image.
    return None if gt_mask is None else place_mask(gt_mask, crop_box, size)


def to_array(value: Any) -> Any:
    """Turn a tensor into an array; other values stay as they are."""
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
