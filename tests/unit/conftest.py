# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""A training whose checkpoints several files test."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from PIL import Image


@pytest.fixture(scope="session")
def trained(
    tiny_encoder_file: Path,
    tiny_model: Callable[..., Any],
    quiet_engine: Callable[..., Engine],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Folder of a tiny training's results: the checkpoint to resume from, the finished one, and the encoder's file."""
    folder = tmp_path_factory.mktemp("trained")
    encoder = shutil.copy(tiny_encoder_file, folder / "encoder.safetensors")
    rng = np.random.default_rng(0)
    for name in ("train/good/000.png", "train/good/001.png", "test/good/000.png", "test/good/001.png"):
        path = folder / "data/part" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40), dtype=np.uint8)).save(path)
    torch.manual_seed(0)
    model = tiny_model(encoder_weights=str(encoder), evaluator=False)
    datamodule = MVTecAD(
        root=folder / "data", category="part", num_workers=0, train_batch_size=1, val_split_mode="from_test", seed=0
    )
    quiet_engine(folder).fit(model, datamodule=datamodule)
    for path in folder.glob("InpFormer/**/weights/lightning/*.ckpt"):
        shutil.copy(path, folder)
    assert sorted(path.name for path in folder.glob("*.ckpt")) == ["finished.ckpt", "model.ckpt"]
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoints; the encoder's file stays where it was."""
    for path in trained.glob("*.ckpt"):
        shutil.copy(path, tmp_path)
    return tmp_path
