# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Pictures of what a model finds best and worst: one sheet per category instead of a picture of every image."""

from pathlib import Path
from typing import Any, NamedTuple

from lightning import LightningModule, Trainer
from PIL import Image

from anomalib_inp.preprocessing import WHOLE_IMAGE
from anomalib_inp.visualization import InpVisualizer, gallery


class _Shown(NamedTuple):
    rank: float
    picture: Image.Image


class ExtremeResults(InpVisualizer):
    """Draws, of each category, the anomalous images with the lowest and highest scores, and the normal ones likewise.

    The worst are missed defects and false alarms. A sheet per category is saved as ``images/<category>.png``.

    Args:
        output_dir: Folder of the sheets; ``None`` means ``images`` in the trainer's ``default_root_dir``.
        keep: Images of each kind.
        panel_height: Height of a panel in pixels.
    """

    KINDS = {
        "worst, anomalous": (True, -1),
        "worst, normal": (False, 1),
        "best, anomalous": (True, 1),
        "best, normal": (False, -1),
    }
    """Whether the images are anomalous, and whether the highest (1) or lowest (-1) scores are kept."""

    def __init__(self, output_dir: str | Path | None = None, keep: int = 2, panel_height: int = 192) -> None:
        super().__init__(output_dir, panel_height)
        self.keep = keep
        self._shown: dict[str, dict[str, list[_Shown]]] = {}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start with no pictures."""
        del trainer, pl_module
        self._shown = {}

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Draw those images of a batch that are among the best or worst so far."""
        del trainer, outputs
        crop_box = getattr(pl_module.pre_processor, "crop_box", WHOLE_IMAGE)
        table = self._known(batch)
        for item, score in zip(batch, batch.raw_score.tolist(), strict=True):
            sheet = self._shown.setdefault(table.name_of(item.image_path) if table else "", {})
            for kind, (anomalous, sign) in self.KINDS.items():
                shown = sheet.setdefault(kind, [])
                if bool(item.gt_label) != anomalous or (len(shown) == self.keep and sign * score <= shown[-1].rank):
                    continue
                picture = self._draw(item, crop_box)
                if picture is not None:
                    shown.append(_Shown(sign * score, picture))
                    shown.sort(key=lambda one: -one.rank)
                    del shown[self.keep :]

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the sheets."""
        del pl_module
        folder = self.output_dir or Path(trainer.default_root_dir) / "images"
        for category, kinds in self._shown.items():
            sheets = [gallery([one.picture for one in shown], title=kind) for kind, shown in kinds.items() if shown]
            if sheets:
                path = Path(folder) / f"{category or 'images'}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                gallery(sheets).save(path)
