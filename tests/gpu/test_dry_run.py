# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The GPU check in small on the CPU, so that it runs when there is a GPU for minutes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gpu.harness import Check, NotHereError
from gpu.report import merged, page
from gpu.suite import DRY

SCRIPT = Path(__file__).with_name("check.sh")
pytestmark = pytest.mark.skipif(DRY in os.environ, reason="this is the dry run")


def test_the_check_runs_in_small(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = ["bash", str(SCRIPT), "--out", str(tmp_path), "--dry-run"]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=500, env=environment)
    log = (tmp_path / "gpu.log").read_text()
    assert ended.returncode == 0, log[-3000:]
    results = json.loads((tmp_path / "gpu.json").read_text())
    for name, result in results.items():
        reason = result.get("skipped", "needs CUDA")
        assert reason == "needs CUDA" or "mixed precision" in reason or "ONNX Runtime has" in reason, name
    begun = {name.split("/")[0] for name in results}
    assert begun == {"environment", "peaks", "golden", "tests", "whole", "training", "inference", "loading", "onnx"}
    assert results["tests"]["value"]["ran"] > 20
    with pytest.raises(ValueError, match="no results of a GPU"):
        merged([tmp_path / "gpu.json"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gpu.check", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300, env=environment)
    assert ended.returncode == 2
    assert "there is no CUDA device; --dry-run" in ended.stderr


def fails() -> None:
    msg = "something broke"
    raise RuntimeError(msg)


def lacks() -> None:
    msg = "needs a thing"
    raise NotHereError(msg)


def test_nothing_is_lost(tmp_path: Path) -> None:
    """What fails leaves its traceback, what does not fit is skipped, and the file is there after every part."""
    check = Check(tmp_path / "gpu.json", "cuda", tmp_path, seconds=100)
    check.part("a/fine", lambda: {"limits": {"error": (1.0, 2.0)}})
    assert json.loads(check.path.read_text()).keys() == {"a/fine"}
    check.section("a", lambda check: [check.part("a/broken", fails), check.part("a/lacking", lacks), fails()])
    check.part("a/too much", fails, needs=200)
    check.part("a/too far", lambda: {"limits": {"error": (3.0, 2.0), "number": (float("nan"), 1.0)}})
    results = json.loads(check.path.read_text())
    assert "something broke" in results["a/broken"]["error"]
    assert "something broke" in results["a"]["error"]
    assert results["a/lacking"]["skipped"] == "needs a thing"
    assert "needs about 200 s" in results["a/too much"]["skipped"]
    assert check.faults() == [
        "a/broken: RuntimeError: something broke",
        "a: RuntimeError: something broke",
        "a/too far: error is 3, above 2",
        "a/too far: number is nan, above 1",
    ]


def results_of(card: str, folder: Path, **parts: object) -> Path:
    environment = {
        "card": card,
        "memory": 79.6,
        "driver": "1.2",
        "cuda": "13.0",
        "python": "3.12.3",
        "anomalib_inp": "0.1.0",
        "versions": dict.fromkeys(("anomalib", "torch", "timm", "lightning"), "1.0"),
    }
    path = folder / f"{len(list(folder.iterdir()))}.json"
    values = {"environment": environment, **parts}
    path.write_text(json.dumps({name: {"value": value} for name, value in values.items()}))
    return path


def test_the_page_shows_what_was_measured(tmp_path: Path) -> None:
    peaks = {"side": 8192, "bfloat16": 800.0, "TF32": 400.0, "float32": 50.0, "copy": 3000.0}
    step = {"ms": 10.0, "images_per_second": 1600.0, "peak_mb": 2048.0}
    parts = {
        "peaks": peaks,
        "golden/tiny/float32": {"limits": {"maps": (1e-6, 1e-4), "scores": (5e-5, 1e-4)}},
        "training/ViT-B/14/work": {"cached": 0.2, "not cached": 0.3},
        "training/ViT-B/14/cached, bfloat16": step,
        "inference/ViT-B/14/batch 1/float32": {"ms": 5.0, "images_per_second": 200.0, "map_off_by": 0.0},
        "inference/ViT-B/14/batch 32/float32": {"ms": 64.0, "images_per_second": 500.0, "map_off_by": 0.0},
        "loading/ViT-B/14/memory, 8 workers": {"ms": 12.0, "images_per_second": 1300.0, "filled_per_second": 900.0},
        "onnx/ViT-B/14/cuda/half": {"batch 1": {"ms": 4.0}, "batch 16": {"ms": 32.0}},
    }
    first = results_of("H100", tmp_path, **parts)
    again = results_of("H100", tmp_path, **{"training/ViT-B/14/cached, bfloat16": {**step, "ms": 8.0}})
    text = page(merged([first, again]))
    assert text.startswith("H100, 80 GiB, driver 1.2")
    assert "| golden/tiny/float32 | 2 | none | scores | 5e-05 | 0.0001 |" in text
    assert "| cached, bfloat16 | 8.0 | 1600 | 40 % | 2.0 |" in text
    assert "| float32 | 5.00 | 500 | 0.0e+00 |" in text
    assert "| memory, 8 workers | 12.0 | 1300 | 900 |" in text
    assert "| ViT-B/14 | cuda/half | 4.00 | 500 |" in text
    with pytest.raises(ValueError, match="a table has one card"):
        merged([first, results_of("H200", tmp_path)])
