# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The seven metrics as a table on the screen and as files."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.markup import escape
from rich.table import Table

from anomalib_inp.data.subset import MEAN
from anomalib_inp.evaluation.metrics import COLUMNS

Rows = Mapping[str, Mapping[str, float]]
"""Per name (a category, the mean), values in [0, 1] under the keys of ``COLUMNS``."""


def with_mean(rows: Rows) -> dict[str, dict[str, float]]:
    """Add the mean over the categories: of each metric, over those that have it."""
    measured = {
        key: [values[key] for values in rows.values() if not math.isnan(values.get(key, math.nan))] for key in COLUMNS
    }
    mean = {key: float(np.mean(values)) for key, values in measured.items() if values}
    return {**{name: dict(values) for name, values in rows.items()}, MEAN: mean}


def metrics_table(rows: Rows) -> Table:
    """Set metrics out as a table to print: a row per name, in per cent; ``-`` where a metric is missing or nan."""
    table = Table()
    table.add_column("category", overflow="fold")
    for header in COLUMNS.values():
        table.add_column(header, justify="right")
    for name, values in rows.items():
        table.add_row(escape(name), *_cells(values))
    return table


def write_metrics(folder: Path, rows: Rows) -> None:
    """Write ``metrics.csv`` and ``metrics.json`` (values in [0, 1]) and ``metrics.md`` (per cent) into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["category", *COLUMNS])
    writer.writerows([name, *(values.get(key, "") for key in COLUMNS)] for name, values in rows.items())
    plain = {name: {key: _number(value) for key, value in values.items()} for name, values in rows.items()}
    lines = [[name, *_cells(values)] for name, values in rows.items()]
    contents = {
        "metrics.csv": text.getvalue(),
        "metrics.json": json.dumps(plain, indent=1) + "\n",
        "metrics.md": markdown(["category", *COLUMNS.values()], lines) + "\n",
    }
    for name, content in contents.items():
        (folder / name).write_text(content, encoding="utf-8")


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown; all columns but the first are aligned to the right."""
    rows = [header, ["---", *["---:"] * (len(header) - 1)], *lines]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows)


def mean_of_seeds(values: Sequence[float]) -> str:
    """Write the mean of values in [0, 1] in per cent, with half their range where there are several; ``-`` for none."""
    if not values:
        return "-"
    half = f" ±{50 * (max(values) - min(values)):.1f}" if len(values) > 1 else ""
    return f"{100 * float(np.mean(values)):.2f}{half}"


def _cells(values: Mapping[str, float]) -> list[str]:
    cells = (values.get(key, math.nan) for key in COLUMNS)
    return ["-" if math.isnan(cell) else f"{100 * cell:.2f}" for cell in cells]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value  # JSON has no nan
