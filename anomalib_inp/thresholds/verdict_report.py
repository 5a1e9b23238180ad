# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Keeps the scores of test images, and counts the verdicts at the threshold in force."""

import os
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from rich.console import Console
from torch import distributed

from anomalib_inp.data.subset import Subset
from anomalib_inp.score_table import COUNTED, FILE, GOOD, Row, write_rows
from anomalib_inp.thresholds.verdicts import count_verdicts, verdict_table, write_verdicts


class VerdictReport(Callback):
    """Writes ``scores.csv`` and ``confusion.csv`` of a test into the results folder, and prints the verdicts.

    Images are named from the folder that all of them are in, as ``anomalib-inp predict`` names them. Several processes
    give the rows of one.
    """

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._verbose = True

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from nothing."""
        del pl_module
        # Looked at now: of several categories, the evaluator keeps Lightning from printing.
        self._rows, self._verbose = [], trainer.test_loop.verbose

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        """Keep what was said of the images of a batch that this process counts."""
        del pl_module, outputs
        if batch.image_path is None:
            return
        subset = Subset.from_trainer(trainer, "test")
        counted, raw = subset.attach(batch).counted.tolist(), getattr(batch, "raw_score", batch.pred_score)
        labels = [None] * len(counted) if batch.pred_label is None else batch.pred_label.tolist()
        truth = [None] * len(counted) if batch.gt_label is None else batch.gt_label.tolist()
        for here, path, score, raw_score, label, anomalous in zip(
            counted, batch.image_path, batch.pred_score.tolist(), raw.tolist(), labels, truth, strict=True
        ):
            if here:
                kind = "" if anomalous is None else subset.kind_of(path) or ("anomalous" if anomalous else GOOD)
                self._rows.append(Row(path, score, raw_score, None if label is None else bool(label), kind=kind))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write and print."""
        del pl_module
        rows, self._rows = self._rows, []
        if distributed.is_available() and distributed.is_initialized():
            parts: list[Any] = [None] * trainer.world_size
            distributed.all_gather_object(parts, rows)
            rows = [row for part in parts for row in part]
        if not rows or not trainer.is_global_zero or trainer.fast_dev_run:
            return
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        root = os.path.commonpath([Path(row.image).parent for row in rows])
        names = [Path(os.path.relpath(row.image, root)).as_posix() for row in rows]
        rows = sorted(row._replace(image=name) for row, name in zip(rows, names, strict=True))
        write_rows(folder / FILE, rows)
        (folder / COUNTED).unlink(missing_ok=True)  # of an earlier test
        if rates := count_verdicts(rows):
            write_verdicts(folder, rates)
            if self._verbose:
                Console().print(verdict_table(rates))
