# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What each export format costs and what it keeps: size, speed, memory and accuracy, beside PyTorch."""

import csv
import statistics
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

from anomalib_inp.models.registry import load_model
from anomalib_inp.runtime.folder import labelled
from anomalib_inp.runtime.job import Item, find_images
from anomalib_inp.runtime.model import ExportedModel, Predictions
from anomalib_inp.runtime.predict import predict, read

if TYPE_CHECKING:
    from anomalib_inp.models.encoder_model import EncoderModel

WARM_UP = 3
PROCESS = Path("/proc/self")
COLUMNS = (
    *("format", "device", "precision", "size MB", "median ms", "p95 ms", "images /s", "memory MB"),
    *("I-AUROC", "P-AP", "score difference"),
)


class Format(NamedTuple):
    """One row: an export, how it is run, and on what.

    Attributes:
        name: What the row is called.
        path: The checkpoint or export.
        device: OpenVINO's name of the device.
        precision: OpenVINO's inference precision; ``None`` leaves it to the device.
        beside: Bytes that it needs beside its files: the encoder is no part of a checkpoint.
    """

    name: str
    path: Path
    device: str = "CPU"
    precision: str | None = "f32"
    beside: int = 0


class Cost(NamedTuple):
    """What came out; times in milliseconds, memory in MB, metrics in [0, 1] or nan.

    Attributes:
        latency: Median time of one image.
        latency_p95: Time that 95 % of the images do not exceed.
        throughput: Images per second, several at a time where the runtime can.
        memory: How much the process grew from before the model was loaded to its peak.
        image_auroc: Image AUROC; nan without labels.
        pixel_ap: Pixel average precision; nan without masks.
        scores: Image scores as the export gives them.
    """

    latency: float
    latency_p95: float
    throughput: float
    memory: float
    image_auroc: float
    pixel_ap: float
    scores: list[float]


class _TorchModel(ExportedModel):
    """A checkpoint that is run like an export."""

    def __init__(self, checkpoint: Path) -> None:
        from anomalib_inp.exporting.convert import metadata_of

        model = load_model(checkpoint)
        self.metadata = self._exported = metadata_of(model)
        self._engine = _Torch(model)  # type: ignore[assignment]


class _Torch:
    """Runs the graph of a model as the runtimes of exports run it."""

    def __init__(self, model: "EncoderModel") -> None:
        from anomalib_inp.exporting.convert import graph_of

        self._graph = graph_of(model)

    def prepare(self, images: np.ndarray) -> np.ndarray:
        """The graph does all that is to be done."""
        return images

    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        """Run batches one after the other."""
        import torch

        for images in batches:
            with torch.inference_mode():
                outputs = self._graph(torch.from_numpy(images))
            there = zip(Predictions._fields, outputs, strict=True)
            yield {name: output.numpy() for name, output in there if output is not None}


def benchmark_export(
    checkpoint: Path,
    images: Path,
    calibration: Path | None = None,
    output: Path = Path("benchmark-export"),
    runs: int = 30,
    threads: int | None = None,
) -> None:
    """Export a checkpoint in every format and compare: size, latency, throughput, memory, accuracy, score difference.

    OpenVINO formats are run on each of its devices, in float32 and in the device's own precision.

    Args:
        checkpoint: The checkpoint of a finished training.
        images: Folder of test images, in the layout of MVTec AD for the accuracy.
        calibration: Folder of normal images for INT8; by default train/good beside the test folder.
        output: Folder for the exports and formats.csv.
        runs: Images that are timed per format.
        threads: CPU threads; by default the runtime's choice.

    Raises:
        FileNotFoundError: No checkpoint, or no images.
        ValueError: Too few runs.
    """
    from lightning.pytorch.utilities import rank_zero_warn

    if runs < 2:
        msg = f"runs must be at least 2, got {runs}."
        raise ValueError(msg)
    items = find_images(images).items
    folder = calibration or images.parent / "train" / "good"
    # A folder that was named must be there, the other may be missing.
    normal = find_images(folder).items if calibration is not None or folder.is_dir() else []
    if not normal:
        rank_zero_warn(f"No INT8: there are no normal images to calibrate with in {folder}; see --calibration.")
    model = load_model(checkpoint)
    formats = list(export_all(model, checkpoint, normal, output))
    del model
    costs: dict[Format, Cost] = {}
    console = Console()
    for entry in track(formats, "Measuring", console=console):
        # Each in a process of its own: memory is a matter of the whole process, and settings of a runtime stay with it.
        with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as process:
            try:
                costs[entry] = process.submit(cost_of, entry, items, runs, threads).result()
            except Exception as error:  # a device that cannot run a format is a result too
                text = f"{entry.name} on {entry.device} does not run: {type(error).__name__}: {error}"
                console.print(text, markup=False)
    report(costs, output, console)


def export_all(model: "EncoderModel", checkpoint: Path, normal: list[Item], output: Path) -> Iterator[Format]:
    """Write every format and list how each is measured, PyTorch first."""
    import openvino

    from anomalib_inp.exporting import quantization
    from anomalib_inp.exporting.convert import save_openvino, some_tile, to_openvino

    encoder = sum(parameter.nbytes for parameter in model.model.network.encoder.parameters())
    yield Format("PyTorch", checkpoint, beside=encoder)
    yield Format("ONNX Runtime", model.to_onnx(output))
    graph = to_openvino(model)
    exports = {
        "OpenVINO FP32": save_openvino(graph, output / "fp32.xml"),
        "OpenVINO FP16": save_openvino(graph, output / "fp16.xml", half=True),
    }
    if normal:
        samples = []
        for number, item in enumerate(normal[: quantization.CALIBRATION_IMAGES]):
            image = read(item.path)  # cut as it is read: large images are not held side by side
            samples.append(image if model.tiles is None else some_tile(model, image, number))
        graph = quantization.quantize(graph, samples, model.quantised)
        exports["OpenVINO INT8"] = save_openvino(graph, output / "int8.xml", half=True)
    for device in openvino.Core().available_devices:
        for name, path in exports.items():
            yield Format(name, path, device, "f32")
            yield Format(name, path, device, None)


def cost_of(entry: Format, items: list[Item], runs: int, threads: int | None) -> Cost:
    """Measure one format in this process."""
    import torch

    from anomalib_inp.evaluation.predictions import measure

    if threads:
        torch.set_num_threads(threads)
    before = memory_now()
    model = _load(entry, "latency", threads)
    batches = [read(item.path) for item in items[:runs]]
    times = []
    for index in range(-WARM_UP, runs):
        start = time.perf_counter()
        model(batches[index % len(batches)])
        if index >= 0:
            times.append(1000 * (time.perf_counter() - start))
    memory = memory_peak() - before

    results = [(item, predict(model, item.path)) for item in items]
    metadata = model.metadata
    values, _ = measure(labelled(results, metadata.crop_box), len(items), metadata.places_for_metrics)

    many = _load(entry, "throughput", threads)
    list(many.stream(iter(batches[:WARM_UP])))
    start = time.perf_counter()
    list(many.stream(batches[index % len(batches)] for index in range(runs)))
    return Cost(
        latency=statistics.median(times),
        latency_p95=statistics.quantiles(times, n=20, method="inclusive")[-1],
        throughput=runs / (time.perf_counter() - start),
        memory=memory,
        image_auroc=values.get("image_AUROC", np.nan),
        pixel_ap=values.get("pixel_AP", np.nan),
        scores=[prediction.score for _, prediction in results],
    )


def _load(entry: Format, performance: Literal["latency", "throughput"], threads: int | None) -> ExportedModel:
    if entry.path.suffix == ".ckpt":
        return _TorchModel(entry.path)
    return ExportedModel(entry.path, entry.device, entry.precision, performance, threads)


def memory_now() -> float:
    """Memory of this process in MB; from here on its peak is counted anew. Linux only, nan elsewhere."""
    if not PROCESS.is_dir():
        return np.nan
    (PROCESS / "clear_refs").write_text("5", encoding="ascii")
    return _memory("VmRSS")


def memory_peak() -> float:
    """Peak memory of this process in MB since :func:`memory_now`. Linux only, nan elsewhere."""
    return _memory("VmHWM") if PROCESS.is_dir() else np.nan


def _memory(field: str) -> float:
    lines = (PROCESS / "status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def size_of(path: Path) -> float:
    """Size of an export in MB, the weights beside an ``.xml`` included."""
    return sum(file.stat().st_size for file in {path, path.with_suffix(".bin")} if file.is_file()) / 1e6


def report(costs: dict[Format, Cost], output: Path, console: Console) -> None:
    """Print the table and write it to ``formats.csv``."""
    reference = next((cost.scores for entry, cost in costs.items() if entry.name == "PyTorch"), None)
    rows = []
    for entry, cost in costs.items():
        difference = np.nan if reference is None else np.abs(np.subtract(cost.scores, reference)).max()
        precision = (entry.precision or "own") if entry.path.suffix == ".xml" else "f32"
        numbers = (
            size_of(entry.path) + entry.beside / 1e6,
            cost.latency,
            cost.latency_p95,
            cost.throughput,
            cost.memory,
        )
        accuracy = (100 * cost.image_auroc, 100 * cost.pixel_ap)
        rows.append(
            [
                *(entry.name, entry.device, precision),
                *(f"{number:.1f}" for number in numbers),
                *(f"{number:.2f}" for number in accuracy),
                f"{difference:.1e}",
            ]
        )
    # Two lines of header each, so that the table fits 100 characters; it is never cut to less.
    table = Table(
        *(Column(name.replace(" ", "\n"), no_wrap=True) for name in COLUMNS), box=SIMPLE, padding=(0, 1, 0, 0)
    )
    for row in rows:
        table.add_row(*row)
    console.width = max(console.width, 100)
    console.print(table)
    with (output / "formats.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    console.print(f"Exports and formats.csv: {output}", markup=False)
