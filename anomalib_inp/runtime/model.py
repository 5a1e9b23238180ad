# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Runs an exported model."""

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
from anomalib.data import InferenceBatch

from anomalib_inp.files import cache_folder
from anomalib_inp.runtime.metadata import LABELS, read_metadata


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
            scale, limit = getattr(self.metadata, kind), getattr(self.metadata, f"{kind}_limit")
            normalized, results[LABELS[kind]] = scale.normalise_and_label(raw, limit)
            results[name] = (normalized if self._exported.normalized else raw).astype(np.float32)
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
