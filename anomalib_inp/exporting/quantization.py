# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""INT8: post-training quantisation of an OpenVINO model by NNCF, without and with a watch on the accuracy.

What is quantised are the linear layers that see a thousand tokens, most of the work. All else stays as it is: preparing
the image, attention, and the cosines of nearly parallel vectors, whose small differences are the score.
"""

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from anomalib.data import AnomalibDataModule, ImageBatch, ImageItem
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning_utilities.core.imports import module_available
from torchmetrics import Metric

if TYPE_CHECKING:
    import openvino

CALIBRATION_IMAGES = 300
"""More images than this do not change the ranges."""
SMOOTHING = 0.5
"""Share of a layer's outliers that SmoothQuant moves from the activations into the weights. NNCF's 0.95 costs a Vision
Transformer's weights more than the activations gain: with it, the error of maps was three times as large."""
LINEAR = r"\b.*\.(qkv|proj|q|fc1|fc2)/aten::linear/MatMul"
"""Names of the products of linear layers in an export, behind that of the part that they belong to."""


def quantize(model: "openvino.Model", images: Sequence[np.ndarray], parts: Sequence[str]) -> "openvino.Model":
    """Quantise a model to INT8.

    Args:
        model: An export of ours (``deploy.to_openvino``).
        images: Normal images ``(1, 3, H, W)``, float32 in [0, 1], of any size, that show what the model will see; 300
            are enough.
        parts: Parts of the network whose linear layers are quantised (``EncoderModel.quantised``).

    Raises:
        ModuleNotFoundError: NNCF is not installed.
    """
    nncf = _nncf()
    return nncf.quantize(
        model, nncf.Dataset(images), advanced_parameters=_advanced(nncf), **_settings(nncf, model, images, parts)
    )


def quantize_with_accuracy(
    model: "openvino.Model",
    images: Sequence[np.ndarray],
    parts: Sequence[str],
    validation: Sequence[ImageItem],
    metric: Metric,
    max_drop: float = 0.01,
) -> "openvino.Model":
    """Quantise a model to INT8, and take layers back to full precision until the metric has not dropped too far.

    Args:
        model: An export of ours (``deploy.to_openvino``).
        images: Images to calibrate with, as for :func:`quantize`.
        parts: Parts of the network, likewise.
        validation: Normal and anomalous images to measure on.
        metric: A metric of anomalib; higher is better.
        max_drop: How far it may drop, absolutely: 0.01 is one point of AUROC.

    Raises:
        ModuleNotFoundError: NNCF is not installed.
    """
    nncf = _nncf()

    def measure(compiled: Any, items: Iterable[ImageItem]) -> tuple[float, None]:
        metric.reset()
        for item in items:
            metric.update(_predicted(compiled, item))
        return float(metric.compute()), None

    return nncf.quantize_with_accuracy_control(
        model,
        nncf.Dataset(images),
        nncf.Dataset(validation),
        measure,
        max_drop=max_drop,
        advanced_quantization_parameters=_advanced(nncf),
        **_settings(nncf, model, images, parts),
    )


def calibration_images(
    datamodule: AnomalibDataModule | None, part: Callable[[np.ndarray, int], np.ndarray] = lambda image, _: image
) -> list[np.ndarray]:
    """Read up to 300 of a data module's training images, spread evenly; training images are normal.

    Args:
        datamodule: The data module.
        part: What is kept of an image ``(1, 3, H, W)``, by its number in the list.

    Raises:
        ModuleNotFoundError: NNCF, which they are for, is not installed.
        ValueError: There is no data module.
    """
    _nncf()
    if datamodule is None:
        msg = (
            "INT8 needs normal images to find the range of every layer: give the training's data, "
            "anomalib export ... --data MVTecAD --data.root DIR --data.category NAME, or datamodule=..."
        )
        raise ValueError(msg)
    datamodule.setup("fit")
    images = datamodule.train_data
    chosen = np.linspace(0, len(images) - 1, min(len(images), CALIBRATION_IMAGES)).round().astype(int)
    if len(chosen) < 30:
        rank_zero_warn(f"Only {len(chosen)} images to calibrate with: 100 to 300 give more reliable ranges.")
    return [part(images[int(index)].image.unsqueeze(0).numpy(), place) for place, index in enumerate(chosen)]


def validation_items(datamodule: AnomalibDataModule) -> list[ImageItem]:
    """Read the validation images of a data module that has been set up.

    Raises:
        ValueError: They are all normal or all anomalous.
    """
    images = getattr(datamodule, "val_data", [])
    validation = [images[index] for index in range(len(images))]
    labels = {bool(item.gt_label) for item in validation}
    if labels != {False, True}:
        found = "none" if not labels else "anomalous ones" if labels == {True} else "normal ones"
        msg = (
            f"Watching the accuracy needs normal and anomalous validation images, got {found} only. Choose some with "
            "--data.val_split_mode from_test, or quantise without the watch: --compression_type INT8_PTQ."
        )
        raise ValueError(msg)
    return validation


def _predicted(compiled: Any, item: ImageItem) -> ImageBatch:
    """Predict one image, as metrics take it."""
    results = compiled(item.image.unsqueeze(0).numpy())
    outputs = {output.any_name: torch.from_numpy(value) for output, value in results.items()}
    mask = None if item.gt_mask is None else item.gt_mask.unsqueeze(0)
    batch = ImageBatch(
        image=item.image.unsqueeze(0),
        gt_label=torch.as_tensor(item.gt_label).reshape(1),
        gt_mask=mask,
        pred_score=outputs["pred_score"],
        pred_label=outputs["pred_label"],
    )
    batch.raw_score = batch.pred_score
    return batch


def _settings(nncf: Any, model: "openvino.Model", images: Sequence[np.ndarray], parts: Sequence[str]) -> dict[str, Any]:
    quantised = re.compile(f"({'|'.join(map(re.escape, parts))}){LINEAR}")
    names = [operation.get_friendly_name() for operation in model.get_ops()]
    left_out = [name for name in names if not quantised.search(name)]
    rank_zero_info(f"INT8: {len(names) - len(left_out)} linear layers are quantised; all else keeps its precision.")
    return {
        "model_type": nncf.ModelType.TRANSFORMER,
        "subset_size": len(images),
        # names that NNCF does not see, such as those of constants, are no mistake
        "ignored_scope": nncf.IgnoredScope(names=left_out, validate=False),
    }


def _advanced(nncf: Any) -> Any:
    return nncf.AdvancedQuantizationParameters(smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=SMOOTHING))


def _nncf() -> Any:
    if not module_available("nncf"):
        msg = "INT8 needs the package nncf: pip install 'anomalib-inp[export]'."
        raise ModuleNotFoundError(msg, name="nncf")
    import nncf

    nncf.set_log_level(logging.WARNING)  # it would tell of every operation that it leaves alone
    return nncf
