# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Draws what is seen of a small defect in a whole image and in tiles, from the checkpoints of ``make bench-small``.

``python tests/bench/small_picture.py build/small`` writes ``docs/images/small_defects.png``.
"""

import sys
from pathlib import Path

import pages
import torch
from torch import Tensor

from anomalib_inp import InpFormer
from anomalib_inp.data.deep import read_tensor
from anomalib_inp.images import read_pixels
from anomalib_inp.models.registry import load_model
from anomalib_inp.pictures.gallery import gallery
from anomalib_inp.pictures.strip import draw_result
from anomalib_inp.scoring.views import TiledImage

CATEGORY, DEFECT, IMAGE = "grass", "0.05", "002.png"
SIDE = 320
"""Pixels of the window that is shown closer."""


def main(work: Path) -> None:
    """Draw the picture."""
    shown = work / "data" / CATEGORY / "test" / DEFECT / IMAGE
    mask = read_pixels(str(work / "data" / CATEGORY / "ground_truth" / DEFECT / f"{shown.stem}_mask.png"))[..., 0] > 0
    normal = [work / "data" / CATEGORY / "test/good" / f"{number:03}.png" for number in range(2)]
    found: dict[str, Tensor] = {}
    for checkpoint in sorted((work / CATEGORY).rglob("finished.ckpt")):
        model = load_model(checkpoint).eval()
        model.model.map = "fused"
        if model.tiles is not None:
            found["tiles of 252, and the whole image"] = levels(model, shown, normal)
            model.model.view = TiledImage(model.tiles._replace(second_scale=False))
            found["tiles of 252"] = levels(model, shown, normal)
        elif model.pre_processor.image_size == (252, 252):
            found["whole image at 252"] = levels(model, shown, normal)
    pixels = read_pixels(str(shown))
    strips = []
    for name in ("whole image at 252", "tiles of 252", "tiles of 252, and the whole image"):
        level = found[name].numpy()
        strips.append(draw_result(pixels, level, pred_mask=level > 0.5, gt_mask=mask, name=name, height=256))
    gallery(strips, columns=1).save(pages.DOCS / "images" / "small_defects.png", optimize=True)


@torch.no_grad()
def levels(model: InpFormer, shown: Path, normal: list[Path]) -> Tensor:
    """Map of an image; 0.5 is the highest value of normal ones."""
    highest, wanted = (
        [model.model(model.pre_processor.transform(read_tensor(path).unsqueeze(0))).anomaly_map[0, 0] for path in paths]
        for paths in (normal, [shown])
    )
    return (wanted[0] / (2 * max(one.max() for one in highest))).clamp(0, 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
