# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What runs the graph of an exported model: OpenVINO or ONNX Runtime."""

import hashlib
import mmap
import os
import tempfile
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from threading import get_ident
from typing import Any

import numpy as np

from anomalib_inp import __version__
from anomalib_inp.files import VARIABLE, cache_folder
from anomalib_inp.runtime.metadata import unreadable
from anomalib_inp.runtime.resize import resize

Outputs = dict[str, np.ndarray]
RESIZED = "resized"
"""Name of the input of a graph that begins after the resizing of the image."""
PROVIDERS = {
    "CPU": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
"""Devices of ONNX models, and ONNX Runtime's providers for them."""
GPUS = tuple(device for device in PROVIDERS if device != "CPU")
TENSORRT_BATCH = {"min": 1, "opt": 4, "max": 16}
"""Images in a batch that TensorRT builds its engine for."""
POLL = 20
"""Milliseconds between two looks at whether the first image is done."""


class OnnxRuntime:
    """An ONNX model, on the CPU or on a GPU by one of ONNX Runtime's providers.

    Args:
        path: The file.
        device: ``CPU``, ``cuda`` or ``tensorrt``.
        precision: Of a GPU: ``f32`` computes in it, ``f16`` lets TensorRT take 16 bits; else the provider chooses.
        threads: CPU threads.
        size: Height and width that images are resized to before the graph has them; ``None`` where it resizes.

    Raises:
        ValueError: An unknown device, a provider that is not there or does not start, or no readable model.
    """

    def __init__(
        self, path: Path, device: str, precision: str | None, threads: int | None, size: tuple[int, int] | None
    ) -> None:
        onnxruntime = require("onnxruntime", "onnx", path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        if device not in PROVIDERS:
            msg = f"An .onnx file runs on {', '.join(PROVIDERS)}, got {device!r}. OpenVINO's devices need an .xml."
            raise ValueError(msg)
        provider, self._size = PROVIDERS[device], size
        if provider not in onnxruntime.get_available_providers():
            msg = (
                f"{device} needs ONNX Runtime with its {provider}; the one installed has "
                f"{', '.join(onnxruntime.get_available_providers())}. pip uninstall onnxruntime, then "
                "pip install 'anomalib-inp[onnx-gpu]'."
            )
            raise ValueError(msg)
        providers = provider_settings(device, precision, size)
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=providers)
        except Exception as error:  # ONNX Runtime has many
            raise unreadable(path, error) from error
        if provider not in self._session.get_providers():  # it would go on with another one
            msg = (
                f"ONNX Runtime cannot start its {provider}, and says why above: a library is missing, most often CUDA, "
                "cuDNN or TensorRT of the version that it was built for, or there is no such GPU."
            )
            raise ValueError(msg)
        self._names = [output.name for output in self._session.get_outputs()]
        self._shape = self._session.get_inputs()[0].shape

    def prepare(self, images: np.ndarray) -> np.ndarray:
        """Bring images to the size that the graph takes, where it does not resize them.

        Raises:
            ValueError: They are of another size than the only one.
        """
        if self._size is not None and self._size != images.shape[2:]:
            images = resize(images, self._size)
        check_shape(images, self._shape)
        return images

    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[Outputs]:
        """Run batches one after the other."""
        for images in batches:
            yield dict(zip(self._names, self._session.run(self._names, {"input": images}), strict=True))


def provider_settings(device: str, precision: str | None, size: tuple[int, int] | None) -> list[Any]:
    """List the providers of a device, the one that is wanted first, with their settings.

    Args:
        device: ``CPU``, ``cuda`` or ``tensorrt``.
        precision: As :class:`OnnxRuntime` takes it.
        size: Height and width of the images that the graph takes.

    Raises:
        ValueError: TensorRT with a graph that resizes.
    """
    if device == "CPU":
        return [PROVIDERS["CPU"]]
    cuda = (PROVIDERS["cuda"], {"use_tf32": int(precision != "f32")})
    if device == "cuda":
        return [cuda]
    if size is None:
        msg = (
            "TensorRT takes images of one size, and resizes none as the model does: export with "
            "onnx_kwargs={'resize_outside': True}, which gives the same scores."
        )
        raise ValueError(msg)
    folder = cache_folder("tensorrt")  # building an engine takes minutes
    with keeping(folder):
        folder.mkdir(parents=True, exist_ok=True)
    shapes = {
        f"trt_profile_{name}_shapes": f"input:{images}x3x{size[0]}x{size[1]}" for name, images in TENSORRT_BATCH.items()
    }
    settings = {
        "trt_fp16_enable": precision == "f16",
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": str(folder),
        **shapes,
    }
    return [(PROVIDERS["tensorrt"], settings), cuda]


class Openvino:
    """An OpenVINO model; what a device compiles is kept in the cache folder, so that the next start is fast."""

    def __init__(self, path: Path, device: str, settings: dict[str, Any]) -> None:
        self._openvino = require("openvino", "openvino", path)
        self._core = the_core()
        self._mapped: mmap.mmap | None = None  # the weights, which the model reads from there as long as it lives
        self._copying = False
        self._model = self._compile(path, device, settings) if device != "CPU" else self._load(path, settings)
        image = self._model.input(0)
        self._shape = [side.get_length() if side.is_static else None for side in image.partial_shape]
        self._size: Any = tuple(self._shape[2:]) if RESIZED in image.names else None
        self._count = self._model.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        self._idle = deque[Any]()

    def prepare(self, images: np.ndarray) -> np.ndarray:
        """Bring images to the size that the graph begins with; those that have it stay as they are.

        Raises:
            ValueError: The model was exported for another size.
        """
        if self._size is not None and self._size != images.shape[2:]:
            images = resize(images, self._size)
        check_shape(images, self._shape)
        return images

    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[Outputs]:
        """Run batches, as many side by side as the device likes; several streams may be read at a time."""
        running = deque[Any]()
        source, failed = iter(batches), None
        try:
            while True:
                try:
                    images = next(source)
                except StopIteration:
                    break
                except Exception as error:  # raised when what is at work is done
                    failed = error
                    break
                done = None
                if len(running) == self._count:
                    done = self._outputs(running[0])
                    self._idle.append(running.popleft())
                # appending and popping a deque needs no lock: a request belongs to one stream at a time
                running.append(self._idle.popleft() if self._idle else self._model.create_infer_request())
                try:
                    running[-1].start_async({"input": images})
                finally:
                    # Only now, so that the device has work while the result is used; also if this batch fails.
                    if done is not None:
                        yield done
            while running:
                yield self._outputs(running[0])
                self._idle.append(running.popleft())
            if failed is not None:
                raise failed
        finally:
            # Whoever stops reading, or fails, leaves requests at work.
            for request in running:
                with suppress(RuntimeError):
                    request.wait()
                    self._idle.append(request)

    def _outputs(self, request: Any) -> Outputs:
        # OpenVINO copies the weights into its own order while it works on the first image. Those that it has read are
        # given back meanwhile: they would be counted to the memory of this process a second time.
        while self._copying and not request.wait_for(POLL):
            self._give_back()
        self._copying = False
        request.wait()
        # copied, because the request will write its next results over these
        return {output.any_name: request.get_tensor(output).data.copy() for output in request.model_outputs}

    def _compile(self, path: Path, device: str, settings: dict[str, Any]) -> Any:
        """Compile for a device that OpenVINO keeps a cache for."""
        folder = cache_folder("openvino")
        with keeping(folder):
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()  # OpenVINO would stop, and not say why
            settings = {**settings, "CACHE_DIR": str(folder)}
        # Read first: then the cache goes by what is in the file, which moving a threshold changes, not by its name.
        return self._core.compile_model(self._read(path), device, settings)

    def _load(self, path: Path, settings: dict[str, Any]) -> Any:
        """Compile, or map into memory what was compiled before.

        OpenVINO's own cache would read the model as well, to see whether it is the same.
        """
        weights = path.with_suffix(".bin").stat()
        # The time of the last change of anything tells files apart whose other times were set alike.
        times = (weights.st_mtime_ns, weights.st_ctime_ns)
        made_of = (path.resolve(), weights.st_size, *times, settings.get("INFERENCE_PRECISION_HINT"))
        made_by = (__version__, self._openvino.__version__, self._core.get_property("CPU", "FULL_DEVICE_NAME"))
        text = path.read_bytes() + repr(made_of + made_by).encode()
        digest = hashlib.blake2b(text, digest_size=16).hexdigest()
        kept = cache_folder("openvino") / f"{digest}.compiled"
        if kept.is_file():
            with suppress(RuntimeError):
                return self._map(kept, settings)
        model = self._core.compile_model(self._read(path), "CPU", settings)
        with keeping(kept.parent):
            kept.parent.mkdir(parents=True, exist_ok=True)
            new = kept.with_suffix(f".{os.getpid()}-{get_ident()}")  # others may write the same one
            try:
                new.write_bytes(model.export_model().getbuffer())
                new.replace(kept)
            finally:
                new.unlink(missing_ok=True)
        return model

    def _map(self, kept: Path, settings: dict[str, Any]) -> Any:
        with kept.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # OpenVINO takes no arrays that are read-only
        tensor = self._openvino.Tensor(np.frombuffer(mapped, dtype=np.uint8), shared_memory=True)
        model = self._core.import_model(tensor, "CPU", settings)
        self._mapped, self._copying = mapped, True
        self._give_back()
        return model

    def _give_back(self) -> None:
        """Let go of what has been read of the kept file; what is needed again is read again."""
        if self._mapped is not None and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            self._mapped.madvise(mmap.MADV_DONTNEED)

    def _read(self, path: Path) -> Any:
        """Read the model and take the resizing of the image off its beginning, for :meth:`prepare` does it.

        On a CPU, OpenVINO takes a second and 90 MB for each new size of an image.
        """
        try:
            model = self._core.read_model(path)
        except RuntimeError as error:
            raise unreadable(path, error) from error
        (image,) = model.inputs
        if image.partial_shape[2].is_static:  # exported for images of one size: others are refused
            return model
        for node in model.get_ops():
            if node.get_type_name() == "Interpolate" and node.get_attributes()["mode"] == "bilinear_pillow":
                before = node.input_value(0)
                while before.get_node().get_type_name() == "Reshape":
                    before = before.get_node().input_value(0)
                if before == image and len(image.get_target_inputs()) == 1:
                    resized = self._openvino.opset13.parameter(node.get_output_partial_shape(0), np.float32)
                    resized.output(0).set_names({"input", RESIZED})
                    for reader in node.output(0).get_target_inputs():
                        reader.replace_source_output(resized.output(0))
                    return self._openvino.Model(model.get_results(), [resized], model.get_name())
        return model


@cache
def the_core() -> Any:
    """Make OpenVINO's ``Core``, one for as long as the process lives.

    Its CPU plugin gives the thread that loads it a stack for signals, and takes the memory back in whichever thread the
    last ``Core`` goes: the next signal would then end the process.
    """
    return import_module("openvino").Core()


@contextmanager
def keeping(folder: Path) -> Iterator[None]:
    """Keep something in a folder; where it takes no files, say so and go on without."""
    try:
        yield
    except OSError as error:
        warnings.warn(
            f"What was compiled cannot be kept in {folder}: {error.strerror}. The next start takes as long. "
            f"{VARIABLE} in the environment names another folder.",
            stacklevel=2,
        )


def check_shape(images: np.ndarray, shape: Sequence[Any]) -> None:
    """Compare a batch with the shape ``(B, C, H, W)`` that a graph takes; what is no number there is free.

    Raises:
        ValueError: They differ.
    """
    if any(isinstance(side, int) and side != given for side, given in zip(shape, images.shape, strict=True)):
        sides = " x ".join(str(side) if isinstance(side, int) else "any" for side in shape)
        msg = (
            f"This model was exported for images of one size: a batch of {sides} (images, channels, height, width), "
            f"got {' x '.join(map(str, images.shape))}. Resize the images, or export without input_size."
        )
        raise ValueError(msg)


def require(module: str, extra: str, path: Path) -> Any:
    """Import the package that reads a model, or say how to install it."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        msg = f"{path.name} needs pip install 'anomalib-inp[{extra}]'."
        raise ModuleNotFoundError(msg, name=module) from error
