# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Which places of its map an exported graph counts: put in behind the map, and before the highest pixels are taken.

Both formats get the same: the places that do not count have the lowest value of the map, as in PyTorch
(``scoring/inspected.py``), and the score is the mean of the highest of the others.
"""

from pathlib import Path
from typing import Any

import numpy as np

from anomalib_inp.maps import num_highest
from anomalib_inp.runtime.engines import require
from anomalib_inp.runtime.metadata import KEY, LABELS

HIDDEN, COUNTED = f"{KEY}.inspected_map", f"{KEY}.inspected_values"
"""Names of what is put in."""
OUTPUTS = {"image": "pred_score", "pixel": "anomaly_map"}
"""What is raw where nothing is labelled."""
SHIFTS = {"Add": -1, "Subtract": 1, "Sub": 1}
"""How the formats write the subtraction of a threshold, and the sign that it has there."""
SPANS = {"Divide", "Multiply", "Div"}
ABOVE_TOP = 8
"""Nodes between a score and where its highest pixels are taken, at most."""


def inspect_openvino(model: Any, path: Path, places: np.ndarray | None, share: float) -> None:
    """Let a graph of OpenVINO count some places alone, instead of those that it counts now.

    Args:
        model: An ``openvino.Model``.
        path: Its file, for messages.
        places: Which ones, bool ``(h, w)``; ``None`` for all.
        share: Share of their pixels that the score is the mean of.

    Raises:
        ValueError: The graph is none of ours, or its map has another size.
    """
    ops = require("openvino", "openvino", path).opset13
    for node in model.get_ops():
        if node.get_friendly_name() in {HIDDEN, COUNTED}:
            source = node.input_value(1 if node.get_friendly_name() == HIDDEN else 0)
            _replace_openvino(node.output(0), source, node.output(0).get_target_inputs())
    raw_map = _raw_openvino(model, path, "pixel")
    top = _raw_openvino(model, path, "image").get_node()
    for _ in range(ABOVE_TOP):
        if top.get_type_name() == "TopK" or not top.get_input_size():
            break
        top = top.input_value(0).get_node()
    if top.get_type_name() != "TopK":
        raise ValueError(_not_ours(path))
    size = [dimension.get_length() if dimension.is_static else 0 for dimension in raw_map.get_partial_shape()][-2:]
    highest = _num_highest(places, (size[0], size[1]), share, path)
    if places is not None:
        readers = raw_map.get_target_inputs()
        lowest = ops.reduce_min(raw_map, np.array([2, 3]), keep_dims=True)
        hidden = ops.select(ops.constant(places[None, None]), raw_map, lowest)
        hidden.set_friendly_name(HIDDEN)
        _replace_openvino(raw_map, hidden.output(0), readers)
        indices = ops.constant(np.flatnonzero(places))
        counted = ops.gather(top.input_value(0), indices, ops.constant(np.int64(1)))
        counted.set_friendly_name(COUNTED)
        top.input(0).replace_source_output(counted.output(0))
    top.input(1).replace_source_output(ops.constant(np.int64(highest)).output(0))
    model.validate_nodes_and_infer_types()


def inspect_onnx(model: Any, path: Path, places: np.ndarray | None, share: float) -> None:
    """Let a graph of ONNX count some places alone, instead of those that it counts now.

    Args:
        model: An ``onnx.ModelProto``.
        path: Its file, for messages.
        places: Which ones, bool ``(h, w)``; ``None`` for all.
        share: Share of their pixels that the score is the mean of.

    Raises:
        ValueError: The graph is none of ours, or its map has another size.
    """
    onnx = require("onnx", "onnx", path)
    graph = model.graph
    _take_out_of_onnx(graph)
    nodes = {output: node for node in graph.node for output in node.output}
    raw_map, top = _raw_onnx(graph, path, "pixel"), nodes.get(_raw_onnx(graph, path, "image"))
    for _ in range(ABOVE_TOP):
        if top is None or top.op_type == "TopK":
            break
        top = nodes.get(top.input[0])
    if top is None or top.op_type != "TopK":
        raise ValueError(_not_ours(path))
    shapes = {info.name: info.type.tensor_type.shape for info in (*graph.value_info, *graph.output)}
    size = [dimension.dim_value for dimension in shapes["anomaly_map"].dim][-2:]
    highest = _num_highest(places, (size[0], size[1]), share, path)

    def constant(name: str, value: np.ndarray) -> str:
        graph.initializer.append(onnx.numpy_helper.from_array(value, f"{KEY}.{name}"))
        return f"{KEY}.{name}"

    top.input[1] = constant("highest", np.array([highest], np.int64))
    if places is None:
        return
    make = onnx.helper.make_node
    values = top.input[0]
    top.input[0] = COUNTED
    gather = make("Gather", [values, constant("places", np.flatnonzero(places))], [COUNTED], COUNTED, axis=1)
    _insert(graph, [gather], next(index for index, node in enumerate(graph.node) if node is top or node == top))
    producer = next(index for index, node in enumerate(graph.node) if raw_map in node.output)
    whole, lowest = f"{HIDDEN}.whole", f"{HIDDEN}.lowest"
    for index, output in enumerate(graph.node[producer].output):
        if output == raw_map:
            graph.node[producer].output[index] = whole
    axes, mask = constant("axes", np.array([2, 3])), constant("mask", places[None, None])
    hide = [
        make("ReduceMin", [whole, axes], [lowest], lowest, keepdims=1),
        make("Where", [mask, whole, lowest], [raw_map], HIDDEN),
    ]
    _insert(graph, hide, producer + 1)


def shift_openvino(model: Any, path: Path, kind: str) -> Any:
    """Find where a threshold is subtracted, of scores (``image``) or maps (``pixel``).

    label = (raw - threshold) / span > limit; OpenVINO writes the subtraction as an addition, the division as a
    multiplication, and drops the division by a span of 1.
    """
    shift = model.output(LABELS[kind]).get_node().input_value(0).get_node().input_value(0).get_node()
    if shift.get_type_name() in SPANS:
        shift = shift.input_value(0).get_node()
    if shift.get_type_name() not in SHIFTS:
        raise ValueError(_not_ours(path))
    return shift


def shift_onnx(graph: Any, path: Path, kind: str) -> Any:
    """Find where a threshold is subtracted: the exporter drops the division by a span of 1."""
    nodes = {output: node for node in graph.node for output in node.output}
    shift = nodes.get(nodes[LABELS[kind]].input[0])
    if shift is not None and shift.op_type in SPANS:
        shift = nodes.get(shift.input[0])
    if shift is None or shift.op_type not in SHIFTS:
        raise ValueError(_not_ours(path))
    return shift


def _replace_openvino(old: Any, new: Any, readers: Any) -> None:
    """Give readers another tensor; the name of one that is given out goes with it."""
    names = old.get_names()
    old.get_tensor().set_names(set())
    new.get_tensor().set_names(names | new.get_names())
    for reader in readers:
        reader.replace_source_output(new)


def _raw_openvino(model: Any, path: Path, kind: str) -> Any:
    labelled = any(LABELS[kind] in output.get_names() for output in model.outputs)
    if labelled:
        return shift_openvino(model, path, kind).input_value(0)
    return model.output(OUTPUTS[kind]).get_node().input_value(0)


def _raw_onnx(graph: Any, path: Path, kind: str) -> str:
    labelled = any(output.name == LABELS[kind] for output in graph.output)
    return shift_onnx(graph, path, kind).input[0] if labelled else OUTPUTS[kind]


def _num_highest(places: np.ndarray | None, size: tuple[int, int], share: float, path: Path) -> int:
    if places is not None and places.shape != size:
        msg = f"The mask was cut to {places.shape}, but the map of {path} is {size}."
        raise ValueError(msg)
    return num_highest(size[0] * size[1] if places is None else int(places.sum()), share)


def _take_out_of_onnx(graph: Any) -> None:
    """Take out what :func:`inspect_onnx` has put in."""
    ours = [node for node in graph.node if node.name in {HIDDEN, COUNTED, f"{HIDDEN}.lowest"}]
    for node in ours:
        graph.node.remove(node)
        if node.name == COUNTED:
            for other in graph.node:
                other.input[:] = [node.input[0] if name == COUNTED else name for name in other.input]
        elif node.name == HIDDEN:
            for other in graph.node:
                other.output[:] = [node.output[0] if name == f"{HIDDEN}.whole" else name for name in other.output]
    names = {f"{KEY}.{name}" for name in ("highest", "places", "axes", "mask")}
    for tensor in [tensor for tensor in graph.initializer if tensor.name in names]:
        graph.initializer.remove(tensor)


def _insert(graph: Any, nodes: list[Any], index: int) -> None:
    for offset, node in enumerate(nodes):
        graph.node.insert(index + offset, node)


def _not_ours(path: Path) -> str:
    return f"{path} does not end in our post-processor; export the model anew with the settings that you want."
