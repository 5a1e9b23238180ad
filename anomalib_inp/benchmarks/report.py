# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The report of a benchmark: the means over its seeds beside the published numbers."""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from importlib.resources import files
from statistics import mean
from urllib.parse import quote

import anomalib.data
import torch

import anomalib_inp
from anomalib_inp.benchmarks.runs import Benchmark, Rows
from anomalib_inp.data import Source
from anomalib_inp.data.modules import categories_of
from anomalib_inp.data.subset import MEAN
from anomalib_inp.evaluation.metrics import COLUMNS
from anomalib_inp.evaluation.report import markdown, mean_of_seeds, with_mean

REPAIRED = (
    "The published code, after its handling of masks was repaired, gives a lower pixel AP and F1-max than the paper "
    "says (one user measured 65.2 on MVTec AD, multi-class)."
)
LEFT_OUT = (
    "Here each category is tested by a model of the other categories of its data set; the published model was trained "
    "on another data set."
)


def write_report(benchmark: Benchmark, seeds: Mapping[int, Rows]) -> Rows:
    """Write ``report.md`` and ``report.csv`` into the folder of a benchmark.

    Args:
        benchmark: The benchmark.
        seeds: Metrics by category, by seed.

    Returns:
        The means over the seeds.
    """
    tables = {seed: with_means(rows) for seed, rows in seeds.items()}
    _write_csv(benchmark, tables)
    means: Rows = {}
    lines = []
    for name in next(iter(tables.values())):
        values = {key: [table[name][key] for table in tables.values() if key in table[name]] for key in COLUMNS}
        means[name] = {key: mean(of_seeds) for key, of_seeds in values.items() if of_seeds}
        lines.append([name, *(mean_of_seeds(values[key]) for key in COLUMNS)])
    notes = []
    for name, numbers, source in find_published(benchmark):
        lines.append([name, *("-" if number is None else f"{number:.1f}" for number in numbers)])
        notes.append(f"{name}: {source}.")
        if benchmark.setting.unseen and benchmark.tests_what_it_trains:
            notes.append(LEFT_OUT)
        if numbers[list(COLUMNS).index("pixel_AP")] is not None:
            notes.append(REPAIRED)
    numbers_of = ", ".join(map(str, seeds))
    spread = f"mean of {len(seeds)} seeds ({numbers_of}), ± half the range" if len(seeds) > 1 else f"seed {numbers_of}"
    versions = f"anomalib-inp {anomalib_inp.__version__}, anomalib {anomalib.__version__}, torch {torch.__version__}"
    page = [
        f"# {benchmark.setting.title}, {benchmark.model}",
        markdown(["category", *COLUMNS.values()], lines),
        f"Per cent; {spread}. {versions}. {_arguments(benchmark)}",
        *dict.fromkeys(notes),
        *_pictures(benchmark, seeds),
    ]
    (benchmark.folder / "report.md").write_text("\n\n".join(page) + "\n", encoding="utf-8")
    return means


def with_means(rows: Rows) -> Rows:
    """Add the mean over all categories, and that of each data set where there are several."""
    means = {MEAN: with_mean(rows)[MEAN]}
    sources = sorted({name.partition("/")[0] for name in rows if "/" in name})
    for source in sources if len(sources) > 1 else ():
        of_source = {name: values for name, values in rows.items() if name.startswith(f"{source}/")}
        means[f"{source}, {MEAN}"] = with_mean(of_source)[MEAN]
    return {**rows, **means}


def find_published(benchmark: Benchmark) -> Iterator[tuple[str, list[float | None], str]]:
    """Find the published numbers of the data sets that were tested on, all categories of them.

    There are none to compare with where other categories were trained on, unless the setting is about such.

    Yields:
        What a row is called, the seven metrics in per cent (``None`` where a paper has none), and the paper.
    """
    if not (benchmark.tests_what_it_trains or benchmark.setting.unseen):
        return
    text = files("anomalib_inp.benchmarks").joinpath("published.json").read_text(encoding="utf-8")
    of_model = json.loads(text).get(benchmark.model, {})
    published = of_model.get(benchmark.setting.title, of_model.get(benchmark.setting.name, {}))
    kinds = {source.name or source.source: source.source for source in benchmark.data.get("sources") or []}
    categories: dict[str, set[str]] = {}
    for name in benchmark.tested:
        source, _, category = name.rpartition("/")
        categories.setdefault(source, set()).add(category)
    for source in sorted(categories):
        kind = kinds.get(source, benchmark.data.get("source", ""))
        if kind in published and categories[source] == set(categories_of(getattr(anomalib.data, kind))):
            yield f"{source or kind}, published", published[kind]["values"], published[kind]["source"]


def _write_csv(benchmark: Benchmark, tables: Mapping[int, Rows]) -> None:
    with (benchmark.folder / "report.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["category", "seed", *COLUMNS])
        for seed, rows in tables.items():
            writer.writerows([name, seed, *(values.get(key, "") for key in COLUMNS)] for name, values in rows.items())


def _arguments(benchmark: Benchmark) -> str:
    """State with which arguments the numbers were made, but for those that say which images."""
    images = {"sources", "train_on", "test_on", *(field.name for field in fields(Source))}
    data = {name: value for name, value in benchmark.data.items() if name not in images}
    parts = {"model": benchmark.model_args, "data": data, "trainer": benchmark.trainer_args}
    lists = (
        f"{part}: {', '.join(f'{name}={value}' for name, value in arguments.items())}"
        for part, arguments in parts.items()
        if arguments
    )
    return f"Arguments of the {'; of the '.join(lists)}."


def _pictures(benchmark: Benchmark, seeds: Mapping[int, Rows]) -> list[str]:
    found = (path for seed in seeds for path in (benchmark.folder / f"seed{seed}").rglob("images/**/*.png"))
    pictures = sorted(path.relative_to(benchmark.folder) for path in found)
    return [f"![{path}]({quote(path.as_posix())})" for path in pictures]
