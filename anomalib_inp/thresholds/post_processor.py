# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Thresholds and normalised scores, with and without anomalous validation images."""

from typing import Any

import torch
from anomalib.data import Batch, InferenceBatch
from anomalib.post_processing import PostProcessor
from lightning import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from anomalib_inp.data.subset import Subset
from anomalib_inp.thresholds.choose import ValidationScales
from anomalib_inp.thresholds.references import References, references_of
from anomalib_inp.thresholds.scale import NO_SCALE, NO_SCORES, Scale, ValidationScores, buffer_names, move

NEXT_TO_ZERO = 1e-7
"""What stands for a threshold of 0: the least that ONNX's optimiser does not take for it."""


class InpPostProcessor(PostProcessor):
    """Chooses thresholds on the validation images and normalises scores around them.

    With anomalous images among the validation images, thresholds maximise F1, as in anomalib. Without any, which is
    usual on a production line, they are a quantile of the normal images' scores. The log says which it was, and warns
    when the validation images are the test images.

    A normalised score lies between 0 and 1, and 0.5 is the threshold. anomalib's is a straight line, clamped: all
    clearly anomalous images score 1.0, and their order is lost. Ours never clamps, so that raw scores can be had back
    from it (:class:`~anomalib_inp.thresholds.scale.Scale`). Normal images alone do not show how high anomalous scores
    go; then the lowest of them says how steep it is. Predictions keep the raw values as ``raw_score`` and ``raw_map``
    as well.

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
        validation: Raw scores of the validation images that the common image threshold was chosen from.
        category_validation: The same of each category.
        references: What the normal images of the training are like, by category, empty for all: brightness, sharpness.

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
            msg = f"category={category} selects the thresholds of that category, but per_category=False chooses none."
            raise ValueError(msg)
        super().__init__(
            enable_normalization=enable_normalization,
            image_sensitivity=image_sensitivity,
            pixel_sensitivity=pixel_sensitivity,
        )
        self.normal_image_quantile = normal_image_quantile
        self.normal_pixel_quantile = normal_pixel_quantile
        self._source = ""
        self.per_category = per_category
        self.category = category
        self.ranges: dict[str, tuple[Scale, Scale]] = {}
        self.validation = NO_SCORES
        self.category_validation: dict[str, ValidationScores] = {}
        self.references: References = {}
        self._subset = Subset()
        self._validation: ValidationScales | None = None
        self._chosen_at = 0

    @property
    def _checkpoint_config_keys(self) -> tuple[str, ...]:
        return (*super()._checkpoint_config_keys, "normal_image_quantile", "normal_pixel_quantile", "per_category")

    def checkpoint_config(self) -> dict[str, Any]:
        """Describe this post-processor in plain data, with the thresholds of the categories."""
        ranges = {name: [list(image), list(pixel)] for name, (image, pixel) in self.ranges.items()}
        of_each = {name: scores._asdict() for name, scores in self.category_validation.items()}
        kept = {"validation": self.validation._asdict(), "category_validation": of_each, "references": self.references}
        return {**super().checkpoint_config(), "category": self.category, "ranges": ranges, **kept}

    def load_checkpoint_config(self, config: dict[str, Any]) -> None:
        """Restore what ``checkpoint_config`` described; a category that was chosen for this model stays chosen."""
        super().load_checkpoint_config(config)
        self.category = self.category or config.get("category")
        ranges = config.get("ranges", {})
        self.ranges = {name: (Scale(*image), Scale(*pixel)) for name, (image, pixel) in ranges.items()}
        self.validation = ValidationScores(**config.get("validation", NO_SCORES._asdict()))
        self.references = config.get("references", {})
        of_each = config.get("category_validation", {})
        self.category_validation = {name: ValidationScores(**scores) for name, scores in of_each.items()}

    def set_thresholds(
        self, image: float | None = None, pixel: float | None = None, category: str | None = None
    ) -> None:
        """Set thresholds by hand, in raw scores: those of a category, by default the chosen one, or the common ones.

        ``None`` leaves a threshold as it is; where there was none, it takes the value of the other one.

        Raises:
            ValueError: A threshold is not a finite number, or the category is unknown.
        """
        category = category or self.category
        if category is None:
            self._store(*move((self._common_scale("image"), self._common_scale("pixel")), image, pixel))
        else:
            self.ranges[category] = move(self._ranges_of(category), image, pixel)

    def _common_scale(self, kind: str) -> Scale:
        return Scale(*(getattr(self, name) for name in buffer_names(kind)))

    def _store(self, image: Scale, pixel: Scale) -> None:
        for kind, scale in (("image", image), ("pixel", pixel)):
            for name, value in zip(buffer_names(kind), scale, strict=True):
                getattr(self, name).fill_(value)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare to choose, also for the categories of the validation images."""
        self._subset = Subset.from_trainer(trainer, "val")
        per_category = bool(self._with_thresholds(self._subset))
        quantiles = (self.normal_image_quantile, self.normal_pixel_quantile)
        binned = getattr(pl_module, "tiles", None) is not None  # maps of tiled images are large
        self._validation = ValidationScales(self._subset, per_category, *quantiles, binned).to(pl_module.device)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Batch, *args: Any, **kwargs: Any
    ) -> None:
        """Collect the raw scores and maps of a batch."""
        del trainer, pl_module, args, kwargs
        if self._validation is not None:
            self._validation.update(outputs)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the thresholds."""
        del pl_module
        if self._validation is None:
            return
        # Weights that have been trained since have no use for the scales of other categories.
        if trainer.state.fn == TrainerFn.FITTING:
            self.ranges, self.category_validation = {}, {}
        self.ranges |= self._validation.of_categories()
        self.category_validation |= self._validation.scores_of_categories()
        if common := self._validation.common.compute():
            image, pixel, self._source = common
            self._store(image, pixel)
            self.validation = self._validation.common.scores()
        self._chosen_at = trainer.global_step
        self._validation = None

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
        images = getattr(trainer.datamodule, "val_data", None)
        if not trainer.enable_validation or (images is not None and len(images) == 0):
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
            self.references = references_of(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Thresholds that are there belong to the weights that the training begins with."""
        del pl_module
        self._chosen_at = trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say which thresholds the training ends with; those of other weights are dropped."""
        del pl_module
        if self._chosen_at != trainer.global_step and (self.ranges or not self.image_threshold.isnan()):
            self._store(NO_SCALE, NO_SCALE)
            self.ranges, self.validation, self.category_validation, self.references = {}, NO_SCORES, {}, {}
            rank_zero_warn(
                f"The thresholds were those of the weights of step {self._chosen_at}, but the training ended at step "
                f"{trainer.global_step} without a validation: the finished model has none. Choose some: anomalib "
                "validate --ckpt_path finished.ckpt, or set them by hand: anomalib-inp threshold."
            )
        elif self._source:
            self._say_thresholds()
            self.references = references_of(trainer) if trainer.is_global_zero else {}

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
        score, pixels = torch.empty_like(batch.raw_score), torch.empty_like(batch.raw_map)
        label, mask = (torch.empty_like(values, dtype=torch.bool) for values in (score, pixels))
        for category in set(categories):
            rows = torch.tensor([name == category for name in categories], device=score.device)
            score[rows], label[rows] = self.normalise_and_label(batch.raw_score[rows], "image", category)
            pixels[rows], mask[rows] = self.normalise_and_label(batch.raw_map[rows], "pixel", category)
        batch.update(pred_score=score, pred_label=label, anomaly_map=pixels, pred_mask=mask)

    def forward(self, predictions: InferenceBatch) -> InferenceBatch:
        """Post-process raw scores ``(B,)`` and maps ``(B, 1, h, w)``; without thresholds they pass unchanged."""
        score, label = self.normalise_and_label(predictions.pred_score, "image")
        pixels, mask = self.normalise_and_label(predictions.anomaly_map, "pixel")
        return InferenceBatch(pred_score=score, pred_label=label, anomaly_map=pixels, pred_mask=mask)

    def normalise_and_label(self, raw: Tensor, kind: str, category: str | None = None) -> tuple[Tensor, Tensor]:
        """Normalise raw values by their scale, and compare them with its threshold; see :meth:`scale`."""
        limit, scale = 1 - getattr(self, f"{kind}_sensitivity"), self.scale(kind, category)
        # Exporters leave out the subtraction of 0, and there would be no threshold in the graph that could be moved.
        scale = scale._replace(threshold=scale.threshold + (scale.threshold == 0) * NEXT_TO_ZERO)
        normalised, labels = scale.normalise_and_label(raw, limit)
        return normalised if self.enable_normalization else raw, labels

    def scale(self, kind: str, category: str | None = None) -> Scale:
        """Scale of raw scores (``kind="image"``) or map values (``"pixel"``).

        That of the category, or of the one that was chosen for images of no known category, or the common one.

        Raises:
            ValueError: There are no thresholds of the category that was chosen.
        """
        category = category if category in self.ranges else self.category
        if category is not None:
            return self._ranges_of(category)[kind == "pixel"]
        return self._common_scale(kind)

    def in_force(self, kind: str, category: str | None = None) -> float:
        """Raw value above which a score (``"image"``) or pixel (``"pixel"``) is anomalous; see :meth:`scale`."""
        scale = Scale(*map(float, self.scale(kind, category)))
        return scale.in_force(1 - getattr(self, f"{kind}_sensitivity"))

    def _ranges_of(self, category: str) -> tuple[Scale, Scale]:
        if category not in self.ranges:
            present = ", ".join(self.ranges) or "none: validate with MultiCategory"
            msg = f"There are no thresholds of the category {category!r}; there are those of {present}."
            raise ValueError(msg)
        return self.ranges[category]

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
