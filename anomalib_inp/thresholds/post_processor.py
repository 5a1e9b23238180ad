# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Thresholds and normalised scores, with and without anomalous validation images."""

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from anomalib.data import Batch, InferenceBatch
from anomalib.post_processing import PostProcessor
from lightning import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torchmetrics import CatMetric

from anomalib_inp.data.subset import Subset
from anomalib_inp.thresholds.choose import CategoryRanges, Range, quantile
from anomalib_inp.thresholds.scale import check_thresholds, margin_of

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

    Where the validation images are of several categories (``MultiCategory``), each category has thresholds and a
    normalisation of its own besides the common ones, since one threshold for all is wrong for most. An image whose
    category is known, because it comes from the data module, is read by those of its category; all others, and what an
    exported model sees, by those of ``category``, or else by the common ones.

    Several processes choose the thresholds of one: an image that Lightning hands out twice is counted once.

    Args:
        normal_image_quantile: Without anomalous validation images: this quantile of the normal images' scores is the
            image threshold.
        normal_pixel_quantile: Without anomalous validation images: this quantile of the pixels of the normal images'
            maps is the pixel threshold.
        enable_normalization: Normalise scores and maps; ``False`` leaves them raw. Labels and masks are the same.
        image_sensitivity: A normalised score above ``1 - image_sensitivity`` counts as anomalous; more than 0.5 finds
            more.
        pixel_sensitivity: The same for pixels.
        per_category: Choose thresholds for each category too; ``False`` leaves it at the common ones.
        category: The category whose thresholds read images of no known category, and go into exports.

    Attributes:
        ranges: By category: threshold, lowest and highest validation value of scores, and the same of pixels.

    Raises:
        ValueError: A quantile or sensitivity outside [0, 1]; a category without thresholds of its own.
    """

    def __init__(
        self,
        normal_image_quantile: float = 0.99,
        normal_pixel_quantile: float = 0.9995,
        enable_normalization: bool = True,
        image_sensitivity: float = 0.5,
        pixel_sensitivity: float = 0.5,
        per_category: bool = True,
        category: str | None = None,
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
        if category is not None and not per_category:
            msg = f"category={category} asks for thresholds of its own, which per_category=False says there are not."
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
        self.per_category = per_category
        self.category = category
        self.ranges: dict[str, tuple[Range, Range]] = {}
        self._subset = Subset()
        self._category_ranges: CategoryRanges | None = None

    @property
    def _checkpoint_config_keys(self) -> tuple[str, ...]:
        return (*super()._checkpoint_config_keys, "normal_image_quantile", "normal_pixel_quantile", "per_category")

    def checkpoint_config(self) -> dict[str, Any]:
        """Describe this post-processor in plain data, with the thresholds of the categories."""
        ranges = {name: [list(image), list(pixel)] for name, (image, pixel) in self.ranges.items()}
        return {**super().checkpoint_config(), "category": self.category, "ranges": ranges}

    def load_checkpoint_config(self, config: dict[str, Any]) -> None:
        """Restore what ``checkpoint_config`` described; a category that was chosen for this model stays chosen."""
        super().load_checkpoint_config(config)
        self.category = self.category or config.get("category")
        ranges = config.get("ranges", {})
        self.ranges = {name: (Range(*image), Range(*pixel)) for name, (image, pixel) in ranges.items()}

    def set_thresholds(
        self, image: float | None = None, pixel: float | None = None, category: str | None = None
    ) -> None:
        """Set thresholds by hand, in raw scores: those of a category, or the common ones.

        ``None`` leaves a threshold as it is; where there was none, it takes the value of the other one.

        Raises:
            ValueError: A threshold is not a finite number, or the category is unknown.
        """
        check_thresholds(image, pixel)
        if category is not None:
            ranges = self._ranges_of(category)
            given = zip(ranges, (image, pixel), strict=True)
            first, second = (old if new is None else old._replace(threshold=float(new)) for old, new in given)
            self.ranges[category] = (first, second)
            return
        for name, value in (("image", image), ("pixel", pixel)):
            if value is not None:
                getattr(self, f"_{name}_threshold").fill_(value)
        self._image_threshold.copy_(self.image_threshold)
        self._pixel_threshold.copy_(self.pixel_threshold)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Batch, *args: Any, **kwargs: Any
    ) -> None:
        """Collect the raw scores and maps of a batch."""
        outputs = self._counted(outputs)
        if not len(outputs.pred_score):
            return
        counted = self._collect_by_category(outputs)
        super().on_validation_batch_end(trainer, pl_module, counted, *args, **kwargs)
        if not self.enable_normalization:
            # The range says how far a sensitivity moves the threshold, in raw scores too.
            self._image_min_max_metric.update(counted)
            self._pixel_min_max_metric.update(counted)
        labels = outputs.gt_label if outputs.gt_label is not None else torch.zeros_like(outputs.pred_score)
        normal = labels == 0
        self._anomalous_images += int((~normal).sum())
        if normal.any():
            self._normal_scores.update(outputs.pred_score[normal])
            self._normal_pixels.update(outputs.anomaly_map[normal][..., ::PIXEL_STRIDE, ::PIXEL_STRIDE])

    def _counted(self, outputs: Batch) -> Any:
        """Take of a batch what this process counts, with the places of the categories and what is masked."""
        belongs, device = self._subset.attach(outputs), outputs.pred_score.device
        counted = belongs.counted.to(device)
        if len(self._subset) < self._subset.world_size:  # a process without any image would not take part in choosing
            counted = torch.ones_like(counted)
        values = {name: getattr(outputs, name) for name in ("pred_score", "gt_label", "anomaly_map", "gt_mask")}
        values |= {"categories": belongs.indices.to(device), "masked": belongs.masked.to(device)}
        return SimpleNamespace(**{name: None if value is None else value[counted] for name, value in values.items()})

    def _collect_by_category(self, outputs: Any) -> Any:
        """Collect a batch for the thresholds of the categories; returns what of it counts for the common ones."""
        categories, masked = outputs.categories, outputs.masked
        labels = torch.zeros_like(categories) if outputs.gt_label is None else outputs.gt_label
        maps, masks = outputs.anomaly_map, outputs.gt_mask
        for chosen, truth in ((masked, masks), (~masked, None)):
            if self._category_ranges is not None and chosen.any():
                values = (outputs.pred_score[chosen], labels[chosen], maps[chosen])
                self._category_ranges.update(*values, None if truth is None else truth[chosen], categories[chosen])
        if masked.all() or masks is None:
            return outputs
        # What has no masks has been given empty ones, to share a batch with what has some.
        pixels = (maps[masked], masks[masked]) if masked.any() else (None, None)
        return SimpleNamespace(pred_score=outputs.pred_score, gt_label=labels, anomaly_map=pixels[0], gt_mask=pixels[1])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the thresholds."""
        if self._category_ranges is not None:
            found = zip(self._subset.names, self._category_ranges.compute(), strict=True)
            chosen = {name: ranges for name, ranges in found if ranges is not None}
            # Weights that have been trained since have no use for the ranges of other categories.
            self.ranges = chosen if trainer.state.fn == TrainerFn.FITTING else self.ranges | chosen
            self._category_ranges = None
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

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare for the categories of the validation images."""
        self._subset = Subset.from_trainer(trainer, "val")
        self._category_ranges = None
        if names := self._with_thresholds(self._subset):
            quantiles = (self.normal_image_quantile, self.normal_pixel_quantile)
            self._category_ranges = CategoryRanges(len(names), *quantiles).to(pl_module.device)

    def _with_thresholds(self, subset: Subset) -> list[str]:
        """Which categories a validation gives thresholds of their own: of several, or one of several anew."""
        names = subset.names if self.per_category else []
        return names if len(names) > 1 or self.ranges else []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn early where thresholds will be missing or too good.

        Raises:
            ValueError: There will be none of the category that was chosen.
        """
        del pl_module
        if not trainer.enable_validation:
            rank_zero_warn(
                "There are no validation images, so there will be no thresholds, labels and masks. Choose some, for "
                "example with --data.val_split_mode from_train, or set thresholds by hand after training."
            )
        else:
            self._check_category(trainer)
            _warn_if_validation_is_test(trainer)

    def _check_category(self, trainer: Trainer) -> None:
        """Refuse to wait for the thresholds of a category that is not among the validation images."""
        if self.category is None:
            return
        names = self._with_thresholds(Subset.from_trainer(trainer, "val"))
        kept = [] if trainer.state.fn == TrainerFn.FITTING else self.ranges
        if self.category not in {*names, *kept}:
            msg = (
                f"There will be no thresholds of the category {self.category!r}: the validation images are of "
                f"{', '.join(names) or 'one category, whose thresholds are the common ones: leave category out'}."
            )
            raise ValueError(msg)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn where thresholds will be too good; during training this has been said."""
        del pl_module
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._check_category(trainer)
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

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look up the categories of the test images."""
        del pl_module
        self._subset = Subset.from_trainer(trainer, "test")
        if self.ranges and (unknown := set(self._subset.names) - self.ranges.keys()):
            rank_zero_warn(
                f"There are no thresholds of {', '.join(sorted(unknown))}: labels and masks are by those of "
                f"{self.category or 'all categories together'} and mean little. Choose some: anomalib validate."
            )

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look up the categories: a data module predicts its test images."""
        self.on_test_start(trainer, pl_module)

    def post_process_batch(self, batch: Batch) -> None:
        """Keep the raw values of a batch as ``raw_score`` and ``raw_map``, then normalise it and add labels and masks.

        Without thresholds the values stay raw and there are no labels and masks.
        """
        batch.raw_score, batch.raw_map = batch.pred_score, batch.anomaly_map
        categories = [name or self.category for name in self._subset.attach(batch).names]
        if torch.isnan(self.image_threshold) and not self.ranges.keys() & set(categories):
            rank_zero_warn(
                "There are no thresholds: scores stay raw, labels and masks are missing. Set them by hand: "
                "anomalib-inp threshold CHECKPOINT, or model.post_processor.set_thresholds."
            )
            return
        score, label = self._read(batch.raw_score, "image", *self._scales("image", categories))
        scales = (scale.view(-1, *[1] * (batch.raw_map.ndim - 1)) for scale in self._scales("pixel", categories))
        pixels, mask = self._read(batch.raw_map, "pixel", *scales)
        batch.update(pred_score=score, pred_label=label, anomaly_map=pixels, pred_mask=mask)

    def forward(self, predictions: InferenceBatch) -> InferenceBatch:
        """Post-process raw scores ``(B,)`` and maps ``(B, 1, h, w)``; without thresholds they pass unchanged."""
        score, label = self._read(predictions.pred_score, "image", *self.threshold_and_span("image"))
        pixels, mask = self._read(predictions.anomaly_map, "pixel", *self.threshold_and_span("pixel"))
        return InferenceBatch(pred_score=score, pred_label=label, anomaly_map=pixels, pred_mask=mask)

    def threshold_and_span(self, kind: str, category: str | None = None) -> tuple[Tensor, Tensor]:
        """Threshold and span of raw scores (``kind="image"``) or map values (``"pixel"``); an unknown span is 1.

        Those of the category, or of the one that was chosen for images of no known category, or the common ones.

        Raises:
            ValueError: There are no thresholds of the category that was chosen.
        """
        common: Tensor = getattr(self, f"_{kind}_threshold")
        category = category if category in self.ranges else self.category
        if category is not None:
            chosen = self._ranges_of(category)[kind == "pixel"]
            return common.new_tensor(chosen.threshold), common.new_tensor(chosen.span)
        low, high = getattr(self, f"{kind}_min"), getattr(self, f"{kind}_max")
        reach = torch.maximum(high - common, common - low) / 2
        return common, torch.where(reach > 0, reach, torch.ones_like(reach))

    def _scales(self, kind: str, categories: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        """Thresholds ``(B,)`` and spans ``(B,)`` of the images of these categories."""
        known = {category: self.threshold_and_span(kind, category) for category in set(categories)}
        thresholds, spans = zip(*(known[category] for category in categories), strict=True)
        return torch.stack(thresholds), torch.stack(spans)

    def _ranges_of(self, category: str) -> tuple[Range, Range]:
        if category not in self.ranges:
            known = ", ".join(self.ranges) or "none: validate with MultiCategory"
            msg = f"There are no thresholds of the category {category!r}; there are those of {known}."
            raise ValueError(msg)
        return self.ranges[category]

    def _read(self, raw: Tensor, kind: str, threshold: Tensor, span: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise raw values and compare them with the threshold."""
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
        common = f"image {self.image_threshold:.4f}, pixel {self.pixel_threshold:.4f}"
        own = [
            f"\n{name}: image {image.threshold:.4f}, pixel {pixel.threshold:.4f}"
            for name, (image, pixel) in self.ranges.items()
        ]
        rank_zero_info(f"Thresholds (raw): {common}; {self._source}.{''.join(own)}")


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
