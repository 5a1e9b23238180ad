# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What test_distributed.py runs in one process and in two: trainings, then evaluations.

Importing PyTorch and anomalib takes longer than all of it, so that the jobs follow each other in the same processes.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from lightning import Callback, seed_everything
from torch import distributed as dist
from torch.utils.data import DataLoader, DistributedSampler

from anomalib_inp import InpFormer, InpFormerPlusPlus, InpPostProcessor, MultiCategory
from anomalib_inp.pictures.extremes import ExtremeResults

TRAININGS: dict[str, tuple[type, dict[str, Any]]] = {
    "InpFormer": (InpFormer, {}),
    "++ losses": (InpFormerPlusPlus, {"head": False}),
    "++ with head": (InpFormerPlusPlus, {}),
}
SIZES = {"image_size": 64, "map_size": 64}


class InOrder(MVTecAD):
    """Training images in their order: Lightning's own sampler would shuffle, and otherwise than one process does."""

    def train_dataloader(self) -> DataLoader:
        sampler = DistributedSampler(self.train_data, shuffle=False) if dist.is_initialized() else None
        return DataLoader(
            self.train_data, self.train_batch_size, sampler=sampler, collate_fn=self.train_data.collate_fn
        )


class Losses(Callback):
    """Writes the losses of a process into a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.values.append(outputs["loss"].item())

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        path = self.folder / f"losses{trainer.world_size}_{trainer.global_rank}.json"
        path.write_text(json.dumps(self.values))


def make_engine(folder: Path, devices: int, **arguments: Any) -> Engine:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    strategy = "ddp" if devices > 1 else "auto"
    # anomalib fails where two processes make a folder of the same number at once, as each further training here does.
    root = folder / "of other processes" if int(os.environ.get("LOCAL_RANK", 0)) else folder
    return Engine(default_root_dir=root, accelerator="cpu", devices=devices, strategy=strategy, **quiet, **arguments)


def train(name: str, data: str, encoder: str, folder: Path, devices: int) -> None:
    kind, arguments = TRAININGS[name]
    cache = {"feature_cache": "disk", "feature_cache_dir": str(folder)}
    seed_everything(0, verbose=False)
    # At the full learning rate, rounding grows in twenty steps to 4e-4 and more on some processors; here, to 2e-7.
    model = kind("test_vit", encoder, learning_rate=5e-5, warmup_steps=5, **SIZES, **cache, **arguments)
    images = InOrder(data, "brick", 8 // devices, num_workers=0, val_split_mode="none")
    engine = make_engine(folder, devices, max_epochs=4, limit_val_batches=0, callbacks=[Losses(folder)])
    engine.fit(model, datamodule=images)


def evaluate(data: str, encoder: str, folder: Path, devices: int) -> None:
    seed_everything(0, verbose=False)
    sheets = ExtremeResults(folder / "sheets")
    thresholds = InpPostProcessor(normal_image_quantile=0.5, normal_pixel_quantile=0.5)
    model = InpFormer("test_vit", encoder, visualizer=sheets, post_processor=thresholds, **SIZES)
    engine = make_engine(folder, devices)
    arguments = {"root": data, "num_workers": 0, "eval_batch_size": 4}
    normal = MultiCategory("MVTecAD", val_split_mode="from_train", val_split_ratio=0.1, **arguments)
    engine.validate(model, datamodule=normal)
    of_normal = [[list(kind) for kind in kinds] for kinds in model.post_processor.ranges.values()]
    names = ("image_threshold", "image_min", "pixel_threshold", "pixel_min")
    common = [getattr(model.post_processor, name).item() for name in names]
    images = MultiCategory("MVTecAD", val_split_mode="same_as_test", **arguments)
    engine.validate(model, datamodule=images)
    for name, images_kept in (("exact", 2500), ("binned", 0)):
        model.evaluator.exact_images = images_kept
        engine.test(model, datamodule=images)
        if engine.trainer.is_global_zero:
            (Path(engine.trainer.default_root_dir) / "metrics.json").rename(folder / f"{name}.json")
            (Path(engine.trainer.default_root_dir) / "scores.csv").rename(folder / f"{name}.csv")
    ranges = {name: [list(kind) for kind in kinds] for name, kinds in model.post_processor.ranges.items()}
    found = {**ranges, "of normal images": [common, *of_normal[0], *of_normal[1]]}
    (folder / f"ranges{engine.trainer.global_rank}.json").write_text(json.dumps(found))


def main(data: str, encoder: str, folder: str, devices: int) -> None:
    """Train and evaluate; each training has a folder that other numbers of processes share, with its cache in it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name in TRAININGS:
        if devices > 1 or name != "++ with head":  # which is not compared: each process draws its own anomalies
            train(name, data, encoder, Path(folder, name), devices)
    evaluate(data, encoder, Path(folder, str(devices)), devices)
    torch.set_num_threads(threads)


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]))
