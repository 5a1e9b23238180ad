# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Training through anomalib's Engine with image files, uncached and from caches: what reading adds to a step.

The images are those of the sample data, enlarged to the size that cameras and MVTec AD have, so that decoding costs
what it costs.
"""

import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

from anomalib.data import MVTecAD
from anomalib.engine import Engine
from anomalib.models.components import AnomalibModule
from gpu.harness import Check, wait
from gpu.models import anomalibs, ours
from lightning import Callback, LightningModule, Trainer
from PIL import Image

from anomalib_inp.data.sample import write_sample_data

SIDE = 1024
BATCH = 16
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}


def section(check: Check) -> None:
    """Time epochs by where the images come from and how many processes read them."""
    data = write_images(check)
    many = check.small(8, 0)
    runs = [("not cached", many), ("anomalib", many), ("memory", 0), ("memory", many), ("disk", 0), ("disk", many)]
    for label, (encoder, size) in reversed(check.encoders.items()):
        for kind, workers in dict.fromkeys(runs):
            run = partial(epochs, check, data, encoder, size, kind, workers)
            check.part(f"loading/{label}/{kind}, {workers} workers", run, needs=12)


def write_images(check: Check) -> Path:
    """Enlarge the training images, and let several names stand for each, so that an epoch has steps enough."""
    data = write_sample_data(check.folder / "large", categories=("brick",))
    folder = data / "brick" / "train" / "good"
    files = sorted(folder.iterdir())
    for file in files:
        with Image.open(file) as image:
            enlarged = image.resize((check.small(SIDE, 168),) * 2, Image.Resampling.BICUBIC)
        enlarged.save(file)
        for copy in range(check.small(8, 0)):
            file.with_stem(f"{file.stem}_{copy}").symlink_to(file)
    return data


class Watch(Callback):
    """Notes when each batch is done, and how long the feature cache takes to fill."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.steps: list[float] = []
        self.epochs: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start an epoch; its processes that read images have been started before."""
        wait(self.device)
        self.begin = self.before = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *rest: Any) -> None:
        """Note a step; the loss is there when the GPU is nearly done with it."""
        outputs["loss"].item()
        now = time.perf_counter()
        self.steps.append(1000 * (now - self.before))
        self.before = now

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note an epoch."""
        wait(self.device)
        self.epochs.append(time.perf_counter() - self.begin)


def epochs(check: Check, data: Path, encoder: str, size: int, kind: str, workers: int) -> dict[str, Any]:
    """Train for two epochs: ours in bfloat16, anomalib's in float32, since its loss does not survive autocast."""
    cache = {"feature_cache": kind} if kind in {"memory", "disk"} else {}
    if cache:
        folder = check.folder / f"features {workers}"  # a folder for each, so that each fills its own
        cache |= {"feature_cache_dir": str(folder), "feature_cache_dtype": "bfloat16"}
    model: AnomalibModule
    model = anomalibs(encoder, size) if kind == "anomalib" else ours(encoder, size, check.folder, **cache)
    watch, filling = Watch(check.device), 0.0
    if cache:
        fill = model.feature_cache.features_of

        def timed(*arguments: Any) -> Any:
            nonlocal filling
            begin = time.perf_counter()
            features = fill(*arguments)
            filling += time.perf_counter() - begin
            return features

        model.feature_cache.features_of = timed
    batch = check.small(BATCH, 8)
    datamodule = MVTecAD(data, "brick", train_batch_size=batch, num_workers=workers, val_split_mode="none")
    Engine(
        default_root_dir=check.folder / "loading",
        max_epochs=2,
        accelerator="gpu" if check.device == "cuda" else "cpu",
        devices=1,
        precision="32-true" if kind == "anomalib" else "bf16-mixed",
        callbacks=[watch],
        limit_train_batches=2 if check.dry else None,
        **QUIET,
    ).fit(model, datamodule=datamodule)
    count = len(datamodule.train_data)
    # The first steps of each epoch wait for the processes that read, the very first also for CUDA.
    per_epoch = len(watch.steps) // 2
    steady = [
        time for epoch in (0, 1) for time in watch.steps[epoch * per_epoch + per_epoch // 4 : (epoch + 1) * per_epoch]
    ]
    found = {
        "ms": statistics.median(steady),
        "mean": statistics.fmean(steady),
        "slowest": max(steady),
        "images_per_second": count / watch.epochs[1],
        "images": count,
    }
    return found | ({"filled_per_second": count / filling} if cache else {})
