# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""anomalib's export methods, for models whose exports must score an image as the model does."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalib.data import AnomalibDataModule
from anomalib.deploy import CompressionType, ExportType
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torchmetrics import Metric

from anomalib_inp.evaluation.metrics import AUROC
from anomalib_inp.exporting import convert, quantization
from anomalib_inp.runtime.metadata import Metadata

if TYPE_CHECKING:
    from anomalib.models.components.base.export_mixin import ExportMixin
else:  # a model brings it along; importing anomalib.models from here would import our models, which need this module
    ExportMixin = object


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Keep loggers from saying anything but errors: of a graph, they name every constant that they fold."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class InpExport(ExportMixin):
    """Exports to ONNX with antialiasing and to OpenVINO from the PyTorch module; to PyTorch as anomalib does."""

    def to_torch(self, export_root: Path | str, model_file_name: str = "model") -> Path:
        """Export to a pickle of the module, as anomalib does, with nothing in it left to train.

        anomalib's ``TorchInferencer`` runs it outside ``no_grad``, so its results would carry a graph.
        """
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        try:
            self.requires_grad_(False)
            return super().to_torch(export_root, model_file_name)
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)

    def to_onnx(
        self,
        export_root: Path | str,
        model_file_name: str = "model",
        *args: Any,
        half: bool = False,
        resize_outside: bool = False,
        **kwargs: Any,
    ) -> Path:
        """Export to one ONNX file that carries our metadata; arguments as in anomalib.

        Of a model that sees tiles, it takes tiles, and ``ExportedModel`` cuts images of any size; with ``input_size``,
        it takes images of that size.

        Args:
            export_root: Folder for the export.
            model_file_name: Name of the file, without its suffix.
            *args: As anomalib takes them.
            half: Whether what multiplies matrices computes in 16 bits, and weights take half the room; distances and
                what is normalised by lengths stay in 32.
            resize_outside: Whether ``ExportedModel`` resizes images, and the graph takes them as they are then: for
                TensorRT, which resizes without antialiasing.
            **kwargs: As anomalib takes them.

        Raises:
            ValueError: The model has another post-processor than ours, or ``input_size`` is given beside
                ``resize_outside``.
        """
        if resize_outside and not self.tiles:
            if args or kwargs.get("input_size") is not None:
                msg = "With resize_outside, images of any size are taken, and resized before: leave input_size out."
                raise ValueError(msg)
            kwargs["input_size"] = self.pre_processor.image_size
        metadata = convert.metadata_of(self, args[0] if args else kwargs.get("input_size"))
        if resize_outside and metadata.tiling is None:
            metadata = metadata._replace(resized=kwargs["input_size"])
        self._say_what_is_exported(metadata)
        if metadata.tiling is not None:
            folder = Path(export_root) / "weights" / ExportType.ONNX.value
            with _quiet("onnxscript", "onnx_ir", "torch.onnx"):
                return convert.tile_to_onnx(self, folder / f"{model_file_name}.onnx", metadata, half)
        options = {"opset_version": convert.OPSET, "external_data": False, "verbose": False, **kwargs}
        with _quiet("onnxscript", "onnx_ir", "torch.onnx"), convert.counting_everywhere(self):
            path = super().to_onnx(export_root, model_file_name, *args, **options)
        convert.finish_onnx(path, metadata, half)
        return path

    def to_openvino(
        self,
        export_root: Path | str,
        model_file_name: str = "model",
        input_size: tuple[int, int] | None = None,
        compression_type: CompressionType | str | None = None,
        datamodule: AnomalibDataModule | None = None,
        metric: Metric | None = None,
        max_drop: float = 0.01,
        ov_kwargs: dict[str, Any] | None = None,
        **_: Any,
    ) -> Path:
        """Export to OpenVINO from the PyTorch module; arguments as in anomalib, those of ONNX have no use here.

        Of a model that sees tiles, it takes tiles, and ``ExportedModel`` cuts images of any size; with ``input_size``,
        it takes images of that size.

        ``INT8_PTQ`` calibrates with the training images of ``datamodule``; ``INT8_ACQ`` also watches ``metric``, by
        default the image AUROC of its validation images.

        Raises:
            ModuleNotFoundError: A package for the export is not installed.
            ValueError: INT8 without a data module, a watch on images of one class or on a graph of tiles, or another
                post-processor than ours.
        """
        metadata = convert.metadata_of(self, input_size)
        compression_type = None if compression_type is None else CompressionType(compression_type)
        calibrated = compression_type in {CompressionType.INT8_PTQ, CompressionType.INT8_ACQ}
        if metadata.tiling is not None and compression_type == CompressionType.INT8_ACQ:
            msg = "A graph of tiles scores no image that could be watched: give --input_size, or take INT8_PTQ."
            raise ValueError(msg)
        # First what may be missing, then what takes time.
        cut = {} if metadata.tiling is None else {"part": partial(convert.some_tile, self)}
        images = quantization.calibration_images(datamodule, **cut) if calibrated else []
        items = quantization.validation_items(datamodule) if compression_type == CompressionType.INT8_ACQ else []
        self._say_what_is_exported(metadata)
        model = convert.to_openvino(self, input_size, **(ov_kwargs or {}))
        if compression_type == CompressionType.INT8_PTQ:
            model = quantization.quantize(model, images, self.quantised)
        elif compression_type == CompressionType.INT8_ACQ:
            metric = metric or AUROC(fields=["raw_score", "gt_label"], prefix="image_")
            model = quantization.quantize_with_accuracy(model, images, self.quantised, items, metric, max_drop)
        elif compression_type == CompressionType.INT8:
            model = self._compress_ov_model(model, compression_type)
        folder = Path(export_root) / "weights" / ExportType.OPENVINO.value
        return convert.save_openvino(model, folder / f"{model_file_name}.xml", half=compression_type is not None)

    def _say_what_is_exported(self, metadata: Metadata) -> None:
        if self.post_processor is None:
            rank_zero_info(f"Exporting the map {self.model.map}, raw: the model has no post-processor.")
            return
        category = self.post_processor.category
        whose = f"the thresholds of {category}" if category else "the common thresholds"
        rank_zero_info(f"Exporting the map {self.model.map}, read by {whose}.")
        if math.isnan(metadata.image.threshold):
            rank_zero_warn(
                "The model has no thresholds: the export gives raw scores, and labels and masks are always normal. "
                "Set them by hand: anomalib-inp threshold CHECKPOINT, or model.post_processor.set_thresholds."
            )
