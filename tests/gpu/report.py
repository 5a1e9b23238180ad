# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Puts what the GPU check has found into docs/performance.md: ``make report-gpu RESULTS=gpu-check/gpu.json``."""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench import pages
from gpu.inference import LARGEST

from anomalib_inp.evaluation.metrics import COLUMNS

RESULTS = pages.DOCS / "benchmarks" / "gpu.json"
LEFT_OUT = ("whole/runs",)
"""Every loss and score; what they come to is in other parts."""
ENCODERS = ("ViT-S/14", "ViT-B/14")
Values = dict[str, Any]


def merged(paths: Iterable[Path]) -> Values:
    """Put the results of several runs together; of a part that was run twice, the last file's.

    Raises:
        ValueError: They are of a dry run, or not all of one card.
    """
    values: Values = {}
    for path in paths:
        parts = json.loads(path.read_text(encoding="utf-8"))
        found = {name: part["value"] for name, part in parts.items() if "value" in part and name not in LEFT_OUT}
        card = found.get("environment", {}).get("card", "")
        if "memory" not in found.get("environment", {}):
            msg = f"{path} holds no results of a GPU, its card is {card!r}: run tests/gpu/check.sh with a GPU."
            raise ValueError(msg)
        before = values.get("environment", {}).get("card", card)
        if card != before:
            msg = f"{path} is of {card} and the files before it of {before}: a table has one card."
            raise ValueError(msg)
        values |= found
    return values


def page(values: Values) -> str:
    """Write the text: the card, what was compared, and the tables of times."""
    here, peaks = values["environment"], values.get("peaks", {})
    versions = ", ".join(f"{name} {here['versions'][name]}" for name in ("anomalib", "torch", "timm", "lightning"))
    machine = (
        f"{here['card']}, {here['memory']:.0f} GiB, driver {here['driver']}, CUDA {here['cuda']}; Python "
        f"{here['python']}, anomalib-inp {here['anomalib_inp']}, {versions}."
    )
    if peaks:
        machine += (
            f" Products of {peaks['side']}x{peaks['side']} reach {peaks['bfloat16']:.0f} TFLOP/s in bfloat16, "
            f"{peaks['TF32']:.0f} in TF32 and {peaks['float32']:.0f} in float32; a copy moves {peaks['copy']:.0f} GB/s."
        )
    tables = [compared(values), metrics(values), steps(values), reading(values), inference(values), exports(values)]
    return "\n\n".join([machine, *filter(None, tables)])


def compared(values: Values) -> str:
    """List what was held against a limit: the largest value of each part, and its limit."""
    rows = []
    for name, value in values.items():
        limits = value.get("limits", {}) if isinstance(value, dict) else {}
        if not limits:
            continue
        # of many limits, the one that is nearest to being passed
        what, (got, most) = max(
            limits.items(), key=lambda limit: limit[1][0] / limit[1][1] if limit[1][1] else limit[1][0]
        )
        passed = sum(1 for got, most in limits.values() if not got <= most)
        rows.append([name, str(len(limits)), str(passed) if passed else "none", what, f"{got:.2g}", f"{most:.2g}"])
    header = ["compared", "limits", "passed over", "nearest to its limit", "value", "limit"]
    return pages.table(header, rows, " r  rr") if rows else ""


def metrics(values: Values) -> str:
    """Set the metrics of the whole trainings side by side."""
    found = values.get("whole/metrics", {}).get("metrics", {})
    rows = [[name, *(f"{100 * one[key]:.2f}" for key in COLUMNS)] for name, one in found.items()]
    return pages.table(["training, in per cent", *COLUMNS.values()], rows, " " + "r" * 7) if rows else ""


def steps(values: Values) -> str:
    """Times of training steps."""
    peak = values.get("peaks", {}).get("bfloat16", 0)
    found: dict[str, dict[str, list[str]]] = {}
    for label in ENCODERS:
        work = values.get(f"training/{label}/work", {})
        for name, value in _of(values, f"training/{label}/"):
            if "images_per_second" not in value:
                continue
            speed = value["images_per_second"]
            share = 100 * speed * work.get(name.split(",")[0], 0) / peak if peak else 0
            cells = [f"{value['ms']:.1f}", f"{speed:.0f}", f"{share:.0f} %", f"{value['peak_mb'] / 1024:.1f}"]
            found.setdefault(name, {})[label] = cells
    units = ("ms", "images/s", "of the bf16 peak", "GiB")
    return _table("training step, batch 16", found, units)


def reading(values: Values) -> str:
    """Times of steps inside the Engine."""
    found: dict[str, dict[str, list[str]]] = {}
    for label in ENCODERS:
        for name, value in _of(values, f"loading/{label}/"):
            filled = f"{value['filled_per_second']:.0f}" if "filled_per_second" in value else ""
            cells = [f"{value['ms']:.1f}", f"{value['images_per_second']:.0f}", filled]
            found.setdefault(name, {})[label] = cells
    units = ("ms a step", "images/s", "filled, images/s")
    return _table("through the Engine, batch 16", found, units)


def inference(values: Values) -> str:
    """Times of inference."""
    found: dict[str, dict[str, list[str]]] = {}
    for label in ENCODERS:
        for name, value in _of(values, f"inference/{label}/"):
            batch, variant = name.split("/")
            cells = found.setdefault(variant, {}).setdefault(label, ["", "", ""])
            if batch == "batch 1":
                cells[0] = f"{value['ms']:.2f}"
            else:
                cells[1] = f"{value['images_per_second']:.0f}"
            cells[2] = f"{value['map_off_by']:.1e}"
    units = ("ms, batch 1", "images/s, batch 32", "map off by")
    return _table("inference", found, units)


def exports(values: Values) -> str:
    """Times of ONNX Runtime."""
    rows = []
    for label in ENCODERS:
        for name, value in _of(values, f"onnx/{label}/"):
            if "batch 1" in value:
                large = value.get(f"batch {LARGEST}")
                throughput = f"{1000 * LARGEST / large['ms']:.0f}" if large else ""
                rows.append([label, name, f"{value['batch 1']['ms']:.2f}", throughput])
    return pages.table(["", "ONNX Runtime", "ms, batch 1", f"images/s, batch {LARGEST}"], rows, "  rr") if rows else ""


def _of(values: Values, prefix: str) -> list[tuple[str, Any]]:
    return [(name.removeprefix(prefix), value) for name, value in values.items() if name.startswith(prefix)]


def _table(title: str, found: dict[str, dict[str, list[str]]], units: tuple[str, ...]) -> str:
    labels = [label for label in ENCODERS if any(label in cells for cells in found.values())]
    header = [title, *(f"{label}, {unit}" for label in labels for unit in units)]
    rows = [
        [name, *(cell for label in labels for cell in cells.get(label, [""] * len(units)))]
        for name, cells in found.items()
    ]
    return pages.table(header, rows, " " + "r" * len(header)) if rows else ""


def main() -> None:
    """Keep the results beside those of the other benchmarks, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="gpu.json of one or more runs on one card")
    values = merged(parser.parse_args().results)
    RESULTS.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    pages.replace(pages.DOCS / "performance.md", "gpu", page(values))


if __name__ == "__main__":
    main()
