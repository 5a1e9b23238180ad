# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Pictures of what a model finds best and worst: one sheet per category instead of a picture of every image."""

from pathlib import Path
from typing import Any, NamedTuple

from anomalib.data import ImageItem
from lightning import LightningModule, Trainer
from PIL import Image
from torch import distributed

from anomalib_inp.data.subset import Subset
from anomalib_inp.frame import CropBox
from anomalib_inp.pictures.gallery import gallery
from anomalib_inp.pictures.visualizer import InpVisualizer, items_of, short_name, to_array


class _Shown(NamedTuple):
    rank: float
    item: ImageItem


Sheets = dict[str, dict[str, list[_Shown]]]
"""By category and kind, the images that are shown, best rank first."""


class ExtremeResults(InpVisualizer):
    """Draws, of each category, the anomalous images with the lowest and highest scores, and the normal ones likewise.

    The worst are missed defects and false alarms. A sheet per category is saved as ``images/<category>.png``. Maps and
    scores are raw, because a benchmark needs no thresholds: the colours span the values of the sheet.

    Args:
        output_dir: Folder of the sheets; ``None`` means ``images`` in the trainer's ``default_root_dir``.
        keep: Images of each kind.
        panel_height: Height of a panel in pixels.
    """

    KINDS = {
        "worst, anomalous": (True, -1),
        "best, anomalous": (True, 1),
        "worst, normal": (False, 1),
        "best, normal": (False, -1),
    }
    """Whether the images are anomalous, and whether the highest (1) or lowest (-1) scores are kept."""

    def __init__(self, output_dir: str | Path | None = None, keep: int = 2, panel_height: int = 192) -> None:
        super().__init__(output_dir, panel_height)
        self.keep = keep
        self._shown: Sheets = {}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start with no pictures."""
        del trainer, pl_module
        self._shown = {}

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Keep those images of a batch that are among the best or worst so far."""
        del pl_module, outputs
        self._places = to_array(getattr(batch, "inspected", None))
        belongs = Subset.from_trainer(trainer, "test").attach(batch)
        scores, maps = batch.raw_score.float().cpu(), batch.raw_map.float().cpu()
        for index, item in enumerate(items_of(batch)):
            if not belongs.counted[index]:
                continue  # another process keeps it
            sheet = self._shown.setdefault(belongs.names[index], {})
            for kind, (anomalous, sign) in self.KINDS.items():
                shown, rank = sheet.setdefault(kind, []), sign * scores[index].item()
                if bool(item.gt_label) != anomalous or (len(shown) == self.keep and rank <= shown[-1].rank):
                    continue
                # Copies, so that the batch is not kept; an image that has a file is read from there. On the CPU, where
                # they take no room of the GPU and another process, with a GPU of its own, can be given them.
                kept = ImageItem(
                    image=item.image.cpu().clone(),
                    image_path=item.image_path,
                    mask_path=item.mask_path,
                    gt_mask=None if item.gt_mask is None else item.gt_mask.cpu().clone(),
                    gt_label=None if item.gt_label is None else item.gt_label.cpu(),
                    pred_score=scores[index].clone(),
                    anomaly_map=maps[index].clone(),
                )
                shown.append(_Shown(rank, kept))
                shown.sort(key=lambda one: -one.rank)
                del shown[self.keep :]

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the sheets; each of several processes has seen a part of the images."""
        del pl_module
        found: list[Any] = [self._shown]
        if trainer.world_size > 1:
            found *= trainer.world_size
            distributed.all_gather_object(found, self._shown)
        if not trainer.is_global_zero:
            return
        crop_box = self._crop_box
        folder = self.output_dir or Path(trainer.default_root_dir) / "images"
        for category, kinds in self._merged(found).items():
            path = Path(folder) / f"{category or 'images'}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            self._sheet(category, kinds, crop_box).save(path)

    def _merged(self, found: list[Sheets]) -> Sheets:
        merged: Sheets = {}
        for category, kind, shown in (
            (category, kind, shown)
            for sheets in found
            for category, kinds in sheets.items()
            for kind, shown in kinds.items()
        ):
            kept = merged.setdefault(category, {}).setdefault(kind, [])
            kept += shown
            kept.sort(key=lambda one: -one.rank)
            del kept[self.keep :]
        return merged

    def _sheet(self, category: str, kinds: dict[str, list[_Shown]], crop_box: CropBox) -> Image.Image:
        maps = [one.item.anomaly_map for shown in kinds.values() for one in shown]
        low, high = min(map_.min().item() for map_ in maps), max(map_.max().item() for map_ in maps)
        parts = []
        for kind, shown in kinds.items():
            drawn = [
                self._draw(
                    one.item,
                    crop_box,
                    name=short_name(one.item.image_path),
                    vmin=low,
                    vmax=max(high, low + 1e-6),
                )
                for one in shown
            ]
            if pictures := [picture for picture in drawn if picture is not None]:
                parts.append(gallery(pictures, title=kind))
        return gallery(parts, columns=2, title=category or None)
