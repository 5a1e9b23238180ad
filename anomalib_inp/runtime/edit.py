# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Moves the thresholds of an exported model in place."""

import json
from pathlib import Path

import numpy as np

from anomalib_inp.files import replacing
from anomalib_inp.runtime.metadata import KEY, LABELS, Metadata, read_metadata


def set_thresholds(
    path: str | Path, image: float | None = None, pixel: float | None = None, category: str | None = None
) -> Metadata:
    """Move the thresholds of an exported model, in place; nothing else changes.

    Args:
        path: The ``.xml`` of an OpenVINO model, or an ``.onnx`` file.
        image: New image threshold, a raw score; ``None`` leaves it.
        pixel: New pixel threshold, a raw map value; ``None`` leaves it.
        category: Move those of this category, instead of those that are in the graph.

    Returns:
        The new metadata, with the thresholds of the category.

    Raises:
        ValueError: Not an export of ours, an unknown category, or a threshold that is no finite number.
    """
    path = Path(path)
    exported = read_metadata(path)
    metadata = exported if category is None else exported.of_category(category)
    given = {"image": image, "pixel": pixel}
    moved = {name: float(value) for name, value in given.items() if value is not None}
    for name, value in moved.items():
        if not np.isfinite(value) or np.isnan(getattr(metadata, f"{name}_threshold")):
            msg = (
                f"The {name} threshold must be a finite raw score and the model must have one already, got {value} "
                f"for {getattr(metadata, f'{name}_threshold')}. A model exported without thresholds is exported anew."
            )
            raise ValueError(msg)
    metadata = metadata._replace(**{f"{name}_threshold": value for name, value in moved.items()})  # type: ignore[arg-type]
    move = _move_in_onnx if path.suffix == ".onnx" else _move_in_openvino
    if moved and category is None:
        move(path, moved, metadata)
    elif moved and category is not None:
        scales = [metadata.image_threshold, metadata.image_span, metadata.pixel_threshold, metadata.pixel_span]
        move(path, {}, exported._replace(categories={**exported.categories, category: scales}))
    return metadata


def _move_in_openvino(path: Path, moved: dict[str, float], metadata: Metadata) -> None:
    import openvino
    from openvino import opset13

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
        constant = opset13.constant(np.array(signs[shift.get_type_name()] * value, dtype=np.float32))
        shift.input(1).replace_source_output(constant.output(0))
    model.set_rt_info(json.dumps(metadata._asdict()), KEY)
    weights = path.with_suffix(".bin")
    temporary = path.with_name(f".{path.stem}.tmp.xml")
    openvino.save_model(model, temporary, compress_to_fp16=False)
    del model  # it maps the file that is about to be replaced
    temporary.with_suffix(".bin").replace(weights)
    temporary.replace(path)


def _move_in_onnx(path: Path, moved: dict[str, float], metadata: Metadata) -> None:
    import onnx

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
    onnx.helper.set_model_props(model, {KEY: json.dumps(metadata._asdict())})
    with replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString())


def _not_ours(path: Path) -> str:
    return f"{path} does not end in our post-processor; export the model anew with the threshold that you want."
