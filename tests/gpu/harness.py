# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What the parts of the GPU check share: results that are kept as they come, limits, a budget of time, and a watch.

A machine with a GPU is had for minutes, so that nothing may be lost: a part that fails leaves its traceback and the
others go on, the file is written after each part, and a part that no longer fits the time is skipped and says so.
"""

import gc
import json
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

TINY = ("test_vit", 64)
"""Encoder and size of images of a dry run."""
ENCODERS = {
    "ViT-S/14": ("vit_small_patch14_reg4_dinov2", 392),
    "ViT-B/14": ("vit_base_patch14_reg4_dinov2", 392),
}
"""Encoders that are timed, with random weights, and the size of the images."""


class NotHereError(Exception):
    """Something that a part needs is not on this machine; the part is skipped."""


@dataclass
class Check:
    """Runs parts and keeps what they find.

    Args:
        path: The JSON file.
        device: ``cuda``, or ``cpu`` in a dry run.
        folder: Where the parts may write.
        encoder: File of a trained encoder for the whole training, in 16 bits; ``None`` where there is none.
        seconds: Budget of the whole check.
    """

    path: Path
    device: str
    folder: Path
    encoder: Path | None = None
    seconds: float = 480
    start: float = field(default_factory=time.monotonic)
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def dry(self) -> bool:
        """Whether this is a dry run: everything runs, in small and on the CPU, and no number means anything."""
        return self.device == "cpu"

    @property
    def encoders(self) -> dict[str, tuple[str, int]]:
        """Encoders to time."""
        return {"test_vit": TINY} if self.dry else ENCODERS

    def small(self, usual: int, dry: int) -> int:
        """Choose a number by whether this is a dry run."""
        return dry if self.dry else usual

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.seconds - (time.monotonic() - self.start)

    def part(self, name: str, run: Callable[[], Any], needs: float = 5) -> Any:
        """Run a part and keep its result, or why there is none.

        Args:
            name: Name of the part, ``section/part``.
            run: What it does; it returns what is to be kept. Limits are in its key ``limits``: by name, the value and
                the most that it may be.
            needs: Seconds that it will take on a GPU; with less left it is skipped.

        Returns:
            What ``run`` returns; ``None`` where it was skipped or has failed.
        """
        result: dict[str, Any] = {}
        begin = time.monotonic()
        value = None
        if self.left < needs and not self.dry:
            result["skipped"] = f"needs about {needs:.0f} s, {max(self.left, 0):.0f} s are left"
        else:
            try:
                value = run()
                result["value"] = value
            except NotHereError as error:
                result["skipped"] = str(error)
            except Exception:
                result["error"] = traceback.format_exc()
        result["seconds"] = round(time.monotonic() - begin, 1)
        self.results[name] = result
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(self.results, indent=1))
        new.replace(self.path)
        said = result.get("error") or result.get("skipped") or json.dumps(value)
        print(f"[{time.monotonic() - self.start:5.0f} s] {name}: {said}", flush=True)
        if "skipped" not in result:
            free()
        return value

    def section(self, name: str, run: Callable[["Check"], None]) -> None:
        """Run a section, which calls :meth:`part`; what fails between its parts is kept under its name."""
        try:
            run(self)
        except Exception:
            error = traceback.format_exc()
            self.part(name, lambda: _fail(error), 0)

    def faults(self) -> list[str]:
        """Say what has failed and which limits were passed."""
        found = [
            f"{name}: {result['error'].strip().splitlines()[-1]}"
            for name, result in self.results.items()
            if "error" in result
        ]
        for name, result in self.results.items():
            value = result.get("value")
            limits = value.get("limits", {}) if isinstance(value, dict) else {}
            found += [
                f"{name}: {what} is {got:.3g}, above {most:.3g}"
                for what, (got, most) in limits.items()
                if not got <= most
            ]
        return found


def _fail(error: str) -> None:
    raise RuntimeError(error)


def need_cuda(device: str) -> None:
    """Skip a part that only CUDA can run.

    Raises:
        NotHereError: This is another device.
    """
    if device != "cuda":
        msg = "needs CUDA"
        raise NotHereError(msg)


def free() -> None:
    """Let go of memory, and of what was compiled: neither is to weigh on the next part."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def wait(device: str) -> None:
    """Wait until the device has done all it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def milliseconds(run: Callable[[], object], device: str, calls: int, rounds: int = 5, warm_up: int = 3) -> list[float]:
    """Time calls of a function, in milliseconds each, once for every round; the device is waited for after a round."""
    for _ in range(warm_up):
        run()
    wait(device)
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in range(calls):
            run()
        wait(device)
        times.append(1000 * (time.perf_counter() - begin) / calls)
    return times


def summary(times: list[float]) -> dict[str, float]:
    """Median, smallest and largest time, in milliseconds."""
    return {"ms": statistics.median(times), "min": min(times), "max": max(times)}


def peak_megabytes(device: str) -> float | None:
    """Most memory that tensors have taken on the GPU since :func:`free`, in MB."""
    return torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None


def autocast(device: str, mixed: bool) -> AbstractContextManager[object]:
    """Compute in bfloat16 where that is safe, as ``bf16-mixed`` does."""
    return torch.autocast(device, torch.bfloat16) if mixed else nullcontext()


@contextmanager
def float32(matmul: bool, convolution: bool) -> Iterator[None]:
    """Allow TF32, which rounds the factors of products to 11 bits, for matrix products and for convolutions.

    Unless told otherwise, torch allows it for convolutions and not for matrix products.
    """
    backends = torch.backends
    before = backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32
    backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32 = matmul, convolution
    try:
        yield
    finally:
        backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32 = before
