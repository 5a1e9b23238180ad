# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Exported models: how they are made, what they carry, how they are run and how their thresholds are moved."""

import json
import math
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from anomalib.data import InferenceBatch
from lightning_utilities.core.imports import module_available
from torch import nn

from anomalib_inp.cache_folder import cache_folder
from anomalib_inp.preprocessing import WHOLE_IMAGE, CropBox

if TYPE_CHECKING:
    import openvino
    from anomalib.models.components import AnomalibModule

KEY = "anomalib_inp"
OPSET = 18  # the first in which Resize knows antialiasing
TRACE_SIZE = (224, 320)
LABELS = {"image": "pred_label", "pixel": "pred_mask"}


class Metadata(NamedTuple):
    """What an exported model says of itself; raw scores and thresholds are cosine distances.

    Attributes:
        normalized: Whether scores and maps come out normalised (0.5 is the threshold) or raw.
        image_threshold: Threshold of image scores.
        image_span: Raw score that a margin of 1 stands for (see ``InpPostProcessor``).
        pixel_threshold: Threshold of maps.
        pixel_span: The same for maps.
        crop_box: The inspected part of the image.
        categories: Of a model of several categories: threshold and span of scores, then of maps, of each.
        image_limit: Normalised score above which an image is anomalous.
        pixel_limit: The same for maps.
    """

    normalized: bool
    image_threshold: float
    image_span: float
    pixel_threshold: float
    pixel_span: float
    crop_box: CropBox
    categories: dict[str, list[float]] = {}
    image_limit: float = 0.5
    pixel_limit: float = 0.5

    @classmethod
    def of(cls, model: "AnomalibModule") -> "Metadata":
        """Read the metadata off a model."""
        post = model.post_processor
        if post is None:
            return cls(False, math.nan, 1.0, math.nan, 1.0, _crop_box(model))
        (image, image_span), (pixel, pixel_span) = (post.threshold_and_span(kind) for kind in ("image", "pixel"))
        scales = (float(image), float(image_span), float(pixel), float(pixel_span))
        normalized = post.enable_normalization and not math.isnan(scales[0])
        categories = {
            name: [image.threshold, image.span, pixel.threshold, pixel.span]
            for name, (image, pixel) in post.ranges.items()
        }
        limits = (1 - post.image_sensitivity, 1 - post.pixel_sensitivity)
        return cls(normalized, *scales, _crop_box(model), categories, *limits)

    def of_category(self, category: str) -> "Metadata":
        """Take over the thresholds and spans of a category.

        Raises:
            ValueError: There are none.
        """
        if category not in self.categories:
            known = ", ".join(self.categories) or "no categories"
            msg = f"The model has no thresholds of the category {category!r}; it knows {known}."
            raise ValueError(msg)
        image, image_span, pixel, pixel_span = self.categories[category]
        return self._replace(image_threshold=image, image_span=image_span, pixel_threshold=pixel, pixel_span=pixel_span)

    def to_raw(self, normalized: Any, kind: str = "image") -> np.ndarray:
        """Turn normalised scores (``kind="image"``) or map values (``"pixel"``) into raw ones."""
        threshold, span = getattr(self, f"{kind}_threshold"), getattr(self, f"{kind}_span")
        t = np.clip(2 * np.asarray(normalized, dtype=np.float64) - 1, -1 + 1e-7, 1 - 1e-7)
        return t / np.sqrt(1 - t**2) * span + threshold

    def to_normalized(self, raw: Any, kind: str = "image") -> np.ndarray:
        """Turn raw scores (``kind="image"``) or map values (``"pixel"``) into normalised ones."""
        threshold, span = getattr(self, f"{kind}_threshold"), getattr(self, f"{kind}_span")
        margin = (np.asarray(raw, dtype=np.float64) - threshold) / span
        return (1 + margin / np.sqrt(1 + margin**2)) / 2


def _crop_box(model: "AnomalibModule") -> CropBox:
    return getattr(model.pre_processor, "crop_box", WHOLE_IMAGE)


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
    """
    if not module_available("openvino"):
        msg = "Exporting to OpenVINO needs the package openvino: pip install 'anomalib-inp[export]'."
        raise ModuleNotFoundError(msg, name="openvino")
    import openvino

    graph, device = graph_of(model), model.device
    example = torch.rand(1, 3, *(input_size or TRACE_SIZE))
    shape = [-1, 3, *(input_size or (-1, -1))]
    with _quiet(), torch.no_grad():
        names = [name for name, value in graph.cpu()(example)._asdict().items() if value is not None]
        traced = nn.Sequential(graph, _WithoutNone())
        converted = openvino.convert_model(traced, example_input=example, input=[("input", shape)], **kwargs)
    graph.to(device)
    converted.inputs[0].get_tensor().set_names({"input"})
    for output, name in zip(converted.outputs, names, strict=True):
        output.get_tensor().set_names({name})
    converted.set_rt_info(json.dumps(Metadata.of(model)._asdict()), KEY)
    return converted


def save_openvino(model: "openvino.Model", path: Path, half: bool = False) -> Path:
    """Write an OpenVINO model as ``.xml`` and ``.bin``.

    Args:
        model: What :func:`to_openvino` makes.
        path: The ``.xml``.
        half: Store weights that are not in 8 bits in 16.

    Returns:
        The ``.xml``.
    """
    import openvino

    path.parent.mkdir(parents=True, exist_ok=True)
    openvino.save_model(model, path, compress_to_fp16=half)
    return path


def annotate_onnx(path: Path, metadata: Metadata) -> None:
    """Write metadata into an ONNX file."""
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(model, {KEY: json.dumps(metadata._asdict())})
    _replace(path, model.SerializeToString())


def read_metadata(path: str | Path) -> Metadata:
    """Read what an exported OpenVINO (``.xml``) or ONNX (``.onnx``) model says of itself.

    Raises:
        ValueError: The file is no export of ours.
    """
    path = Path(path)
    if path.suffix not in {".xml", ".onnx"} or not path.is_file():
        wrong = "there is no such file" if not path.exists() else "export the checkpoint first: anomalib export"
        msg = f"Expected the .xml of an exported OpenVINO model or an .onnx file, got {path}: {wrong}."
        raise FileNotFoundError(msg)
    try:
        text = (_onnx_text if path.suffix == ".onnx" else _openvino_text)(path)
    except Exception as error:  # each runtime has its own
        msg = f"{path} cannot be read as a model; an OpenVINO model needs its .bin beside it. {type(error).__name__}"
        raise ValueError(msg) from error
    if text is None:
        msg = f"{path} carries no metadata of anomalib-inp; export the model with anomalib export --model InpFormer."
        raise ValueError(msg)
    values = json.loads(text)
    return Metadata(**{**values, "crop_box": CropBox(*values["crop_box"])})


def _onnx_text(path: Path) -> str | None:
    import onnx

    return {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}.get(KEY)


def _openvino_text(path: Path) -> str | None:
    import openvino

    model = openvino.Core().read_model(path)
    return model.get_rt_info(KEY).astype(str) if model.has_rt_info(KEY) else None


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


class ExportedModel:
    """Runs an exported model on images.

    OpenVINO models run by OpenVINO, ONNX models by ONNX Runtime.

    Args:
        path: The ``.xml`` of an OpenVINO model, or an ``.onnx`` file.
        device: OpenVINO device, such as ``CPU``, ``GPU`` or ``NPU``.
        precision: OpenVINO's inference precision. ``f32`` gives the scores of PyTorch; ``None`` leaves the choice to
            the device, which may be bfloat16.
        performance: ``latency`` for the fastest answer to one image, ``throughput`` for the most images in a second;
            the latter is for :meth:`stream`.
        threads: CPU threads; ``None`` leaves the choice to the runtime.
        streams: Images that OpenVINO works on side by side; ``None`` leaves the choice to ``performance``.
        category: Of a model of several categories: the one whose thresholds and normalisation hold; ``None`` for those
            that the model was exported with.

    Attributes:
        metadata: What the model says of itself, with the thresholds of the category.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not an export of ours, an unknown ``performance`` or an unknown category.
    """

    def __init__(
        self,
        path: str | Path,
        device: str = "CPU",
        precision: str | None = "f32",
        performance: Literal["latency", "throughput"] = "latency",
        threads: int | None = None,
        streams: int | None = None,
        category: str | None = None,
    ) -> None:
        if performance not in {"latency", "throughput"}:
            msg = f"performance must be latency or throughput, got {performance!r}."
            raise ValueError(msg)
        path = Path(path)
        self._exported = read_metadata(path)
        self.metadata = self._exported if category is None else self._exported.of_category(category)
        if path.suffix == ".onnx":
            self._runtime: _Openvino | _OnnxRuntime = _OnnxRuntime(path, threads)
        else:
            settings = {
                "INFERENCE_PRECISION_HINT": precision,
                "PERFORMANCE_HINT": performance.upper(),
                "INFERENCE_NUM_THREADS": threads,
                "NUM_STREAMS": streams,
            }
            self._runtime = _Openvino(path, device, {name: value for name, value in settings.items() if value})

    def __call__(self, images: np.ndarray) -> InferenceBatch:
        """Detect anomalies in RGB images ``(B, 3, H, W)``, float32 in [0, 1]; the fields hold NumPy arrays."""
        return next(self.stream([images]))

    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[InferenceBatch]:
        """Detect anomalies in many batches, working on several at a time; results come in the order of the batches."""
        arrays = (np.ascontiguousarray(images, dtype=np.float32) for images in batches)
        return (InferenceBatch(**self._by_category(outputs)) for outputs in self._runtime.stream(arrays))

    def _by_category(self, outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Read the outputs by the thresholds of the category instead of those in the model."""
        if self.metadata is self._exported:
            return outputs
        results = {}
        for kind, name in (("image", "pred_score"), ("pixel", "anomaly_map")):
            raw = self._exported.to_raw(outputs[name], kind) if self._exported.normalized else outputs[name]
            normalized = self.metadata.to_normalized(raw, kind)
            results[name] = (normalized if self._exported.normalized else raw).astype(np.float32)
            results[LABELS[kind]] = normalized > getattr(self.metadata, f"{kind}_limit")
        return {**outputs, **results}


class _OnnxRuntime:
    """An ONNX model on the CPU."""

    def __init__(self, path: Path, threads: int | None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._names = [output.name for output in self._session.get_outputs()]

    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        """Run batches one after the other."""
        for images in batches:
            yield dict(zip(self._names, self._session.run(self._names, {"input": images}), strict=True))


class _Openvino:
    """An OpenVINO model; what a device compiles is kept in the cache folder, so that the next start is fast."""

    def __init__(self, path: Path, device: str, settings: dict[str, Any]) -> None:
        import openvino

        core = openvino.Core()
        core.set_property({"CACHE_DIR": str(cache_folder("openvino"))})
        # Read first: then the cache goes by what is in the file, which moving a threshold changes, not by its name.
        self._model = core.compile_model(core.read_model(path), device, settings)
        self._count = self._model.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        self._idle = deque[Any]()

    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        """Run batches, as many side by side as the device likes; several streams may be read at a time."""
        running = deque[Any]()
        try:
            for images in batches:
                if len(running) == self._count:
                    yield self._outputs(running[0])
                    self._idle.append(running.popleft())
                # appending and popping a deque needs no lock: a request belongs to one stream at a time
                running.append(self._idle.popleft() if self._idle else self._model.create_infer_request())
                running[-1].start_async({"input": images})
            while running:
                yield self._outputs(running[0])
                self._idle.append(running.popleft())
        finally:
            # Whoever stops reading, or fails, leaves requests at work.
            for request in running:
                with suppress(RuntimeError):
                    request.wait()
                    self._idle.append(request)

    @staticmethod
    def _outputs(request: Any) -> dict[str, np.ndarray]:
        request.wait()
        # copied, because the request will write its next results over these
        return {output.any_name: request.get_tensor(output).data.copy() for output in request.model_outputs}


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
    _replace(path, model.SerializeToString())


def _not_ours(path: Path) -> str:
    return f"{path} does not end in our post-processor; export the model anew with the threshold that you want."


def _replace(path: Path, content: bytes) -> None:
    """Write a file in one step: it is the old one or the new one, never half of either."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what tracing says of sizes that are fixed on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)  # newer versions call the deprecation of torch.jit.trace so
        yield
