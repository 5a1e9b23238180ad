# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Changes an exported model in place: its thresholds, and what it remembers."""

import math
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from anomalib_inp.files import disk_error, replacing
from anomalib_inp.runtime.engines import require
from anomalib_inp.runtime.metadata import KEY, LABELS, Metadata, read_metadata
from anomalib_inp.thresholds.scale import Thresholds, move

MEMORY = re.compile(r"heads\.\d+\.tokens$")
"""Name of what a model remembers, in the graphs of both formats."""


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
        metadata = exported._replace(image=first, pixel=second) if in_graph else exported
        if category is not None:
            metadata = metadata._replace(categories={**exported.categories, category: (first, second)})
        model = _read(path)
        _move(model, path, given if in_graph else {}, metadata)
        with _replacing(path, model):
            pass
    return Thresholds(first.threshold, second.threshold, exported.normalized, list(exported.categories))


def _read(path: Path) -> Any:
    if path.suffix == ".onnx":
        return require("onnx", "onnx", path).load(path)
    core = require("openvino", "openvino", path).Core()
    core.set_property({"ENABLE_MMAP": False})  # a file that is mapped cannot be replaced everywhere
    return core.read_model(path)


def _move(model: Any, path: Path, moved: dict[str, float], metadata: Metadata) -> None:
    """Move thresholds in a graph, and write down what it says of itself."""
    (_move_in_onnx if path.suffix == ".onnx" else _move_in_openvino)(model, path, moved, metadata)


def _move_in_openvino(model: Any, path: Path, moved: dict[str, float], metadata: Metadata) -> None:
    openvino = require("openvino", "openvino", path)
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


@contextmanager
def _replacing(path: Path, model: Any) -> Iterator[None]:
    """Write a model beside a file, and put it in its place where what is done meanwhile does not fail."""
    with ExitStack() as stack:
        temporary = stack.enter_context(replacing(path))
        if path.suffix == ".onnx":
            temporary.write_bytes(model.SerializeToString())
        else:
            stack.enter_context(replacing(path.with_suffix(".bin")))  # it is written beside the other, by its name
            write_openvino(model, temporary)
        yield


class ExportedMemory:
    """What an export remembers.

    Args:
        path: The ``.xml`` of an OpenVINO model, or an ``.onnx`` file.
        tokens: Tokens in 16 bits that it has to remember ``(K, M, D)``.

    Raises:
        ValueError: Not an export of ours, or one that remembers something else.
    """

    def __init__(self, path: str | Path, tokens: np.ndarray) -> None:
        self._path = Path(path)
        self._metadata = read_metadata(self._path)
        read = _onnx_memory if self._path.suffix == ".onnx" else _openvino_memory
        self._model, self._place, found = read(self._path)
        if found is None or not np.array_equal(found, tokens):
            msg = f"{path} is no export of this checkpoint as it is now: export it anew."
            raise ValueError(msg)

    @contextmanager
    def replacing(self, tokens: np.ndarray, threshold: float | None = None) -> Iterator[None]:
        """Replace what it remembers, in place, where what is done meanwhile does not fail.

        Args:
            tokens: Tokens in 16 bits that it shall remember ``(K, any, D)``.
            threshold: New common image threshold, a raw score; an export that is read by the thresholds of a category,
                or has none, keeps its own.
        """
        replace = _replace_in_onnx if self._path.suffix == ".onnx" else _replace_in_openvino
        replace(self._model, self._place, tokens, self._path)
        exported = self._metadata
        if threshold is not None and exported.category is None and not math.isnan(exported.image.threshold):
            moved = exported._replace(image=exported.image.moved(threshold))
            _move(self._model, self._path, {"image": threshold}, moved)
        with _replacing(self._path, self._model):
            yield


def _replace_in_onnx(model: Any, tensor: Any, tokens: np.ndarray, path: Path) -> None:
    tensor.CopyFrom(require("onnx", "onnx", path).numpy_helper.from_array(tokens, tensor.name))
    del model.graph.value_info[:]  # they name the old size


def _replace_in_openvino(model: Any, node: Any, tokens: np.ndarray, path: Path) -> None:
    constant = require("openvino", "openvino", path).opset13.constant(tokens)
    constant.set_friendly_name(node.get_friendly_name())
    for consumer in node.output(0).get_target_inputs():
        consumer.replace_source_output(constant.output(0))
    model.validate_nodes_and_infer_types()


def _onnx_memory(path: Path) -> tuple[Any, Any, np.ndarray | None]:
    """The model, the tensor of its memory, and what it holds."""
    onnx, model = require("onnx", "onnx", path), _read(path)
    tensor = next((each for each in model.graph.initializer if MEMORY.search(each.name)), None)
    return model, tensor, None if tensor is None else onnx.numpy_helper.to_array(tensor)


def _openvino_memory(path: Path) -> tuple[Any, Any, np.ndarray | None]:
    model = _read(path)
    constants = (node for node in model.get_ops() if node.get_type_name() == "Constant")
    node = next((each for each in constants if MEMORY.search(each.get_friendly_name())), None)
    return model, node, None if node is None else np.array(node.get_data())


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


def _move_in_onnx(model: Any, path: Path, moved: dict[str, float], metadata: Metadata) -> None:
    onnx = require("onnx", "onnx", path)
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


def _not_ours(path: Path) -> str:
    return f"{path} does not end in our post-processor; export the model anew with the threshold that you want."
