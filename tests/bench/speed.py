# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Speed and memory beside anomalib's InpFormer, with the same encoder: ``make bench-speed``.

Everything is measured side by side in one process, alternating, and given as a ratio; memory in one fresh process per
model. Results are kept in ``docs/benchmarks/speed.json``; what is there is not measured again, so the benchmark can
be stopped at any time. The weights are random: speed does not depend on them.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pages
import runtime
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from anomalib.models.components import AnomalibModule
from lightning import Callback
from rival import builtin_inp_former, random_weights
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from anomalib_inp import InpFormer
from anomalib_inp.benchmarks.exports import memory_now, memory_peak
from anomalib_inp.data.sample import write_sample_data
from anomalib_inp.exporting import convert, quantization
from anomalib_inp.runtime.predict import read

SIZE = 392
ENCODERS = {"ViT-S/14": "vit_small_patch14_dinov2", "ViT-B/14": "vit_base_patch14_dinov2"}
BATCH = 8
STEPS = 2  # of a timed epoch
RUNS = (
    ("inference", "anomalib", "anomalib", "float32"),
    ("inference", "anomalib-inp", "anomalib-inp", "float32"),
    ("exports", "anomalib torch", "anomalib", "float32"),
    ("exports", "anomalib OpenVINO, default", "anomalib", "bfloat16"),
    ("exports", "OpenVINO FP32, f32", "anomalib-inp", "float32"),
    ("exports", "OpenVINO FP32, default", "anomalib-inp", "bfloat16"),
    ("exports", "OpenVINO INT8, f32", "anomalib-inp", None),
    ("exports", "OpenVINO INT8, default", "anomalib-inp", None),
    ("training", "anomalib", None, "float32"),
    ("training", "not cached", None, "float32"),
    ("training", "cached float32", "training, cached", "float32"),
    ("training", "cached bfloat16", "training, cached", "bfloat16"),
)
"""Of each line of the table: section, run, whose operations count, and the precision of its matrix products."""

RESULTS = pages.DOCS / "benchmarks" / "speed.json"


def build(name: str, encoder: str, folder: Path, **kwargs: Any) -> AnomalibModule:
    """Build anomalib's model or ours with random weights."""
    if name == "anomalib":
        model = builtin_inp_former(encoder, post_processor=False, evaluator=False, visualizer=False)
        model.pre_processor = model.configure_pre_processor(image_size=(SIZE, SIZE), crop_size=SIZE)
        return model
    return InpFormer(
        encoder, random_weights(encoder, folder), image_size=SIZE, evaluator=False, visualizer=False, **kwargs
    )


def gemm() -> dict[str, float]:
    """Measure the best that this machine does at multiplying matrices of 2048x2048, in GFLOP/s by precision."""
    best = {}
    for dtype in (torch.float32, torch.bfloat16):
        first, second = torch.randn(2, 2048, 2048, dtype=dtype)
        seconds = min(pages.alternate({"": partial(torch.mm, first, second)}, 20)[""])
        best[str(dtype).removeprefix("torch.")] = 2 * 2048**3 / seconds / 1e9
    return best


def inference(encoder: str, folder: Path, rounds: int) -> dict[str, list[float]]:
    """Time one normalised image through each network, map and score included, in torch."""
    models = {name: build(name, encoder, folder).model.eval() for name in ("anomalib", "anomalib-inp")}
    image = torch.rand(1, 3, SIZE, SIZE)
    with torch.inference_mode():
        return pages.alternate({name: partial(model, image) for name, model in models.items()}, rounds)


def work(encoder: str, folder: Path) -> dict[str, float]:
    """Count the floating-point operations of one image, in GFLOP."""
    models = {
        name: build(name, encoder, folder).model.eval().requires_grad_(False) for name in ("anomalib", "anomalib-inp")
    }
    image = torch.rand(1, 3, SIZE, SIZE)
    # Attention written out, so that its two matrix products are counted like all others.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        counted = {name: operations(partial(model, image)) for name, model in models.items()}
        network = models["anomalib-inp"].network
        features = network.encoder(image)
        # forward, and backward to inputs and to weights
        counted["training, cached"] = 3 * operations(lambda: network.reconstruct(features))
    return counted


def operations(run: Callable[[], object]) -> float:
    """Count the floating-point operations of a call, in GFLOP."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e9


def memory(name: str, encoder: str) -> dict[str, float]:
    """Measure in a fresh process how much memory a model takes, its weights included, in MB."""
    return pages.in_fresh_process(__file__, "--memory-of", name, "--encoder", encoder)


def memory_of(name: str, encoder: str) -> dict[str, float]:
    """Measure this process: what it holds before, and its peak while the model runs."""
    with tempfile.TemporaryDirectory() as folder:
        image = torch.rand(1, 3, SIZE, SIZE)
        model = build(name, encoder, Path(folder)).model.eval()
        gc.collect()
        weights = sum(weight.nbytes for weight in [*model.parameters(), *model.buffers()]) / 2**20
        before = memory_now()
        with torch.inference_mode():
            for _ in range(3):
                model(image)
        return {"model": weights + memory_peak() - before, "process": memory_peak()}


def training(encoder: str, folder: Path, rounds: int) -> dict[str, list[float]]:
    """Time an epoch of two batches of eight: decoding, encoding (or reading the cache), training and optimiser."""
    cache = {"feature_cache": "disk", "feature_cache_dir": str(folder / "cache")}
    half = build("anomalib-inp", encoder, folder, **cache, feature_cache_dtype="bfloat16")
    models = {
        "anomalib": (build("anomalib", encoder, folder), "32-true"),
        "cached float32": (build("anomalib-inp", encoder, folder, **cache), "32-true"),
        "cached bfloat16": (half, "bf16-mixed"),
        "not cached": (build("anomalib-inp", encoder, folder), "32-true"),
    }
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, (model, precision) in models.items():
            times[name].append(epoch(model, precision, folder))
    return times


def epoch(model: AnomalibModule, precision: str, folder: Path) -> float:
    """Time one epoch inside Lightning."""
    data = MVTecAD(folder / "sample", "brick", train_batch_size=BATCH, num_workers=0, val_split_mode="none")
    watch = Watch()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
    engine = Engine(
        default_root_dir=folder / "results",
        max_epochs=1,
        limit_train_batches=STEPS,
        precision=precision,
        accelerator="cpu",
        callbacks=[watch],
        **quiet,
    )
    engine.fit(model, datamodule=data)
    # Four models take turns: what an optimiser keeps of each would not fit the memory.
    engine.trainer.strategy.optimizers = []
    model.zero_grad()
    gc.collect()
    return watch.seconds


class Watch(Callback):
    """Times an epoch."""

    def on_train_epoch_start(self, *_: object) -> None:
        """Start."""
        self.start = time.perf_counter()

    def on_train_epoch_end(self, *_: object) -> None:
        """Stop."""
        self.seconds = time.perf_counter() - self.start


def exports(encoder: str, folder: Path, rounds: int) -> dict[str, list[float]]:
    """Time one image through exports and through anomalib's network in torch."""
    theirs = build("anomalib", encoder, folder)
    graph = convert.to_openvino(build("anomalib-inp", encoder, folder))
    image = np.random.default_rng(0).random((1, 3, SIZE, SIZE), dtype=np.float32)
    paths = sorted((folder / "sample/brick/train/good").iterdir())[:8]
    samples = [read(path) for path in paths]
    core = openvino.Core()

    def compiled(model: Any, precision: str | None) -> Callable[[], object]:
        settings = {"PERFORMANCE_HINT": "LATENCY", **({"INFERENCE_PRECISION_HINT": precision} if precision else {})}
        return partial(core.compile_model(model, "CPU", settings), image)

    def in_torch() -> None:
        with torch.inference_mode():
            theirs.model(tensor)

    tensor = torch.from_numpy(image)
    rival = theirs.to_openvino(folder / "rival", input_size=(SIZE, SIZE))
    theirs.model.eval()
    eight = quantization.quantize(graph.clone(), samples, InpFormer.quantised)
    return pages.alternate(
        {
            "anomalib torch": in_torch,
            "anomalib OpenVINO, default": compiled(core.read_model(rival), None),
            "OpenVINO FP32, f32": compiled(graph, "f32"),
            "OpenVINO FP32, default": compiled(graph, None),
            "OpenVINO INT8, f32": compiled(eight, "f32"),
            "OpenVINO INT8, default": compiled(eight, None),
        },
        rounds,
    )


def running(label: str, encoder: str, folder: Path, results: pages.Results) -> None:
    """Measure ``anomalib-inp predict`` on one image and on a folder."""
    wanted = [f"start {label}", f"folder {label}"] + ["folder memory"] * (label == "ViT-S/14")
    if set(wanted) <= results.values.keys():
        return
    source = folder / "sample/brick/train/good"
    model = build("anomalib-inp", encoder, folder)
    model.post_processor.set_thresholds(0.3, 0.3)
    exported = {"OpenVINO": model.to_openvino(folder / encoder), "ONNX": model.to_onnx(folder / encoder)}
    del model
    images = runtime.mixed_images(source, folder / f"mixed-{encoder}", runtime.IMAGES)
    first = min(images.iterdir())
    results.get(wanted[0], partial(runtime.start, exported, first, folder, 5))
    results.get(wanted[1], partial(runtime.many, exported["OpenVINO"], images, folder, 2))
    for key in wanted[2:]:
        results.get(key, partial(runtime.memory, exported["OpenVINO"], source, folder))


def import_time() -> list[float]:
    """Time ``import anomalib_inp`` in fresh processes, in seconds."""
    code = "import time; start = time.perf_counter(); import anomalib_inp; print(time.perf_counter() - start)"
    command = [sys.executable, "-c", code]
    return [float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(5)]


def main() -> None:
    """Measure what is missing and write the page."""
    parser = pages.parser(__doc__, "performance.md")
    parser.add_argument("--rounds", type=int, default=7, help="alternating runs of inference; training has five")
    parser.add_argument("--memory-of", choices=("anomalib", "anomalib-inp"), help=argparse.SUPPRESS)
    parser.add_argument("--encoder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(json.dumps(memory_of(arguments.memory_of, arguments.encoder)))
        return
    results = pages.Results(RESULTS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_sample_data(folder / "sample", categories=("brick",))
        results.get("gemm", gemm)
        results.get("import", import_time)
        for label, encoder in ENCODERS.items():
            results.get(f"inference {label}", partial(inference, encoder, folder, arguments.rounds))
            results.get(f"work {label}", partial(work, encoder, folder))
            for model in ("anomalib", "anomalib-inp"):
                results.get(f"memory {label} {model}", partial(memory, model, encoder))
            results.get(f"training {label}", partial(training, encoder, folder, 5))
            results.get(f"exports {label}", partial(exports, encoder, folder, arguments.rounds))
            running(label, encoder, folder, results)
            results.get("machine", pages.machine)
            write(results.values, arguments.out)


def write(values: dict[str, Any], page: Path) -> None:
    """Put the tables into the page, with the encoders that have been measured."""
    labels = [label for label in ENCODERS if f"exports {label}" in values]
    rows = []
    for line, section, slow, fast, goal in (
        ("torch inference, batch 1", "inference", "anomalib", "anomalib-inp", 1.3),
        ("training epoch with the cache, float32", "training", "anomalib", "cached float32", 1.6),
        ("training epoch with the cache, bfloat16", "training", "anomalib", "cached bfloat16", 2.5),
        ("OpenVINO FP32 (f32) against anomalib's torch", "exports", "anomalib torch", "OpenVINO FP32, f32", 2.4),
        (
            "OpenVINO INT8 (rest f32) against our OpenVINO FP32 (f32)",
            "exports",
            "OpenVINO FP32, f32",
            "OpenVINO INT8, f32",
            1.9,
        ),
        ("OpenVINO INT8 (rest f32) against anomalib's torch", "exports", "anomalib torch", "OpenVINO INT8, f32", 5.0),
        ("the same, rest in the device's own precision", "exports", "anomalib torch", "OpenVINO INT8, default", 5.0),
        (
            "OpenVINO INT8 (rest f32) against anomalib's own OpenVINO export, default precision",
            *("exports", "anomalib OpenVINO, default", "OpenVINO INT8, f32", 1.3),
        ),
    ):
        cells = [pages.spread(pages.ratios(values[f"{section} {label}"], slow, fast)) for label in labels]
        rows.append([line, f"{goal}", *cells])
    for part, line in (("model", "peak memory of weights and inference"), ("process", "peak memory of the process")):
        cells = []
        for label in labels:
            theirs, ours = (values[f"memory {label} {model}"][part] for model in ("anomalib", "anomalib-inp"))
            cells.append(f"{ours / theirs:.2f} ({ours:.0f} of {theirs:.0f} MB)")
        rows.append([f"{line}, of anomalib's", "at most 0.85" if part == "model" else "", *cells])
    imports = [1000 * seconds for seconds in values["import"]]
    rows.append(["`import anomalib_inp`", "30 ms", *[f"{max(imports):.1f} ms"] * len(labels)])
    text = pages.table(["times as fast", "goal", *labels], rows)

    medians = []
    for section, run, counted, precision in RUNS:
        row = [section, run, precision or "8 bits and others"]
        for label in labels:
            seconds = statistics.median(values[f"{section} {label}"][run])
            row.append(f"{1000 * seconds:.0f}")
            images = STEPS * BATCH if section == "training" else 1
            speed = values[f"work {label}"][counted] * images / seconds if counted else 0
            peak = values["gemm"].get(precision or "", 0)
            row.append(f"{speed:.0f} ({100 * speed / peak:.0f} %)" if speed and peak else "")
        medians.append(row)
    note = f"{values['machine']}; {SIZE} px; training: {STEPS} batches of {BATCH} images, with decoding and optimiser."
    header = ["", "run", "precision", *(f"{label}, {unit}" for label in labels for unit in ("ms", "GFLOP/s"))]
    peaks = ", ".join(f"{peak:.0f} in {precision}" for precision, peak in values["gemm"].items())
    text += (
        f"\n\nMedian times, and floating-point operations per second, in brackets as a share of the {peaks} that torch "
        f"reaches with matrices of 2048x2048:\n\n{pages.table(header, medians, '   rrrr')}\n\n{note}"
    )
    print(text)
    pages.replace(page, "speed", text)
    labels = [label for label in labels if f"folder {label}" in values]
    if labels:
        pages.replace(page, "runtime", f"{runtime.text(values, labels)}\n\n{note.split(';')[0]}; {SIZE} px.")


if __name__ == "__main__":
    main()
