# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Tests that need a GPU, or, in a dry run, the CPU in its place."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from gpu.suite import DRY


@pytest.fixture(scope="session")
def device() -> str:
    """The device that is tested."""
    if os.environ.get(DRY):
        return "cpu"
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return "cuda"


@pytest.fixture(scope="session")
def data(device: str, tmp_path_factory: pytest.TempPathFactory, write_small_sample: Callable[..., Path]) -> Path:
    """Sample data of two categories."""
    return write_small_sample(tmp_path_factory.mktemp("data"), categories=("brick", "grass"))


@pytest.fixture
def datamodule(data: Path) -> Callable[..., MVTecAD]:
    """Makes data modules of one category."""

    def make(**kwargs: Any) -> MVTecAD:
        defaults = {"train_batch_size": 4, "eval_batch_size": 8, "num_workers": 0, "val_split_mode": "from_train"}
        return MVTecAD(data, "brick", **{**defaults, "val_split_ratio": 0.25, "seed": 0, **kwargs})

    return make


@pytest.fixture
def engine(device: str, tmp_path: Path) -> Callable[..., Engine]:
    """Makes engines that compute on the device."""

    def make(**kwargs: Any) -> Engine:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        accelerator = "gpu" if device == "cuda" else "cpu"
        defaults = {"max_epochs": 1, "accelerator": accelerator, "devices": 1, "default_root_dir": tmp_path}
        return Engine(**{**defaults, **quiet, **kwargs})

    return make
