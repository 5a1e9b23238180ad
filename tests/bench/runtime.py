# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""``anomalib-inp predict`` in fresh processes, for speed.py: its start, images per second, and memory."""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pages
from PIL import Image

IMAGES = {"ViT-S/14": 500, "ViT-B/14": 200}
"""Images of the folder whose images per second are measured."""
FEW, MANY = 100, 2000
SIZES = (300, 1100)
PREDICT = (sys.executable, "-m", "anomalib_inp.cli", "predict")

# The least that a program does that runs an export on one image.
ALONE = """
import sys
import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
image = np.asarray(Image.open(sys.argv[2]).convert("RGB"), dtype=np.float32).transpose(2, 0, 1)[None] / 255
session.run(None, {"input": image})
"""

# The model by itself: images that are read and prepared already, as many as asked for.
MODEL = """
import itertools, sys, time
from pathlib import Path
from anomalib_inp import ExportedModel
from anomalib_inp.runtime.predict import read

model = ExportedModel(sys.argv[1], performance="throughput")
images = [model.prepare(read(path)) for path in sorted(Path(sys.argv[2]).iterdir())[:20]]
list(model.stream(images[:4]))
start = time.perf_counter()
for _ in model.stream(itertools.islice(itertools.cycle(images), int(sys.argv[3]))):
    pass
print(time.perf_counter() - start)
"""


def mixed_images(source: Path, folder: Path, count: int) -> Path:
    """Write images of mixed sizes, JPEG and PNG: a hundred different ones, again and again."""
    folder.mkdir()
    rng, originals = np.random.default_rng(0), sorted(source.iterdir())
    for index in range(count):
        path = folder / f"{index:05}.{'png' if index % 2 else 'jpg'}"
        if index < 100:
            size = tuple(rng.integers(*SIZES, size=2).tolist())
            Image.open(originals[index % len(originals)]).convert("RGB").resize(size).save(path)
        else:
            path.hardlink_to(folder / f"{index % 100:05}{path.suffix}")
    return folder


def measured(*command: object) -> tuple[float, float]:
    """Run a command; returns seconds and the peak of the memory in MB."""
    began = time.perf_counter()
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        raise subprocess.CalledProcessError(status, process.args)
    return seconds, usage.ru_maxrss / 1024


def start(exports: dict[str, Path], image: Path, folder: Path, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Predict one image, pictures included, with warm caches; and do the least with ONNX Runtime."""
    commands = {
        f"predict, {kind}": (*PREDICT, path, image, "--output", folder / "one") for kind, path in exports.items()
    }
    commands["ONNX Runtime alone"] = (sys.executable, "-c", ALONE, exports["ONNX"], image)
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            result = measured(*command)
            if number:  # the first compiles, and fills the caches
                runs[name].append(result)
    return runs


def per_second(model: Path, images: Path, folder: Path, rounds: int) -> dict[str, list[float]]:
    """Images per second of the model alone, and of the whole command, its start included."""
    count = len(list(images.iterdir()))
    whole = (*PREDICT, model, images, "--output", folder / "many")
    rates: dict[str, list[float]] = {"model alone": [], "predict, no pictures": [], "predict": []}
    for _ in range(rounds):
        command = [sys.executable, "-c", MODEL, str(model), str(images), str(count)]
        rates["model alone"].append(count / float(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout))
        rates["predict, no pictures"].append(count / measured(*whole, "--pictures", "false")[0])
        rates["predict"].append(count / measured(*whole)[0])
    return rates


def memory(model: Path, source: Path, folder: Path) -> dict[str, float]:
    """Peak memory of a few images and of many, pictures drawn, in MB."""
    peaks = {}
    for count in (FEW, MANY):
        images = mixed_images(source, folder / f"images-{count}", count)
        _, peaks[str(count)] = measured(*PREDICT, model, images, "--output", folder / "memory")
    return peaks


def text(values: dict[str, Any], labels: list[str]) -> str:
    """Write the table of what was measured."""
    rows = []
    for run in ("predict, OpenVINO", "predict, ONNX", "ONNX Runtime alone"):
        cells = []
        for label in labels:
            seconds, peaks = zip(*values[f"start {label}"][run], strict=True)
            cells.append(f"{pages.spread(list(seconds))} s, {statistics.median(peaks):.0f} MB")
        goal = "2.5 s, 400 MB (ViT-S)" if run == "predict, OpenVINO" else ""
        rows.append([f"one image: {run}", goal, *cells])
    for run in ("model alone", "predict, no pictures", "predict"):
        cells = []
        for label in labels:
            rates = values[f"folder {label}"]
            share = statistics.median(pages.ratios(rates, run, "model alone"))
            cells.append(f"{statistics.median(rates[run]):.2f} a second ({100 * share:.0f} %)")
        rows.append([f"a folder: {run}", "85 %" if run == "predict, no pictures" else "", *cells])
    for count, peak in values.get("folder memory", {}).items():
        rows.append([f"{count} images: peak memory", "", f"{peak:.0f} MB", *[""] * (len(labels) - 1)])
    return pages.table(["", "goal", *labels], rows)
