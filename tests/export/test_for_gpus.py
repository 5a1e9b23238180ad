# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""ONNX exports for GPUs: what TensorRT can take, 16 bits, and devices; parity on a GPU itself is in ``tests/gpu``."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from anomalib_inp import InpFormer, InpFormerPlusPlus, SelfSimilarity
from anomalib_inp.runtime import edit
from anomalib_inp.runtime.metadata import read_metadata
from anomalib_inp.runtime.model import ExportedModel

KNOWN = {
    *("Abs", "Add", "And", "ArgMax", "ArgMin", "AveragePool", "Cast", "Ceil", "Clip", "Concat", "Constant"),
    *("ConstantOfShape", "Conv", "ConvTranspose", "CumSum", "Div", "Einsum", "Equal", "Erf", "Exp", "Expand"),
    *("Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Gelu", "Gemm", "Greater", "GreaterOrEqual"),
    *("Identity", "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log", "MatMul", "Max", "MaxPool", "Mean"),
    *("Min", "Mul", "Neg", "Not", "Or", "Pad", "Pow", "Range", "Reciprocal", "ReduceL2", "ReduceMax", "ReduceMean"),
    *("ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "Resize", "Round", "ScatterND"),
    *("Shape", "Sigmoid", "Sign", "Size", "Slice", "Softmax", "Softplus", "Split", "Sqrt", "Squeeze", "Sub", "Sum"),
    *("Tanh", "Tile", "TopK", "Transpose", "Unsqueeze", "Where"),
}
"""Operators that TensorRT 10 takes, by onnx-tensorrt's docs/operators.md, as far as a network could need them."""
MOST_HIGHEST = 3840
"""Values that TensorRT's TopK gives at most."""


def build(kind, tiny_model, **arguments):
    torch.manual_seed(0)
    made = tiny_model(kind, spread=6, evaluator=False, **arguments).eval()
    with torch.no_grad():
        found = made.model(made.pre_processor.transform(torch.rand(1, 3, 90, 120)))
    made.post_processor.set_thresholds(float(found.pred_score), float(found.anomaly_map.quantile(0.9)))
    return made


@pytest.fixture(scope="module")
def model(tiny_model):
    return build(InpFormerPlusPlus, tiny_model, image_size=64)


@pytest.fixture(scope="module")
def tiled(tiny_model):
    return build(InpFormer, tiny_model, tiles={"size": 64}, image_size=None)


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory) -> Path:
    return model.to_onnx(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def outside(model, tmp_path_factory) -> Path:
    return model.to_onnx(tmp_path_factory.mktemp("outside"), resize_outside=True)


@pytest.fixture(scope="module")
def half(model, tmp_path_factory) -> Path:
    return model.to_onnx(tmp_path_factory.mktemp("half"), half=True)


@pytest.fixture(scope="module")
def tiled_half(tiled, tmp_path_factory) -> Path:
    return tiled.to_onnx(tmp_path_factory.mktemp("tiled"), half=True)


def image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


def difference(model: Any, runs: ExportedModel, size: tuple[int, int]) -> float:
    with torch.no_grad():
        expected = model(torch.from_numpy(image(*size)))
    found = runs(image(*size))
    names = ("pred_score", "anomaly_map")
    return max(np.abs(getattr(found, name) - getattr(expected, name).numpy()).max() for name in names)


def test_what_resizes_outside_gives_the_same(model, outside: Path) -> None:
    runs = ExportedModel(outside)
    for size in ((90, 120), (64, 64), (200, 70), (40, 50)):
        assert difference(model, runs, size) < 1e-4
    both = np.stack([image(90, 120), image(90, 120)[::-1]])
    with torch.no_grad():
        np.testing.assert_allclose(runs(both).pred_score, model(torch.from_numpy(both.copy())).pred_score, atol=1e-4)


def check_operators(path: Path) -> None:
    graph = onnx.load(path).graph
    assert {node.op_type for node in graph.node} <= KNOWN
    assert [side.dim_value for side in graph.input[0].type.tensor_type.shape.dim][1:] == [3, 64, 64]
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        assert not antialiased(node)
        if node.op_type == "TopK":
            assert constants[node.input[1]].item() <= MOST_HIGHEST


def test_tensorrt_knows_the_operators(outside: Path, tiled_half: Path, tiny_model, tmp_path: Path) -> None:
    check_operators(outside)
    check_operators(tiled_half)
    check_operators(build(SelfSimilarity, tiny_model, image_size=64).to_onnx(tmp_path, resize_outside=True))


def test_otherwise_the_graph_resizes(whole: Path) -> None:
    """What the check above is of."""
    assert any(antialiased(node) for node in onnx.load(whole).graph.node)


def antialiased(node: Any) -> bool:
    return any(entry.name == "antialias" and entry.i for entry in node.attribute)


def test_size_and_resizing_outside_are_one_or_the_other(model, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leave input_size out"):
        model.to_onnx(tmp_path, input_size=(64, 64), resize_outside=True)


def test_sixteen_bits(model, whole: Path, half: Path, tmp_path: Path) -> None:
    """Matrices and nothing else: scores stay near, and what is moved later is exact."""
    kinds = {tensor.data_type for tensor in onnx.load(half).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds
    assert half.stat().st_size < 0.8 * whole.stat().st_size
    runs = ExportedModel(half)
    assert difference(model, runs, (90, 120)) < 3e-2
    assert runs(image(90, 120)).anomaly_map.dtype == np.float32
    exact = 0.12345678
    both = {name: tmp_path / f"{name}.onnx" for name in ("half", "whole")}
    for name, path in zip(both, (half, whole), strict=True):
        both[name].write_bytes(path.read_bytes())
        edit.set_thresholds(both[name], image=exact)
        Image.fromarray(np.repeat([[0, 255]], 2, axis=0).astype(np.uint8)).save(tmp_path / "mask.png")
        edit.set_inspection(both[name], tmp_path / "mask.png")
    assert read_metadata(both["half"]).image.threshold == pytest.approx(exact, abs=1e-9)
    found, wanted = (ExportedModel(path)(image(90, 120)) for path in both.values())
    np.testing.assert_allclose(found.anomaly_map, wanted.anomaly_map, atol=3e-2)
    np.testing.assert_allclose(found.pred_score, wanted.pred_score, atol=3e-2)


def test_sixteen_bits_of_tiles(tiled, tiled_half: Path) -> None:
    assert 1e-6 < difference(tiled, ExportedModel(tiled_half), (90, 120)) < 3e-2


def test_a_file_does_not_say_where_it_was_made(whole: Path, half: Path) -> None:
    for path in (whole, half):
        assert str(Path(__file__).parents[2]).encode() not in path.read_bytes()
        assert b"site-packages" not in path.read_bytes()


@pytest.mark.parametrize(
    ("device", "text"),
    [
        ("GPU", "runs on CPU, cuda, tensorrt, got 'GPU'"),
        ("cuda", r"cuda needs ONNX Runtime with its CUDAExecutionProvider.*anomalib-inp\[onnx-gpu\]"),
        ("tensorrt", "tensorrt needs ONNX Runtime with its TensorrtExecutionProvider"),
    ],
)
def test_a_device_that_is_not_there(outside: Path, device: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ExportedModel(outside, device=device)


def test_gpus_of_nvidia_are_for_onnx(model, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cuda runs \.onnx files, got model\.xml"):
        ExportedModel(model.to_openvino(tmp_path), device="cuda")


class FakeSession:
    """Notes what it is made with; starts the providers that it is told to."""

    starts: list[str] = []
    made: list[Any] = []

    def __init__(self, path: Path, options: Any, providers: list[Any]) -> None:
        self.made.append(providers)

    def get_providers(self) -> list[str]:
        return self.starts

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name="pred_score")]

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(shape=["batch", 3, 64, 64])]


@pytest.fixture
def nvidia(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """An ONNX Runtime with NVIDIA's providers."""
    session = type(
        "Session", (FakeSession,), {"made": [], "starts": ["TensorrtExecutionProvider", "CUDAExecutionProvider"]}
    )
    fake = SimpleNamespace(
        InferenceSession=session, SessionOptions=SimpleNamespace, get_available_providers=lambda: session.starts
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    monkeypatch.setenv("ANOMALIB_INP_CACHE", str(tmp_path))
    return session


def test_providers_and_their_settings(nvidia: Any, outside: Path, tmp_path: Path) -> None:
    ExportedModel(outside, device="cuda")
    ExportedModel(outside, device="cuda", precision=None)
    ExportedModel(outside, device="tensorrt", precision="f16")
    exact, quick, (engine, beside) = (made if len(made) > 1 else made[0] for made in nvidia.made)
    assert exact == ("CUDAExecutionProvider", {"use_tf32": 0})
    assert quick == ("CUDAExecutionProvider", {"use_tf32": 1})
    assert beside[0] == "CUDAExecutionProvider"  # for what TensorRT cannot do
    assert engine[0] == "TensorrtExecutionProvider"
    assert engine[1]["trt_fp16_enable"]
    assert engine[1]["trt_engine_cache_path"] == str(tmp_path / "tensorrt")
    assert engine[1]["trt_profile_max_shapes"] == "input:16x3x64x64"


def test_a_provider_that_does_not_start_is_no_verdict_of_another(nvidia: Any, outside: Path, monkeypatch) -> None:
    """ONNX Runtime goes on with the CPU, and says so in a log."""
    monkeypatch.setattr(nvidia, "get_providers", lambda _: ["CPUExecutionProvider"])
    with pytest.raises(ValueError, match="cannot start its CUDAExecutionProvider"):
        ExportedModel(outside, device="cuda")


def test_tensorrt_needs_one_size(nvidia: Any, whole: Path, tiled_half: Path) -> None:
    with pytest.raises(ValueError, match=r"TensorRT takes images of one size.*resize_outside"):
        ExportedModel(whole, device="tensorrt")
    ExportedModel(tiled_half, device="tensorrt")  # tiles are of one
