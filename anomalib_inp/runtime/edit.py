# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Changes an exported model in place: its thresholds, what it inspects, and what it remembers."""

import math
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from anomalib_inp.files import disk_error, in_place, replacing
from anomalib_inp.results.inspection import Inspection
from anomalib_inp.runtime.engines import require
from anomalib_inp.runtime.metadata import KEY, TAG, TAG_SIZE, Metadata, read_metadata
from anomalib_inp.runtime.places import SHIFTS, inspect_onnx, inspect_openvino, shift_onnx, shift_openvino
from anomalib_inp.thresholds.scale import NO_SCORES, Thresholds, move

MEMORY = re.compile(r"heads\.\d+\.tokens$")
"""Name of what a model remembers, in the graphs of both formats."""


@in_place
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


@in_place
def set_inspection(
    path: str | Path, mask: str | Path | bytes | None = None, smallest_area: float | None = None
) -> tuple[Inspection, Inspection]:
    """Change what an exported model inspects, in place.

    Of another mask, the thresholds stay as they are; the scores of validation images that it keeps go, since they were
    of other places.

    Args:
        path: The ``.xml`` of an OpenVINO model, or an ``.onnx`` file.
        mask: An image file or the content of one, white where to look; an empty text for everywhere; ``None`` leaves
            it.
        smallest_area: Pixels of the image that a region has at least; ``None`` leaves it.

    Returns:
        What it inspected before, and what it does now.

    Raises:
        ValueError: Not an export of ours, one of an earlier version, or a mask that leaves nothing.
    """
    path = Path(path)
    exported = read_metadata(path)
    inspection = exported.inspection.changed(mask, smallest_area)
    if inspection == exported.inspection:
        return inspection, inspection
    metadata, model = exported._replace(inspection=inspection), _read(path)
    if inspection.mask != exported.inspection.mask:
        metadata = metadata._replace(validation=NO_SCORES, category_validation={})
        put_places(model, path, metadata)
    _move(model, path, {}, metadata)
    with _replacing(path, model):
        pass
    return exported.inspection, inspection


def put_places(model: Any, path: Path, metadata: Metadata) -> None:
    """Let a graph count the places that its metadata say.

    Args:
        model: An ``openvino.Model`` or ``onnx.ModelProto``, by the suffix of the path.
        path: Its file.
        metadata: What it says of itself.

    Raises:
        ValueError: An export of an earlier version, or a mask that leaves nothing.
    """
    if metadata.tiling is not None:  # it is counted behind the graph
        return
    if metadata.share is None or metadata.map_size is None:
        msg = f"{path} is an export of an earlier version, which inspects everything: export it anew."
        raise ValueError(msg)
    put = inspect_onnx if path.suffix == ".onnx" else inspect_openvino
    put(model, path, metadata.places(metadata.map_size), metadata.share)


def _read(path: Path) -> Any:
    if path.suffix == ".onnx":
        return require("onnx", "onnx", path).load(path)
    core = require("openvino", "openvino", path).Core()
    core.set_property({"ENABLE_MMAP": False})  # a file that is mapped cannot be replaced everywhere
    return core.read_model(path)


def _move(model: Any, path: Path, moved: dict[str, float], metadata: Metadata) -> None:
    """Move thresholds in a graph, which that of a tile has none of, and write down what it says of itself."""
    moved = {} if metadata.tiling is not None else moved
    (_move_in_onnx if path.suffix == ".onnx" else _move_in_openvino)(model, path, moved, metadata)


def _move_in_openvino(model: Any, path: Path, moved: dict[str, float], metadata: Metadata) -> None:
    openvino = require("openvino", "openvino", path)
    for name, value in moved.items():
        shift = shift_openvino(model, path, name)
        constant = openvino.opset13.constant(np.array(SHIFTS[shift.get_type_name()] * value, dtype=np.float32))
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
    tag = os.urandom(TAG_SIZE)
    model.set_rt_info(tag.hex(), TAG)
    try:
        openvino.save_model(model, path, compress_to_fp16=half)
        with path.with_suffix(".bin").open("ab") as weights:
            weights.write(tag)
    except RuntimeError as error:  # OpenVINO says of all that goes wrong there that writing failed
        for part in (path, path.with_suffix(".bin")):
            part.unlink(missing_ok=True)
        raise disk_error(path, error) from error


def _move_in_onnx(model: Any, path: Path, moved: dict[str, float], metadata: Metadata) -> None:
    onnx = require("onnx", "onnx", path)
    graph = model.graph
    for name, value in moved.items():
        shift = shift_onnx(graph, path, name)
        # A constant of its own: the exporter merges equal ones, so that others may read the one that is there.
        constant = f"{KEY}.{name}_threshold"
        for tensor in [tensor for tensor in graph.initializer if tensor.name == constant]:
            graph.initializer.remove(tensor)
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, dtype=np.float32), constant))
        shift.input[1] = constant
    onnx.helper.set_model_props(model, {KEY: metadata.to_json()})
