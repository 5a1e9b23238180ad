# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Tests a model with the seven metrics of the paper, per category and on average."""

import logging
from collections.abc import Sized
from pathlib import Path
from typing import Any

import torch
from anomalib.metrics import Evaluator
from lightning.pytorch import LightningModule, Trainer
from rich.console import Console
from torch import distributed

from anomalib_inp.data.subset import MEAN, Subset
from anomalib_inp.evaluation.functional import FIELDS, of_each, seven_metrics
from anomalib_inp.evaluation.metrics import COLUMNS, check_values
from anomalib_inp.evaluation.pixels import EXACT_IMAGES, pixel_metrics_of
from anomalib_inp.evaluation.report import metrics_table, with_mean, write_metrics
from anomalib_inp.evaluation.scores import ImageScores

logger = logging.getLogger(__name__)


class PaperEvaluator(Evaluator):
    """Tests with the seven metrics: of each category where the data module has several, and their mean.

    Image metrics read ``raw_score`` ``(B,)`` and ``gt_label`` ``(B,)`` of a batch, pixel metrics ``raw_map``
    ``(B, H, W)`` or ``(B, 1, H, W)`` and ``gt_mask`` ``(B, H, W)``. Without masks the pixel metrics are absent from the
    results; a metric over one class only (say, only normal images) is nan, and the mean leaves it out. The mean is
    logged under the keys of ``COLUMNS``, the metrics of several categories as ``<category>/<key>``; all of them are
    written to ``metrics.csv``, ``metrics.json`` and ``metrics.md`` in the trainer's ``default_root_dir``.

    Several processes give the numbers of one: an image that Lightning hands out twice is counted once.

    Args:
        exact_images: Up to so many test images pixel metrics are exact; of more, and where a region of interest is
            inspected alone, or of tiled ones, pixels are counted in bins of 0.1 %, and memory does not grow with them.
    """

    def __init__(self, exact_images: int = EXACT_IMAGES) -> None:
        super().__init__()
        self.exact_images = exact_images

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from nothing, with the categories of the test images."""
        # Maps of tiled images are large, and of any size.
        exact_images = self.exact_images if getattr(pl_module, "tiles", None) is None else 0
        all_counts = not getattr(getattr(pl_module, "inspection", None), "mask", "")
        pixels = pixel_metrics_of(_num_images(trainer), exact_images if all_counts else 0, len(_categories(trainer)))
        self.test_metrics = torch.nn.ModuleList([ImageScores(), pixels]).to(pl_module.device)
        # Processes with GPUs share by these alone; anomalib, which counts the devices of one machine, overlooks one
        # process on each of several machines, and a single one that was started like many.
        if not (distributed.is_available() and distributed.is_initialized()):
            self.metrics_to_cpu(self.test_metrics)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        """Add a batch.

        Raises:
            ValueError: Values and ground truth differ in shape, or a value is NaN.
        """
        del pl_module, outputs
        for fields in FIELDS.values():
            check_values(batch, *fields)
        if batch.gt_label is None:
            return
        belongs = Subset.from_trainer(trainer, "test").attach(batch)
        device = batch.raw_score.device
        categories, counted, masked = (values.to(device) for values in belongs[1:])
        scores, pixels = self.test_metrics
        if counted.any():
            scores.update(batch.raw_score[counted], batch.gt_label[counted], categories[counted])
        masked = masked & counted
        if batch.gt_mask is not None and masked.any():
            maps = batch.raw_map.view(batch.gt_mask.shape)
            places = getattr(batch, "inspected", None)
            pixels.update(maps[masked], batch.gt_mask[masked], categories[masked], places)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute, log, print and write."""
        del pl_module
        (scores, labels, categories), by_pixel = (metric.compute() for metric in self.test_metrics)
        self.test_metrics = torch.nn.ModuleList()  # a model that is saved now holds no maps
        names = _categories(trainer)
        by_image = of_each(len(names), categories, lambda chosen: seven_metrics(scores[chosen], labels[chosen]))
        rows = {name: image | pixel for name, image, pixel in zip(names, by_image, by_pixel, strict=True)}
        if missing := [key for key in COLUMNS if not any(key in values for values in rows.values())]:
            logger.info("The test data have no ground truth for %s: left out.", ", ".join(missing))
        results = with_mean(rows)
        logged = dict(results[MEAN])
        if len(rows) > 1:
            logged |= {f"{name}/{key}": value for name, values in rows.items() for key, value in values.items()}
        else:
            (logged,), results = rows.values(), rows
        for key, value in logged.items():
            self.log(key, value, sync_dist=True)
            # Lightning logs nothing in barebones mode, so anomalib fills these itself.
            if trainer.barebones:
                trainer.callback_metrics[key] = trainer.logged_metrics[key] = torch.tensor(value)
        if trainer.is_global_zero and not trainer.fast_dev_run:
            write_metrics(Path(trainer.default_root_dir), results)
            if trainer.test_loop.verbose:
                Console().print(metrics_table(results))
                # Lightning's own table has a line for each metric of each category.
                trainer.test_loop.verbose = len(rows) == 1


def _categories(trainer: Trainer) -> list[str]:
    """Name the categories of the test images; all are of one where the data do not say."""
    return Subset.from_trainer(trainer, "test").names or [""]


def _num_images(trainer: Trainer) -> int:
    """Count the images to test on, where the data say so."""
    loaders = trainer.test_dataloaders
    datasets = [getattr(loader, "dataset", None) for loader in (loaders if isinstance(loaders, list) else [loaders])]
    return sum(len(dataset) for dataset in datasets if isinstance(dataset, Sized))
