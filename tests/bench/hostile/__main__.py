# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What people really feed it, through training, tests, predictions, exports and runtimes: ``make bench-hostile``.

Each input either gives the right result, compared with that of a clean twin, or is refused by one clear sentence of
ours. Anything else, a traceback, a silent drop or a wrong score, is a fault. The table goes to ``docs/reliability.md``.
"""

import os
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pages

from hostile.arrays import arrays
from hostile.artefacts import checkpoints, disks, exports, settings, stopped
from hostile.bench import Bench, judge
from hostile.data_sets import layouts, links, masks, names
from hostile.images import SIZES, broken_files, image_files, parity

PAGE = pages.DOCS / "reliability.md"

KINDS = (arrays, image_files, parity, broken_files, masks, layouts, links, names, checkpoints, exports, disks, stopped)


def report(counts: Counter[tuple[str, str]], bench: Bench) -> str:
    """Set the counts out as a table, a row for a kind."""
    kinds = list(dict.fromkeys(kind for kind, _ in counts))
    rows = [[kind, *(str(counts[kind, outcome]) for outcome in ("right", "refused", "fault"))] for kind in kinds]
    totals = [sum(counts[kind, outcome] for kind in kinds) for outcome in ("right", "refused", "fault")]
    rows.append([f"**{sum(totals)} inputs**", *(f"**{total}**" for total in totals)])
    table = pages.table(["kind", "right result", "refused by one sentence", "fault"], rows, " rrr")
    return (
        f"{table}\n\nExports beside the Engine, images of {len(SIZES)} sizes in colour and grey: the largest "
        f"difference of a raw map is {bench.parity:.1e}.\n\nMeasured with {pages.machine()}."
    )


def run_all(root: Path, only: str) -> tuple[Counter[tuple[str, str]], Bench]:
    """Run all cases whose kind or name holds a text, and print the faults."""
    os.environ["ANOMALIB_INP_CACHE"] = str(root / "cache")
    bench, counts, number = Bench(root), Counter[tuple[str, str]](), 0
    for make in (*KINDS, settings):
        for case in make(bench):
            if only and only not in f"{case.kind}: {case.name}":
                continue
            number += 1
            folder = root / f"case{number}"
            outcome, said = judge(case, folder)
            counts[case.kind, outcome] += 1
            if outcome == "fault":
                print(f"{case.kind}: {case.name}: {said}", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
    return counts, bench


if __name__ == "__main__":
    parser = pages.parser(__doc__, PAGE.name)
    parser.add_argument(
        "--only", default="", help="run the cases whose kind or name holds this text, and write no page"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        counts, bench = run_all(Path(name), given.only)
        page = report(counts, bench)
    print(page)
    if not given.only:
        pages.replace(given.out, "hostile", page)
    sys.exit(any(outcome == "fault" for _, outcome in counts))
