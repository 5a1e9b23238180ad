# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What the benchmarks share: results that are kept from run to run, and pages with tables between two marks."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import anomalib
import torch
from filelock import FileLock

import anomalib_inp
from anomalib_inp.files import replacing

DOCS = Path(__file__).parents[2] / "docs"


class Results:
    """Results by name in a JSON file; one that is there is not measured again.

    Two processes may measure different names at once: what the other has written meanwhile is kept.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def values(self) -> dict[str, Any]:
        """All that was measured so far."""
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def get(self, key: str, measure: Callable[[], Any]) -> Any:
        """Return what was measured before, or measure and keep it."""
        measured = self.values
        if key in measured:
            return measured[key]
        print(key, flush=True)
        result = measure()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = Path(tempfile.gettempdir()) / f"anomalib-inp-{self.path.stem}.lock"
        with FileLock(lock), replacing(self.path) as temporary:
            temporary.write_text(json.dumps({**self.values, key: result}, indent=1))
        return result


def parser(description: str | None, page: str, data: bool = False) -> argparse.ArgumentParser:
    """Make a parser of the arguments that the benchmarks share.

    Args:
        description: What the benchmark does.
        page: Page of the docs that holds its tables.
        data: Whether it needs a data set.
    """
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if data:
        made.add_argument("--data", type=Path, required=True, help="folder of the categories")
    made.add_argument("--out", type=Path, default=DOCS / page, help="page that holds the tables")
    return made


def in_fresh_process(script: str, *arguments: object) -> Any:
    """Run a script and return the JSON in the last line that it prints."""
    command = [sys.executable, script, *map(str, arguments)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def memory_peak(process: int | str = "self") -> float:
    """Highest resident memory of a process so far, in MB; 0 once it has ended. Linux only.

    What ``getrusage`` says of a process begins with the memory of the one that started it.
    """
    with suppress(OSError, StopIteration):
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    return 0.0


def replace(page: Path, name: str, text: str) -> None:
    """Put a text into a page, between the marks of this name."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    head, rest = page.read_text(encoding="utf-8").split(begin)
    page.write_text(f"{head}{begin}\n{text}\n{end}{rest.split(end)[1]}", encoding="utf-8")


def table(header: list[str], rows: list[list[str]], align: str = "") -> str:
    """Write a table in Markdown; ``align`` has an ``r`` for each column whose numbers stand on the right."""
    marks = ["---:" if align[index : index + 1] == "r" else "---" for index in range(len(header))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, marks, *rows))


def spread(values: list[float], digits: int = 2) -> str:
    """Median, smallest and largest of values."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def alternate(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Time all runs in turn, so that what disturbs the machine disturbs them all."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return times


def ratios(times: dict[str, list[float]], slow: str, fast: str) -> list[float]:
    """Ratios of neighbouring runs."""
    return [first / second for first, second in zip(times[slow], times[fast], strict=True)]


def machine() -> str:
    """Say what the numbers were measured with."""
    threads = torch.get_num_threads()
    return (
        f"anomalib-inp {anomalib_inp.__version__}, anomalib {anomalib.__version__}, torch "
        f"{torch.__version__.split('+')[0]}, Python {platform.python_version()}, {os.cpu_count()} CPU cores, "
        f"{threads} thread{'s' if threads > 1 else ''}"
    )
