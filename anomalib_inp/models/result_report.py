# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Keeps what is said of test images, and counts the verdicts at the threshold in force."""

import math
import os
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from rich.console import Console
from torch import distributed

from anomalib_inp.checkpoints.writing import FINISHED
from anomalib_inp.data.subset import Subset
from anomalib_inp.files import file_digest
from anomalib_inp.images import read_header
from anomalib_inp.pictures.names import common_root
from anomalib_inp.preprocessing import crop_box_of
from anomalib_inp.results import records, score_table
from anomalib_inp.results.inspection import EVERYTHING
from anomalib_inp.results.records import Record, make_record, with_regions
from anomalib_inp.results.regions import Region, find_regions
from anomalib_inp.results.writer import row_of, write_heat_map, write_note
from anomalib_inp.thresholds.post_processor import InpPostProcessor
from anomalib_inp.thresholds.verdicts import count_verdicts, verdict_table, write_verdicts
from anomalib_inp.training.results_folder import results_folder


class ResultReport(Callback):
    """Writes the files of a test into its results folder, and prints the verdicts.

    These are ``predictions.jsonl``, ``scores.csv``, ``confusion.csv``, ``run.json`` and, where pictures are drawn, heat
    maps. Images are named from the folder that all of them are in, as ``anomalib-inp predict`` names them. Several
    processes give the records of one.
    """

    def __init__(self) -> None:
        self._records: list[Record] = []
        self._verbose = True
        self._root: Path | None = None
        self._folder = Path()
        self._model = self._digest = ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look up the results folder, which is one for all processes."""
        del pl_module, stage
        self._folder = results_folder(trainer)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from nothing."""
        del pl_module
        # Looked at now: of several categories, the evaluator keeps Lightning from printing.
        self._records, self._verbose = [], trainer.test_loop.verbose
        paths = Subset.from_trainer(trainer, "test").paths
        self._root = common_root(paths) if paths else None
        # After a training there is no path of a checkpoint, but its file.
        finished = self._folder / "weights/lightning" / FINISHED
        path = Path(getattr(trainer, "ckpt_path", None) or finished)
        self._model = str(path.resolve()) if path.is_file() else ""
        self._digest = file_digest(path) if path.is_file() else ""

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        """Keep what was said of the images of a batch that this process counts."""
        del outputs
        if batch.image_path is None:
            return
        subset = Subset.from_trainer(trainer, "test")
        belongs = subset.attach(batch)
        for index, path in enumerate(batch.image_path):
            if belongs.counted[index]:
                self._records.append(self._record(pl_module, subset, batch, index, belongs.names[index]))
                if self._root is not None and pl_module.visualizer and not trainer.fast_dev_run:
                    name, shown = os.path.relpath(path, self._root), batch.anomaly_map[index].float().cpu().numpy()
                    write_heat_map(self._folder, name, shown.squeeze())

    def _record(self, pl_module: Any, subset: Subset, batch: Any, index: int, category: str) -> Record:
        path, truth = batch.image_path[index], None if batch.gt_label is None else bool(batch.gt_label[index])
        kind = "" if truth is None else subset.kind_of(path) or ("anomalous" if truth else score_table.GOOD)
        size, post, regions = _size_of(path), pl_module.post_processor, list[Region]()
        thresholds, anomalous = (math.nan, math.nan), None
        if batch.pred_label is not None:
            anomalous = bool(batch.pred_label[index])
            if isinstance(post, InpPostProcessor):
                thresholds = (post.in_force("image", category), post.in_force("pixel", category))
            if size is not None and batch.pred_mask is not None:
                mask, raw_map = (values[index].squeeze() for values in (batch.pred_mask, batch.raw_map))
                inspection = getattr(pl_module, "inspection", EVERYTHING)
                planes = (mask.cpu().numpy().astype(bool), raw_map.float().cpu().numpy())
                crop_box = crop_box_of(pl_module.pre_processor)
                regions, _ = find_regions(*planes, crop_box, size, inspection.smallest_area)
        scores = (float(batch.pred_score[index]), float(getattr(batch, "raw_score", batch.pred_score)[index]))
        known = make_record(path, self._digest, thresholds, kind=kind, anomalous=anomalous, scores=scores, size=size)
        return with_regions(known, regions)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write and print."""
        found, self._records = self._records, []
        if distributed.is_available() and distributed.is_initialized():
            parts: list[Any] = [None] * trainer.world_size
            distributed.all_gather_object(parts, found)
            found = [record for part in parts for record in part]
        if not found or not trainer.is_global_zero or trainer.fast_dev_run:
            return
        folder = self._folder
        root = self._root or common_root(record["path"] for record in found)
        for record in found:
            record["path"] = Path(os.path.relpath(record["path"], root)).as_posix()
        found.sort(key=lambda record: record["path"])
        crop_box = crop_box_of(pl_module.pre_processor)
        write_note(folder, root, self._model, self._digest, crop_box, _shifts(pl_module.post_processor))
        records.write_records(folder / records.FILE, found)
        rows = list(map(row_of, found))
        score_table.write_rows(folder / score_table.FILE, rows)
        (folder / score_table.COUNTED).unlink(missing_ok=True)  # of an earlier test
        if rates := count_verdicts(rows):
            write_verdicts(folder, rates)
            if self._verbose:
                Console().print(verdict_table(rates))


def _shifts(post: Any) -> dict[str, float]:
    """How far a sensitivity moves what is in force from the threshold, of each category and of all."""
    if not isinstance(post, InpPostProcessor) or post.image_sensitivity == 0.5:
        return {}
    return {
        category or "": post.scale("image", category).shift(1 - post.image_sensitivity)
        for category in (None, *post.ranges)
    }


def _size_of(path: str) -> tuple[int, int] | None:
    header = read_header(path)
    return None if isinstance(header, str) else header.size
