# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Runs an exported model."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from anomalib_inp.files import file_digest
from anomalib_inp.images import Channels, as_batch
from anomalib_inp.runtime.engines import GPUS, OnnxRuntime, Openvino
from anomalib_inp.runtime.metadata import LABELS, read_metadata
from anomalib_inp.runtime.tiled import TiledImages

Performance = Literal["latency", "throughput"]


class Predictions(NamedTuple):
    """What an exported model gives for a batch, under the names of anomalib's ``InferenceBatch``.

    Attributes:
        pred_score: Image scores ``(B,)``, normalised or raw.
        pred_label: Whether an image is anomalous, bool ``(B,)``; ``None`` of a model without a post-processor.
        anomaly_map: Maps of the inspected part ``(B, 1, h, w)``, normalised or raw.
        pred_mask: Which of their pixels are anomalous, bool ``(B, 1, h, w)``; ``None`` likewise.
    """

    pred_score: np.ndarray
    pred_label: np.ndarray | None
    anomaly_map: np.ndarray
    pred_mask: np.ndarray | None


class Prepared(NamedTuple):
    """Images that need nothing more before the device has them: see :meth:`ExportedModel.prepare`."""

    batch: np.ndarray


class ExportedModel:
    """Runs an exported model on images.

    OpenVINO models run by OpenVINO, ONNX models by ONNX Runtime.

    Args:
        path: The ``.xml`` of an OpenVINO model, or an ``.onnx`` file.
        device: OpenVINO device, such as ``CPU``, ``GPU`` or ``NPU``; of an ONNX model ``CPU``, ``cuda`` or
            ``tensorrt``.
        precision: Inference precision. ``f32`` gives the scores of PyTorch; ``None`` leaves the choice to the device,
            which may be bfloat16, or TF32; ``f16`` is for TensorRT and for devices of OpenVINO that have it.
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
        ValueError: Not an export of ours, an unknown ``performance``, ``device`` or category, or a device whose
            provider ONNX Runtime lacks or cannot start.
    """

    def __init__(
        self,
        path: str | Path,
        device: str = "CPU",
        precision: str | None = "f32",
        performance: Performance = "latency",
        threads: int | None = None,
        streams: int | None = None,
        category: str | None = None,
    ) -> None:
        if performance not in {"latency", "throughput"}:
            msg = f"performance must be latency or throughput, got {performance!r}."
            raise ValueError(msg)
        path = Path(path).absolute()
        self._arguments = (path, device, precision, performance, threads, streams, category)
        wanted = {
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": performance.upper(),
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": streams,
        }
        settings = {name: value for name, value in wanted.items() if value}
        if threads and threads < (os.cpu_count() or 1):
            # OpenVINO keeps its threads on cores, the first ones in every process: several of them would share these.
            settings["ENABLE_CPU_PINNING"] = False
        self._exported = read_metadata(path)
        self.metadata = self._exported if category is None else self._exported.of_category(category)
        self._engine: OnnxRuntime | Openvino | TiledImages
        if path.suffix == ".onnx":
            size = self._exported.tiling.tiles.size if self._exported.tiling else self._exported.resized
            self._engine = OnnxRuntime(path, device, precision, threads, size)
        elif device in GPUS:
            msg = f"{device} runs .onnx files, got {path.name}: export with --export_type onnx."
            raise ValueError(msg)
        else:
            self._engine = Openvino(path, device, settings)
        if self._exported.tiling is not None:
            self._engine = TiledImages(self._engine, self._exported, self._exported.tiling)

    @property
    def digest(self) -> str:
        """Fingerprint of the files of the model, thresholds and weights."""
        return model_digest(self._arguments[0])

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process, or a copy, opens the file anew."""
        return type(self), self._arguments

    def __call__(self, images: np.ndarray | Prepared, channels: Channels = "rgb") -> Predictions:
        """Detect anomalies in an image, or in a batch of them; the fields hold NumPy arrays.

        Args:
            images: ``(H, W, 3)`` or ``(3, H, W)``, or a batch of them: uint8 or uint16, which are scaled by their
                range, or floating-point values in [0, 1].
            channels: Order of the channels: ``rgb``, or ``bgr`` as OpenCV reads them.

        Raises:
            ValueError: The array is no image, or not of the only size that the model was exported for.
        """
        return next(self.stream([images], channels))

    def prepare(self, images: np.ndarray, channels: Channels = "rgb") -> Prepared:
        """Do with images what needs no device: look at them, scale them, and resize them if the runtime does not.

        :meth:`stream` takes images prepared or not; threads that read them can prepare them as well.
        """
        return Prepared(np.ascontiguousarray(self._engine.prepare(as_batch(images, channels)), dtype=np.float32))

    def stream(self, batches: Iterable[np.ndarray | Prepared], channels: Channels = "rgb") -> Iterator[Predictions]:
        """Detect anomalies in many batches, working on several at a time; results come in the order of the batches.

        The next batch is asked for before the result of the last is given, so that the device has work meanwhile: for
        a source that waits for the answer, call the model instead. Several threads may read streams of one model at a
        time.
        """
        arrays = (
            (images if isinstance(images, Prepared) else self.prepare(images, channels)).batch for images in batches
        )
        for outputs in self._engine.stream(arrays):
            results = self._by_category(outputs)
            yield Predictions(**{name: results.get(name) for name in Predictions._fields})  # type: ignore[arg-type]

    def _by_category(self, outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Read the outputs by the thresholds of the category instead of those in the model, if it has any."""
        is_raw = self._exported.tiling is not None  # thresholds are not in the graph of a tile
        if self.metadata is self._exported and not is_raw:
            return outputs
        results = {}
        for kind, name in (("image", "pred_score"), ("pixel", "anomaly_map")):
            normalised = self._exported.normalized and not is_raw
            raw = self._exported.to_raw(outputs[name], kind) if normalised else outputs[name]
            scale, limit = getattr(self.metadata, kind), getattr(self.metadata, f"{kind}_limit")
            normalized, results[LABELS[kind]] = scale.normalise_and_label(raw, limit)
            results[name] = (normalized if self._exported.normalized else raw).astype(np.float32)
        return {**outputs, **results}


def model_files(path: Path) -> list[Path]:
    """List the files of an exported model."""
    return [part for part in (path, path.with_suffix(".bin")) if part.is_file()]


def model_digest(path: Path) -> str:
    """Fingerprint of the files of an exported model, thresholds and weights."""
    return " ".join(map(file_digest, model_files(path)))
