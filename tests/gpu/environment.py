# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The machine: card, versions, and the best that it does at multiplying matrices and at copying."""

import os
import platform
import shutil
import subprocess
from importlib import metadata, util
from typing import Any

import torch
from gpu.harness import Check, float32, milliseconds

import anomalib_inp

PACKAGES = ("anomalib", "torch", "torchvision", "timm", "lightning", "torchmetrics", "numpy", "pandas", "triton")
OPTIONAL = ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf")


def section(check: Check) -> None:
    """Describe the machine and measure its peaks."""
    check.part("environment", lambda: describe(check.device))
    check.part("peaks", lambda: peaks(check))


def describe(device: str) -> dict[str, Any]:
    """Name the card and the versions."""
    found = {name: metadata.version(name) for name in (*PACKAGES, *OPTIONAL) if util.find_spec(name)}
    machine: dict[str, Any] = {
        "card": "none: dry run on the CPU, no number means anything",
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "anomalib_inp": anomalib_inp.__version__,
        "versions": found,
        "missing": [name for name in OPTIONAL if name not in found],
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        machine |= {
            "card": properties.name,
            "memory": properties.total_memory / 2**30,
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver": driver(),
        }
    return machine


def driver() -> str | None:
    """Version of NVIDIA's driver, where its own tool says."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout.strip()


def peaks(check: Check) -> dict[str, Any]:
    """Measure products of large matrices, in TFLOP/s by precision, and a copy, in GB/s read and written."""
    side = check.small(8192, 256)
    best: dict[str, Any] = {"side": side}
    for name, dtype, tf32 in (
        ("bfloat16", torch.bfloat16, False),
        ("TF32", torch.float32, True),
        ("float32", torch.float32, False),
    ):
        # Random numbers: products of zeros are faster than any that mean something.
        first, second = torch.randn(2, side, side, device=check.device, dtype=dtype)
        with float32(tf32, tf32):
            times = milliseconds(lambda a=first, b=second: a @ b, check.device, calls=5)
        best[name] = 2 * side**3 / min(times) / 1e9
        del first, second
    source = torch.randn(check.small(2**29, 2**20), device=check.device)
    target = torch.empty_like(source)
    times = milliseconds(lambda: target.copy_(source), check.device, calls=5)
    best["copy"] = 2 * source.nbytes / min(times) / 1e6
    return best
