# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Models that leave the GPU: checkpoints, pickles and exports."""

import importlib.util
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.data import InferenceBatch
from anomalib.models.components import AnomalibModule
from gpu.harness import float32

from anomalib_inp import InpFormer, InpFormerPlusPlus, InpPostProcessor
from anomalib_inp.runtime.model import ExportedModel

pytestmark = pytest.mark.gpu
KINDS = (InpFormer, InpFormerPlusPlus)


@pytest.fixture(params=KINDS)
def trained(request, device: str, tiny_model, datamodule: Callable[..., Any], engine) -> AnomalibModule:
    """A model that has been trained on the device and is still there."""
    # Raw scores: normalised ones would be rounding errors divided by the little that an untrained model tells apart.
    raw = InpPostProcessor(enable_normalization=False)
    model = tiny_model(request.param, post_processor=raw)
    engine(limit_train_batches=1).fit(model, datamodule=datamodule())
    model.to(device)  # where a user has it who goes on with it; Lightning brings it back to the CPU
    return model.eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 100, 90, generator=torch.Generator().manual_seed(0))


def predicted(model: Any, images: torch.Tensor, device: str) -> InferenceBatch:
    with torch.no_grad(), float32(matmul=False, convolution=False):
        return model.to(device).eval()(images.to(device))


def assert_same(found: Any, expected: InferenceBatch, tolerance: float = 1e-4) -> None:
    for name in ("pred_score", "anomaly_map"):
        ours, theirs = (torch.as_tensor(getattr(batch, name)).cpu() for batch in (found, expected))
        torch.testing.assert_close(ours.reshape(theirs.shape), theirs, rtol=0, atol=tolerance)


def test_a_checkpoint_loads_on_the_cpu(trained, images, device: str, tmp_path: Path) -> None:
    expected = predicted(trained, images, device)
    (checkpoint,) = tmp_path.rglob("finished.ckpt")
    loaded = type(trained).load_from_checkpoint(checkpoint, map_location="cpu")
    assert loaded.device.type == "cpu"
    assert_same(predicted(loaded, images, "cpu"), expected)
    # and with nothing said of a device, as Lightning has it: on the one that it was saved from
    assert_same(predicted(type(trained).load_from_checkpoint(checkpoint), images, device), expected)


def test_a_pickle_runs_on_either_device(trained, images, device: str, tmp_path: Path) -> None:
    """Loaded for one device and then moved to the other, with nothing of the first left behind."""
    expected = predicted(trained, images, device)
    path = trained.to_torch(tmp_path / "torch")
    for first, second in (("cpu", device), (device, "cpu")):
        model = torch.load(path, map_location=first, weights_only=False)["model"]
        for place in (first, second):
            assert_same(predicted(model, images, place), expected)


def test_a_copy_may_move_on_its_own(trained, images, device: str) -> None:
    expected = predicted(trained, images, device)
    copy = pickle.loads(pickle.dumps(trained.model)).cpu()  # noqa: S301
    prepared = trained.pre_processor(images.to(device)).cpu()
    with torch.no_grad(), float32(matmul=False, convolution=False):
        raw = copy(prepared)
        there = trained.model(prepared.to(device))
    torch.testing.assert_close(raw.anomaly_map, there.anomaly_map.cpu(), rtol=0, atol=1e-4)
    assert_same(predicted(trained, images, device), expected)


@pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="the package onnxscript is missing")
def test_exports_to_onnx(trained, images, device: str, tmp_path: Path) -> None:
    expected = predicted(trained, images, device)
    path = trained.to_onnx(tmp_path / "onnx")
    assert trained.device.type == device
    assert_same(ExportedModel(path)(images.numpy()), expected, 1e-3)
    assert_same(predicted(trained, images, device), expected)


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="the package openvino is missing")
def test_exports_to_openvino(trained, images, device: str, tmp_path: Path) -> None:
    expected = predicted(trained, images, device)
    path = trained.to_openvino(tmp_path / "openvino")
    assert trained.device.type == device
    assert_same(ExportedModel(path)(images.numpy()), expected, 1e-3)
    assert_same(predicted(trained, images, device), expected)


@pytest.mark.skipif(importlib.util.find_spec("nncf") is None, reason="the package nncf is missing")
def test_exports_in_8_bits(trained, images, datamodule, device: str, tmp_path: Path) -> None:
    path = trained.to_openvino(tmp_path / "int8", compression_type="int8_ptq", datamodule=datamodule())
    assert trained.device.type == device
    found, expected = ExportedModel(path)(images.numpy()), predicted(trained, images, device)
    assert np.corrcoef(found.anomaly_map.ravel(), expected.anomaly_map.cpu().numpy().ravel())[0, 1] > 0.9
