# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Verdicts at the threshold in force, counted: false alarms of normal images, what was caught of each kind."""

import csv
from collections.abc import Iterable
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from anomalib_inp.files import replacing
from anomalib_inp.results.score_table import COUNTED, GOOD, WRITTEN, Row
from anomalib_inp.thresholds.rates import Rate

COLUMNS = ("kind", "images", "above", "share", "low", "high")


def count_verdicts(rows: Iterable[Row]) -> dict[str, Rate]:
    """Count, of each kind of image, how many are above the threshold, normal ones first.

    Images of no known kind, and those without a verdict, are left out.
    """
    verdicts: dict[str, list[bool]] = {}
    for row in rows:
        if row.kind and row.anomalous is not None:
            verdicts.setdefault(row.kind, []).append(row.anomalous)
    order = sorted(verdicts, key=lambda kind: (kind.rpartition("/")[0], kind.rpartition("/")[2] != GOOD, kind))
    return {kind: Rate(sum(verdicts[kind]), len(verdicts[kind])) for kind in order}


def write_verdicts(folder: Path, rates: dict[str, Rate]) -> None:
    """Write ``confusion.csv``: of each kind, images, those above the threshold, their share and its interval."""
    with replacing(folder / COUNTED) as temporary, temporary.open("w", **WRITTEN) as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for kind, rate in rates.items():
            share = (rate.hits / rate.total, *rate.interval())
            writer.writerow([kind, rate.total, rate.hits, *(f"{value:.6f}" for value in share)])


def verdict_table(rates: dict[str, Rate]) -> Table:
    """Set verdicts out as a table to print: false alarms of normal images, caught and missed ones of the others."""
    table = Table()
    table.add_column("kind", overflow="fold")
    for header in ("images", "false alarms", "caught", "missed", "%", "95 % interval"):
        table.add_column(header, justify="right")
    for kind, rate in rates.items():
        is_good = kind.rpartition("/")[2] == GOOD
        counts = (rate.hits, "", "") if is_good else ("", rate.hits, rate.total - rate.hits)
        low, high = (f"{100 * bound:.1f}" for bound in rate.interval())
        share = f"{100 * rate.hits / rate.total:.1f}"
        table.add_row(escape(kind), str(rate.total), *map(str, counts), share, f"{low} to {high}")
    return table
