# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Inference on images that are on the GPU already: latency of one, throughput of 32, and how far results are off."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from anomalib.data import InferenceBatch
from gpu.harness import Check, NotHereError, autocast, float32, milliseconds, need_cuda, peak_megabytes, summary, wait
from gpu.models import kept, ours, size_for
from torch import Tensor

from anomalib_inp.runtime.engines import PROVIDERS, TENSORRT_BATCH
from anomalib_inp.runtime.model import ExportedModel

BATCHES = (1, 32)
LARGEST = TENSORRT_BATCH["max"]
LIMITS = {"full": 1e-3, "half": 5e-3}
"""How far normalised scores and maps of an export may be from those of the model, by what it multiplies in."""
Run = Callable[[Tensor], InferenceBatch]
VARIANTS = (
    "anomalib, float32",
    "anomalib, bfloat16",
    "float32",
    "TF32",
    "bfloat16",
    "bfloat16 weights",
    "float32, CUDA graph",
    "bfloat16 weights, CUDA graph",
)
"""``bfloat16`` is autocast, as with ``--trainer.precision bf16-mixed``: every call casts the weights anew. ``bfloat16
weights`` is a network that has been cast once; maps and scores are computed in float32 in both."""
COMPILED = ("bfloat16 weights, compiled", "bfloat16 weights, compiled, CUDA graph")


def section(check: Check) -> None:
    """Time what needs no compilation."""
    for label, (encoder, size) in check.encoders.items():
        for batch in BATCHES[: check.small(2, 1)]:
            for variant in VARIANTS:
                run = partial(infer, check, encoder, size, check.small(batch, min(batch, 2)), variant)
                check.part(f"inference/{label}/batch {batch}/{variant}", run, needs=5)


def compiled(check: Check) -> None:
    """Time compiled networks; the larger encoder first, since each compilation takes up to a minute."""
    for label, (encoder, size) in reversed(check.encoders.items()):
        for batch in BATCHES:
            for variant in COMPILED:
                run = partial(infer, check, encoder, size, check.small(batch, min(batch, 2)), variant)
                check.part(f"inference/{label}/batch {batch}/{variant}", run, needs=40)


def infer(check: Check, encoder: str, size: int, batch: int, variant: str) -> dict[str, Any]:
    """Time a variant, and compare its maps with those of the same weights in float32."""
    if "graph" in variant or "compiled" in variant:
        need_cuda(check.device)
    name, *options = variant.removeprefix("anomalib, ").split(", ")
    kind = "anomalib" if variant.startswith("anomalib") else "ours"
    size = size_for(kind, encoder, size)
    detector: Any = kept(kind, encoder, size, check.folder, check.device).eval().model
    images = torch.randn(batch, 3, size, size, device=check.device)
    with torch.no_grad(), float32(matmul=False, convolution=False):
        plain = detector(images)
    run = reader(detector, name, check.device)
    with torch.no_grad(), float32(name == "TF32", True):
        # Once not compiled: the encoder keeps its position table, which must not be born inside a graph.
        run(images)
        if "compiled" in options:
            torch.compiler.reset()  # else it would compile for sizes in general, and give up after some
            run = torch.compile(run)
        if "CUDA graph" in options:
            run = captured(run, images)
        times = milliseconds(lambda: run(images), check.device, calls=check.small(20 if batch == 1 else 5, 1))
        result = run(images)
        wait(check.device)
    found: dict[str, Any] = {**summary(times), "images_per_second": 1000 * batch / min(times)}
    found["peak_mb"] = peak_megabytes(check.device)
    found["map_off_by"] = (result.anomaly_map.float() - plain.anomaly_map).abs().max().item()
    found["map_largest"] = plain.anomaly_map.max().item()
    return found


def reader(detector: Any, precision: str, device: str) -> Run:
    """Make a function that detects anomalies in normalised images in a precision."""
    if precision in {"float32", "TF32"}:
        return detector
    if precision == "bfloat16 weights":
        network = copy.deepcopy(detector.network).bfloat16()
        return lambda images: detector.read(network(images.bfloat16()).full_precision())
    if not hasattr(detector, "network"):  # anomalib's

        def mixed(images: Tensor) -> InferenceBatch:
            with autocast(device, mixed=True):
                return detector(images)

        return mixed

    def ours_mixed(images: Tensor) -> InferenceBatch:
        with autocast(device, mixed=True):
            reconstruction = detector.network(images)
        return detector.read(reconstruction.full_precision())

    return ours_mixed


def captured(run: Run, images: Tensor) -> Run:
    """Record a call as a CUDA graph, and return its replay; it reads and writes the same memory every time."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # as torch asks: what is recorded has run before, on another stream
        for _ in range(3):
            run(images)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run(images)

    def replay(_: Tensor) -> InferenceBatch:
        graph.replay()
        return result

    return replay


def onnx(check: Check) -> None:
    """Time our ONNX export with the providers that are installed; images come from the CPU, maps go there."""
    for label, (encoder, size) in check.encoders.items():
        exported = check.part(f"onnx/{label}/export", partial(export, check, encoder, size), needs=20)
        for device in PROVIDERS if exported else ():
            for name in LIMITS:
                run = partial(by_onnx_runtime, check, encoder, size, device, name)
                check.part(f"onnx/{label}/{device}/{name}", run, needs=60 if device == "tensorrt" else 10)


def export(check: Check, encoder: str, size: int) -> dict[str, float]:
    """Export a model that is on the GPU, in 32 bits and with matrices in 16."""
    model = ours(encoder, size, check.folder).to(check.device).eval()
    model.post_processor.set_thresholds(0.5, 0.5)
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), float32(matmul=False, convolution=False):
        expected = model(image.to(check.device))
    sizes = {}
    for name in LIMITS:
        path = model.to_onnx(check.folder / encoder, name, resize_outside=True, half=name == "half")
        sizes[f"{name}, mb"] = path.stat().st_size / 2**20
    torch.save([expected.pred_score.cpu(), expected.anomaly_map.cpu()], check.folder / encoder / "expected.pt")
    return sizes


def by_onnx_runtime(check: Check, encoder: str, size: int, device: str, name: str) -> dict[str, Any]:
    """Run an export by a provider of ONNX Runtime."""
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if PROVIDERS[device] not in available:
        msg = f"ONNX Runtime has {', '.join(available)}"
        raise NotHereError(msg)
    (path,) = (check.folder / encoder).rglob(f"{name}.onnx")
    model = ExportedModel(path, device=device)
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    outputs = model(image.numpy())
    score, anomaly_map = (value.numpy() for value in torch.load(check.folder / encoder / "expected.pt"))
    found: dict[str, Any] = {
        "limits": {
            "score": (float(np.abs(outputs.pred_score.ravel() - score.ravel()).max()), LIMITS[name]),
            "map": (float(np.abs(outputs.anomaly_map.squeeze() - anomaly_map.squeeze()).max()), LIMITS[name]),
        }
    }
    for batch in (1, LARGEST) if device != "CPU" else (1,):
        images = np.random.default_rng(0).random((batch, 3, size, size), dtype=np.float32)
        times = milliseconds(partial(model, images), "cpu", calls=check.small(5, 1), rounds=3)
        found[f"batch {batch}"] = summary(times)
    return found
