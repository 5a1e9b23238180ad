# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Makes exports: pre-processor, detector and post-processor as one graph."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from anomalib.data import InferenceBatch
from lightning_utilities.core.imports import module_available
from torch import nn

from anomalib_inp.files import replacing
from anomalib_inp.preprocessing import crop_box_of
from anomalib_inp.runtime.edit import put_places, write_openvino
from anomalib_inp.runtime.metadata import KEY, Metadata, Tiling
from anomalib_inp.runtime.tiled import reading_names
from anomalib_inp.scoring.inspected import Everywhere
from anomalib_inp.thresholds.post_processor import InpPostProcessor
from anomalib_inp.thresholds.scale import NO_SCALE, NO_SCORES, Scale

if TYPE_CHECKING:
    import openvino
    from anomalib.models.components import AnomalibModule

OPSET = 18  # the first in which Resize knows antialiasing
TRACE_SIZE = (224, 320)
IN_16_BITS = ("MatMul", "Gemm", "Conv")
"""What multiplies matrices, in ONNX."""


def metadata_of(model: "AnomalibModule", input_size: tuple[int, int] | None = None) -> Metadata:
    """Read off a model what its exports say of themselves.

    Args:
        model: The model.
        input_size: Height and width of the only images that the export takes; ``None`` for any.

    Raises:
        ValueError: The model has another post-processor than ours.
    """
    post, crop_box = model.post_processor, crop_box_of(model.pre_processor)
    detector = model.model
    inspected: dict[str, Any] = {"inspection": model.inspection, "share": detector.shares[detector.map]}
    if model.tiles is None:
        inspected["map_size"] = model.map_size
    elif input_size is None:
        inspected["tiling"] = Tiling(model.tiles, model.pre_processor.fixed_size)
    else:
        inspected["map_size"] = model.map_size or model.tiles.map_size(input_size)
    if post is None:
        return Metadata(False, NO_SCALE, NO_SCALE, crop_box, **inspected)
    if not isinstance(post, InpPostProcessor):
        msg = (
            f"ONNX and OpenVINO exports need an InpPostProcessor, got {type(post).__name__}: build or load the model "
            "with post_processor=InpPostProcessor(), or with post_processor=False for raw scores."
        )
        raise ValueError(msg)  # noqa: TRY004 - a choice of the user, which the command line shows as one line
    image, pixel = (Scale(*map(float, post.scale(kind))) for kind in ("image", "pixel"))
    normalized = post.enable_normalization and not math.isnan(image.threshold)
    limits = (1 - post.image_sensitivity, 1 - post.pixel_sensitivity)
    of_each = dict(post.category_validation)
    kept = (of_each.get(post.category, NO_SCORES) if post.category else post.validation, of_each)
    inspected["references"] = post.references
    return Metadata(normalized, image, pixel, crop_box, dict(post.ranges), *limits, post.category, *kept, **inspected)


@contextmanager
def counting_everywhere(model: "AnomalibModule") -> Iterator[None]:
    """Leave what is inspected out of what is traced: it is put into the graph as it would be later, in place."""
    detector = model.model
    inspected = detector.inspected
    try:
        detector.inspected = Everywhere()
        yield
    finally:
        detector.inspected = inspected


class TileGraph(nn.Module):
    """What an export of a tiled model for images of any size consists of: a tile ``(B, 3, h, w)`` to its readings.

    Args:
        model: The model.
    """

    def __init__(self, model: "AnomalibModule") -> None:
        super().__init__()
        self.normalise = model.pre_processor.training_transform
        self.detector = model.model

    def forward(self, tiles: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Give each reading, ``(B, 1 or 2, h, w)``."""
        return tuple(reading.transpose(0, 1) for reading in self.detector.readings_of(self.normalise(tiles)))


def graph_of(model: "AnomalibModule") -> nn.Module:
    """Chain pre-processor, detector and post-processor: what an export consists of."""
    return nn.Sequential(*(part for part in (model.pre_processor, model.model, model.post_processor) if part)).eval()


class _WithoutNone(nn.Module):
    """Leaves out labels and masks that no post-processor has set: a trace takes tensors alone."""

    def forward(self, outputs: InferenceBatch) -> tuple[torch.Tensor, ...]:
        return tuple(value for value in outputs if value is not None)


def to_openvino(model: "AnomalibModule", input_size: tuple[int, int] | None = None, **kwargs: Any) -> "openvino.Model":
    """Convert a model to OpenVINO, straight from PyTorch: OpenVINO's ONNX reader ignores antialiasing.

    Args:
        model: The model, with its post-processor's thresholds.
        input_size: Height and width of input images in pixels; ``None`` accepts any.
        **kwargs: Further arguments of ``openvino.convert_model``.

    Returns:
        An ``openvino.Model`` with a dynamic batch and the outputs of anomalib's exports.

    Raises:
        ModuleNotFoundError: OpenVINO is not installed.
        ValueError: The model has another post-processor than ours.
    """
    metadata = metadata_of(model, input_size)
    if not module_available("openvino"):
        msg = "Exporting to OpenVINO needs the package openvino: pip install 'anomalib-inp[export]'."
        raise ModuleNotFoundError(msg, name="openvino")
    import openvino

    device, tiling = model.device, metadata.tiling
    graph = graph_of(model) if tiling is None else TileGraph(model).eval()
    size = input_size if tiling is None else tiling.tiles.size
    example = torch.rand(1, 3, *(size or TRACE_SIZE))
    shape = [-1, 3, *(size or (-1, -1))]
    with _quiet(), torch.no_grad(), counting_everywhere(model):
        found = graph.cpu()(example)
        if tiling is None:
            names = [name for name, value in found._asdict().items() if value is not None]
            traced: nn.Module = nn.Sequential(graph, _WithoutNone())
        else:
            names, traced = reading_names(len(found)), nn.Sequential(graph)
        converted = openvino.convert_model(traced, example_input=example, input=[("input", shape)], **kwargs)
    graph.to(device)
    converted.inputs[0].get_tensor().set_names({"input"})
    for output, name in zip(converted.outputs, names, strict=True):
        output.get_tensor().set_names({name})
    if metadata.inspection.mask:
        put_places(converted, Path("model.xml"), metadata)
    converted.set_rt_info(metadata.to_json(), KEY)
    return converted


def tile_to_onnx(model: "AnomalibModule", path: Path, metadata: Metadata, half: bool = False) -> Path:
    """Write the graph of a tile as ONNX, with a dynamic batch.

    Args:
        model: A model that sees tiles.
        path: The file.
        metadata: What it says of itself.
        half: Whether matrices are multiplied in 16 bits.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    graph, device = TileGraph(model).eval(), model.device
    example = torch.rand(2, 3, *model.tiles.size)
    with replacing(path) as temporary, _quiet(), torch.no_grad():
        names = reading_names(len(graph.cpu()(example)))
        torch.onnx.export(
            graph,
            (example,),
            temporary,
            input_names=["input"],
            output_names=names,
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
            verbose=False,
        )
        finish_onnx(temporary, metadata, half)
    graph.to(device)
    return path


def some_tile(model: "AnomalibModule", image: np.ndarray, number: int) -> np.ndarray:
    """Cut one tile ``(1, 3, h, w)`` out of an image ``(1, 3, H, W)``, another for each number in a list of images."""
    resize = model.pre_processor.resize
    whole = image if resize is None else resize(torch.from_numpy(image)).numpy()
    places, (height, width) = model.tiles.places(whole.shape[2:]), model.tiles.size
    row, column = places[number % len(places)]
    return whole[..., row : row + height, column : column + width].copy()  # and not all of the image


def save_openvino(model: "openvino.Model", path: Path, half: bool = False) -> Path:
    """Write an OpenVINO model as ``.xml`` and ``.bin``.

    Args:
        model: What :func:`to_openvino` makes.
        path: The ``.xml``.
        half: Store weights that are not in 8 bits in 16.

    Returns:
        The ``.xml``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_openvino(model, path, half)
    return path


def finish_onnx(path: Path, metadata: Metadata, half: bool = False) -> None:
    """Write metadata into an ONNX file, and which places count; leave out where in whose files each node was made.

    Args:
        path: The file.
        metadata: What it says of itself.
        half: Whether matrices are multiplied in 16 bits.
    """
    import onnx

    model = onnx.load(path)
    if half:
        multiply_in_16_bits(model.graph)
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    if metadata.inspection.mask:
        put_places(model, path, metadata)
    onnx.helper.set_model_props(model, {KEY: metadata.to_json()})
    with replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString())


def multiply_in_16_bits(graph: Any) -> None:
    """Let what multiplies matrices in the network of an ONNX graph read and write 16 bits, and keep weights in them.

    All else, sums, lengths, cosines and shares, stays in 32: ONNX Runtime's own converter rounds what passes between
    nodes that it leaves in 32 bits, thresholds too.
    """
    from onnx import TensorProto, helper, numpy_helper

    weights = {tensor.name: tensor for tensor in graph.initializer}
    shortened: dict[str, str] = {}
    nodes = []

    def in_16_bits(name: str) -> str:
        if name not in shortened:
            shortened[name] = f"{name}.16"
            if name in weights:
                values = numpy_helper.to_array(weights[name]).astype(np.float16)
                graph.initializer.append(numpy_helper.from_array(values, shortened[name]))
            else:
                nodes.append(helper.make_node("Cast", [name], [shortened[name]], to=TensorProto.FLOAT16))
        return shortened[name]

    for node in graph.node:
        if node.op_type in IN_16_BITS and _is_of_network(node):
            node.input[:] = [in_16_bits(name) for name in node.input]
            (output,) = node.output
            node.output[:] = [f"{output}.32"]
            nodes += [node, helper.make_node("Cast", [f"{output}.32"], [output], to=TensorProto.FLOAT)]
        else:
            nodes.append(node)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    for field, values in ((graph.node, nodes), (graph.initializer, kept)):
        del field[:]
        field.extend(values)


def _is_of_network(node: Any) -> bool:
    """Whether a node is of the network, neither of what is done to images nor of what is read off."""
    scopes = (entry.value for entry in node.metadata_props if entry.key == "pkg.torch.onnx.name_scopes")
    return any(".network'" in scope for scope in scopes)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what tracing says of sizes that are fixed on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)  # newer versions call the deprecation of torch.jit.trace so
        yield
