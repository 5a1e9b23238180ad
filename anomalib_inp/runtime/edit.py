# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Moves the thresholds of an exported model in place."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from anomalib_inp.files import disk_error, replacing
from anomalib_inp.runtime.engines import require
from anomalib_inp.runtime.metadata import KEY, LABELS, Metadata, read_metadata
from anomalib_inp.thresholds.scale import Thresholds, move


def set_thresholds(
    path: str | Path, image: float | None = None, pixel: float | None = None, category: str | None = None
) -> Thresholds:
    """Move the thresholds of an exported model, in place; nothing else changes.

    Args:
        path: The ``.xml`` of an OpenVINO model, or an ``.onnx`` file.
        image: New image threshold, a raw score; ``None`` leaves it.
        pixel: New pixel threshold, a raw map value; ``None`` leaves it.
        category: Move those of this category; by default those that are in the graph, and those of the category that
            they are of.

    Returns:
        What the export says now: the thresholds of the category, or those that are in the graph.

    Raises:
        ValueError: Not an export of ours, one without thresholds, an unknown category, or a threshold that is no finite
            number.
    """
    path = Path(path)
    exported = read_metadata(path)
    in_graph = category in {None, exported.category}
    category = category or exported.category
    shown = exported if in_graph else exported.of_category(str(category))
    given = {kind: value for kind, value in (("image", image), ("pixel", pixel)) if value is not None}
    if given and any(math.isnan(scale.threshold) for scale in (shown.image, shown.pixel)):
        msg = f"A model exported without thresholds is exported anew: the graph of {path} has none that could be moved."
        raise ValueError(msg)
    first, second = move((shown.image, shown.pixel), image, pixel)
    if given:
        write = _write_onnx if path.suffix == ".onnx" else _write_openvino
        metadata = exported._replace(image=first, pixel=second) if in_graph else exported
        if category is not None:
            metadata = metadata._replace(categories={**exported.categories, category: (first, second)})
        write(path, given if in_graph else {}, metadata)
    return Thresholds(first.threshold, second.threshold, exported.normalized, list(exported.categories))


def _write_openvino(path: Path, moved: dict[str, float], metadata: Metadata) -> None:
    openvino = require("openvino", "openvino", path)
    model = openvino.Core().read_model(path)
    for name, value in moved.items():
        # label = (raw - threshold) / span > limit; OpenVINO writes the subtraction as an addition, the division as a
        # multiplication, and drops the division by a span of 1
        shift = model.output(LABELS[name]).get_node().input_value(0).get_node().input_value(0).get_node()
        if shift.get_type_name() in {"Divide", "Multiply"}:
            shift = shift.input_value(0).get_node()
        signs = {"Add": -1, "Subtract": 1}
        if shift.get_type_name() not in signs:
            raise ValueError(_not_ours(path))
        constant = openvino.opset13.constant(np.array(signs[shift.get_type_name()] * value, dtype=np.float32))
        shift.input(1).replace_source_output(constant.output(0))
    model.set_rt_info(metadata.to_json(), KEY)
    weights = path.with_suffix(".bin")
    temporary = path.with_name(f".{path.stem}.tmp.xml")
    write_openvino(model, temporary)
    del model  # it maps the file that is about to be replaced
    temporary.with_suffix(".bin").replace(weights)
    temporary.replace(path)


def write_openvino(model: Any, path: Path, half: bool = False) -> None:
    """Write an OpenVINO model as ``.xml`` and ``.bin``; nothing stays there if writing fails.

    Args:
        model: An ``openvino.Model``.
        path: The ``.xml``.
        half: Store weights that are not in 8 bits in 16.

    Raises:
        DiskError: The disk is full.
    """
    openvino = require("openvino", "openvino", path)
    try:
        openvino.save_model(model, path, compress_to_fp16=half)
    except RuntimeError as error:  # OpenVINO says of all that goes wrong there that writing failed
        for part in (path, path.with_suffix(".bin")):
            part.unlink(missing_ok=True)
        raise disk_error(path, error) from error


def _write_onnx(path: Path, moved: dict[str, float], metadata: Metadata) -> None:
    onnx = require("onnx", "onnx", path)
    model = onnx.load(path)
    graph = model.graph
    nodes = {output: node for node in graph.node for output in node.output}
    for name, value in moved.items():
        # label = (raw - threshold) / span > limit; the exporter drops the division by a span of 1
        shift = nodes.get(nodes[LABELS[name]].input[0])
        if shift is not None and shift.op_type == "Div":
            shift = nodes.get(shift.input[0])
        if shift is None or shift.op_type != "Sub":
            raise ValueError(_not_ours(path))
        # A constant of its own: the exporter merges equal ones, so that others may read the one that is there.
        constant = f"{KEY}.{name}_threshold"
        for tensor in [tensor for tensor in graph.initializer if tensor.name == constant]:
            graph.initializer.remove(tensor)
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, dtype=np.float32), constant))
        shift.input[1] = constant
    onnx.helper.set_model_props(model, {KEY: metadata.to_json()})
    with replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString())


def _not_ours(path: Path) -> str:
    return f"{path} does not end in our post-processor; export the model anew with the threshold that you want."
