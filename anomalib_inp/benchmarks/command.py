# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The command ``anomalib-inp benchmark``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.text import Text

from anomalib_inp.benchmarks.settings import SettingName
from anomalib_inp.data.source import Source
from anomalib_inp.models.registry import MODELS

if TYPE_CHECKING:
    ModelName = str
else:
    ModelName = Literal[tuple(MODELS)]  # the command line offers these


def benchmark(
    setting: SettingName,
    source: str = "MVTecAD",
    root: str | None = None,
    categories: list[str] | str = "all",
    sources: tuple[Source, ...] | None = None,
    train_on: list[str] | None = None,
    test_on: list[str] | None = None,
    model: ModelName = "InpFormer",
    seeds: list[int] = [0],  # noqa: B006 - the help shows it
    shots: int | None = None,
    labelled_anomalies: int | None = None,
    output: Path = Path("benchmark"),
    model_args: dict[str, Any] | None = None,
    data_args: dict[str, Any] | None = None,
    trainer_args: dict[str, Any] | None = None,
) -> None:
    """Run a setting of the papers on a data set and report it beside the published numbers.

    The paper's protocol (448 pixels, of which the central 392; 200 epochs, batches of 16) unless told otherwise. Runs
    that are done are not done again, and one that was stopped goes on after its last epoch.

    Args:
        setting: Zero-shot leaves one category out at a time, or trains on train_on and tests on test_on; it shows the
            map self_distance, and the paper's with model_args map prototype_distance.
        source: Image data module of anomalib.
        root: Folder of the data set.
        categories: Names of categories, or all.
        sources: Several data sets at once, each with source, root, categories and arguments.
        train_on: Categories or sources to train on; by default all.
        test_on: Categories or sources to test on; by default all.
        model: The model.
        seeds: A run for each.
        shots: Normal images per category, for few_shot alone; by default 4.
        labelled_anomalies: Labelled anomalies per category, for semi_supervised alone; by default 5.
        output: Folder for the results.
        model_args: Further arguments of the model, such as encoder or recipe.
        data_args: Further arguments of MultiCategory, such as train_batch_size.
        trainer_args: Arguments of the trainer, such as max_steps or precision.
    """
    from lightning.pytorch.utilities import rank_zero_only

    from anomalib_inp.benchmarks.report import write_report
    from anomalib_inp.benchmarks.runs import Benchmark, Rows
    from anomalib_inp.evaluation.report import metrics_table

    data = {
        "source": source,
        "root": root,
        "categories": categories,
        "sources": sources,
        "train_on": train_on,
        "test_on": test_on,
        **(data_args or {}),
    }
    runs = Benchmark(setting, data, model, output, model_args or {}, trainer_args or {}, shots, labelled_anomalies)
    console = Console()
    results: dict[int, Rows] = {}
    for run in runs.runs(seeds):
        console.print(Text(str(runs.folder / run.name), "bold"))
        results.setdefault(run.seed, {}).update(runs.result(run))
    if rank_zero_only.rank != 0:  # of several processes, one reports
        return
    console.print(metrics_table(write_report(runs, results)))
    console.print(Text(f"Report: {runs.folder / 'report.md'}"))
