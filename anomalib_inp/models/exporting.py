# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""anomalib's export methods, for models whose exports must score an image as the model does."""

from pathlib import Path
from typing import Any

from anomalib.data import AnomalibDataModule
from anomalib.deploy import CompressionType, ExportType
from anomalib.models.components.base.export_mixin import ExportMixin
from lightning.pytorch.utilities import rank_zero_warn
from torchmetrics import Metric

from anomalib_inp import deploy


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

    def to_onnx(self, export_root: Path | str, model_file_name: str = "model", *args: Any, **kwargs: Any) -> Path:
        """Export to one ONNX file that carries our metadata; arguments as in anomalib."""
        self._warn_without_thresholds()
        options = {"opset_version": deploy.OPSET, "external_data": False, "verbose": False, **kwargs}
        path = super().to_onnx(export_root, model_file_name, *args, **options)
        deploy.annotate_onnx(path, deploy.Metadata.of(self))
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
        """Export to OpenVINO from the PyTorch module; arguments as in anomalib, those of ONNX have no use here."""
        compression_type = None if compression_type is None else CompressionType(compression_type)
        self._warn_without_thresholds()
        model = deploy.to_openvino(self, input_size, **(ov_kwargs or {}))
        if compression_type not in {None, CompressionType.FP16}:
            model = self._compress_ov_model(model, compression_type, datamodule, metric, None, max_drop)
        import openvino

        folder = Path(export_root) / "weights" / ExportType.OPENVINO.value
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{model_file_name}.xml"
        openvino.save_model(model, path, compress_to_fp16=compression_type == CompressionType.FP16)
        return path

    def _warn_without_thresholds(self) -> None:
        if self.post_processor is not None and self.post_processor.image_threshold.isnan():
            rank_zero_warn(
                "The model has no thresholds: the export gives raw scores, and labels and masks are always normal. "
                "Set them by hand: anomalib-inp threshold CHECKPOINT, or model.post_processor.set_thresholds."
            )
