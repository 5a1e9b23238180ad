# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Thresholds and normalised scores, with and without anomalous validation images."""

import math
from typing import Any

import torch
from anomalib.data import Batch, InferenceBatch
from anomalib.post_processing import PostProcessor
from lightning import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torchmetrics import CatMetric

# A map is upsampled from patches and blurred: every fourth pixel in each direction holds what all hold.
PIXEL_STRIDE = 4


class InpPostProcessor(PostProcessor):
    """Chooses thresholds on the validation images and normalises scores around them.

    With anomalous images among the validation images, thresholds maximise F1, as in anomalib. Without any, which is
    usual on a production line, they are a quantile of the normal images' scores. The log says which it was, and warns
    when the validation images are the test images.

    A normalised score lies between 0 and 1, and 0.5 is the threshold. anomalib's is a straight line, clamped: all
    clearly anomalous images score 1.0, and their order is lost. Ours is ``(1 + m / sqrt(1 + m^2)) / 2`` of the margin
    ``m = (raw - threshold) / span``, which never clamps, so that raw scores can be had back from it. ``span`` is chosen
    so that the validation scores lie within ``m = -2`` (0.05) and ``m = 2`` (0.95). Normal images alone do not show how
    high anomalous scores go; then the lowest of them gives the span. Predictions keep the raw values as ``raw_score``
    and ``raw_map`` as well.

    Args:
        normal_image_quantile: Without anomalous validation images: this quantile of the normal images' scores is the
            image threshold.
        normal_pixel_quantile: Without anomalous validation images: this quantile of the pixels of the normal images'
            maps is the pixel threshold.
        enable_normalization: Normalise scores and maps; ``False`` leaves them raw. Labels and masks are the same.
        image_sensitivity: A normalised score above ``1 - image_sensitivity`` counts as anomalous; more than 0.5 finds
            more.
        pixel_sensitivity: The same for pixels.

    Raises:
        ValueError: A quantile or sensitivity outside [0, 1].
    """

    def __init__(
        self,
        normal_image_quantile: float = 0.99,
        normal_pixel_quantile: float = 0.9995,
        enable_normalization: bool = True,
        image_sensitivity: float = 0.5,
        pixel_sensitivity: float = 0.5,
    ) -> None:
        fractions = {
            "normal_image_quantile": normal_image_quantile,
            "normal_pixel_quantile": normal_pixel_quantile,
            "image_sensitivity": image_sensitivity,
            "pixel_sensitivity": pixel_sensitivity,
        }
        for name, value in fractions.items():
            if not 0 <= value <= 1:
                msg = f"{name} must lie in [0, 1], got {value}."
                raise ValueError(msg)
        super().__init__(
            enable_normalization=enable_normalization,
            image_sensitivity=image_sensitivity,
            pixel_sensitivity=pixel_sensitivity,
        )
        self.normal_image_quantile = normal_image_quantile
        self.normal_pixel_quantile = normal_pixel_quantile
        self._normal_scores = CatMetric(nan_strategy="error")
        self._normal_pixels = CatMetric(nan_strategy="error")
        self._anomalous_images = 0
        self._source = ""

    @property
    def _checkpoint_config_keys(self) -> tuple[str, ...]:
        return (*super()._checkpoint_config_keys, "normal_image_quantile", "normal_pixel_quantile")

    def set_thresholds(self, image: float | None = None, pixel: float | None = None) -> None:
        """Set thresholds by hand, in raw scores.

        ``None`` leaves a threshold as it is; where there was none, it takes the value of the other one.

        Raises:
            ValueError: A threshold is not a finite number.
        """
        for name, value in (("image", image), ("pixel", pixel)):
            if value is None:
                continue
            if not math.isfinite(value):
                msg = f"The {name} threshold must be a finite raw score, got {value}."
                raise ValueError(msg)
            getattr(self, f"_{name}_threshold").fill_(value)
        self._image_threshold.copy_(self.image_threshold)
        self._pixel_threshold.copy_(self.pixel_threshold)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Batch, *args: Any, **kwargs: Any
    ) -> None:
        """Collect the raw scores and maps of a batch."""
        super().on_validation_batch_end(trainer, pl_module, outputs, *args, **kwargs)
        if not self.enable_normalization:
            # The range says how far a sensitivity moves the threshold, in raw scores too.
            self._image_min_max_metric.update(outputs)
            self._pixel_min_max_metric.update(outputs)
        labels = outputs.gt_label if outputs.gt_label is not None else torch.zeros_like(outputs.pred_score)
        normal = labels == 0
        self._anomalous_images += int((~normal).sum())
        if normal.any():
            self._normal_scores.update(outputs.pred_score[normal])
            self._normal_pixels.update(outputs.anomaly_map[normal][..., ::PIXEL_STRIDE, ::PIXEL_STRIDE])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the thresholds."""
        counted = torch.tensor(self._anomalous_images, device=pl_module.device)
        anomalous = int(trainer.strategy.reduce(counted, reduce_op="sum"))
        if anomalous:
            masks = self._pixel_threshold_metric.update_called
            if not self.enable_normalization:
                self._set_ranges()
            super().on_validation_epoch_end(trainer, pl_module)
            if not masks:
                # Images without masks tell nothing of pixels; a score is a mean of pixels, so its threshold fits them.
                self._pixel_threshold.copy_(self._image_threshold)
        elif self._normal_scores.update_called:
            self._set_from_normal("image", self._normal_scores.compute(), self.normal_image_quantile)
            self._set_from_normal("pixel", self._normal_pixels.compute(), self.normal_pixel_quantile)
        for metric in self.children():
            metric.reset()
        self._anomalous_images = 0
        self._source = f"best F1 over {anomalous} anomalous and the normal validation images"
        if not anomalous:
            self._source = (
                f"no anomalous validation images: quantile {self.normal_image_quantile} of the normal images' scores, "
                f"{self.normal_pixel_quantile} of their pixels"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn early where thresholds will be missing or too good."""
        del pl_module
        if not trainer.enable_validation:
            rank_zero_warn(
                "There are no validation images, so there will be no thresholds, labels and masks. Choose some, for "
                "example with --data.val_split_mode from_train, or set thresholds by hand after training."
            )
        _warn_if_validation_is_test(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn where thresholds will be too good; during training this has been said."""
        del pl_module
        if trainer.state.fn == TrainerFn.VALIDATING:
            _warn_if_validation_is_test(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say which thresholds a validation alone has chosen."""
        del pl_module
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._say_thresholds()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say which thresholds the training ends with."""
        del trainer, pl_module
        if self._source:
            self._say_thresholds()

    def post_process_batch(self, batch: Batch) -> None:
        """Keep the raw values of a batch as ``raw_score`` and ``raw_map``, then normalise it and add labels and masks.

        Without thresholds the values stay raw and there are no labels and masks.
        """
        batch.raw_score, batch.raw_map = batch.pred_score, batch.anomaly_map
        if torch.isnan(self.image_threshold):
            rank_zero_warn(
                "There are no thresholds: scores stay raw, labels and masks are missing. Set them by hand: "
                "anomalib-inp threshold CHECKPOINT, or model.post_processor.set_thresholds."
            )
            return
        batch.update(**self(InferenceBatch(pred_score=batch.raw_score, anomaly_map=batch.raw_map))._asdict())

    def forward(self, predictions: InferenceBatch) -> InferenceBatch:
        """Post-process raw scores ``(B,)`` and maps ``(B, 1, h, w)``; without thresholds they pass unchanged."""
        score, label = self._read(predictions.pred_score, "image")
        pixels, mask = self._read(predictions.anomaly_map, "pixel")
        return InferenceBatch(pred_score=score, pred_label=label, anomaly_map=pixels, pred_mask=mask)

    def threshold_and_span(self, kind: str) -> tuple[Tensor, Tensor]:
        """Threshold and span of raw scores (``kind="image"``) or map values (``"pixel"``); an unknown span is 1."""
        threshold, low, high = (
            getattr(self, f"_{kind}_threshold"),
            getattr(self, f"{kind}_min"),
            getattr(self, f"{kind}_max"),
        )
        reach = torch.maximum(high - threshold, threshold - low) / 2
        return threshold, torch.where(reach > 0, reach, torch.ones_like(reach))

    def _read(self, raw: Tensor, kind: str) -> tuple[Tensor, Tensor]:
        """Normalise raw values and compare them with the threshold."""
        threshold, span = self.threshold_and_span(kind)
        missing = torch.isnan(threshold)
        # Nothing exceeds infinity; whether something exceeds NaN is not the same in all runtimes.
        margin = (raw - torch.where(missing, torch.full_like(threshold, math.inf), threshold)) / span
        labels = margin > margin_of(1 - getattr(self, f"{kind}_sensitivity"))
        if not self.enable_normalization:
            return raw, labels
        return torch.where(missing, raw, (1 + margin / (1 + margin**2).sqrt()) / 2), labels

    def _set_ranges(self) -> None:
        for kind in ("image", "pixel"):
            low, high = getattr(self, f"_{kind}_min_max_metric").compute()
            getattr(self, f"{kind}_min").copy_(low)
            getattr(self, f"{kind}_max").copy_(high)

    def _set_from_normal(self, name: str, values: Tensor, share: float) -> None:
        threshold, lowest = quantile(values, share), values.min()
        getattr(self, f"_{name}_threshold").copy_(threshold)
        getattr(self, f"{name}_min").copy_(lowest)
        getattr(self, f"{name}_max").copy_(2 * threshold - lowest)

    def _say_thresholds(self) -> None:
        rank_zero_info(
            f"Thresholds (raw): image {self.image_threshold:.4f}, pixel {self.pixel_threshold:.4f}; {self._source}."
        )


def margin_of(normalized: float) -> float:
    """Margin of a normalised score: the inverse of ``(1 + m / sqrt(1 + m^2)) / 2``."""
    t = 2 * normalized - 1
    return t / math.sqrt(1 - t * t) if abs(t) < 1 else math.copysign(math.inf, t)


def quantile(values: Tensor, share: float) -> Tensor:
    """Smallest of the values that at least this share of them does not exceed.

    torch's own quantile refuses more than 16 million values.
    """
    return values.flatten().kthvalue(max(1, math.ceil(share * values.numel()))).values


def _warn_if_validation_is_test(trainer: Trainer) -> None:
    val_data, test_data = (getattr(trainer.datamodule, name, None) for name in ("val_data", "test_data"))
    if val_data is None or test_data is None:
        return
    shared = set(val_data.samples.image_path) & set(test_data.samples.image_path)
    if shared:
        rank_zero_warn(
            f"{len(shared)} of the {len(test_data)} test images are validation images too, so the thresholds are "
            "chosen on test data and labels and masks look better than they will be in use. AUROC, AP and AUPRO are "
            "not affected. For honest thresholds: --data.val_split_mode from_train (normal images only) or from_test."
        )
