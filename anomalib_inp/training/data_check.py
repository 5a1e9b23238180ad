# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Looks at a run's data before hours are spent on it."""

import hashlib
import os
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.error import URLError

from anomalib.data import AnomalibDataset, ImageBatch
from anomalib.data.utils import LabelName, ValSplitMode
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from rich.progress import track

from anomalib_inp.data.deep import say_how_deep, with_deep_images
from anomalib_inp.data.few_shot import FewShotViews
from anomalib_inp.data.file_checks import (
    DataError,
    check_headers,
    check_mask_sizes,
    check_mask_values,
    decode_fault,
    files_of,
    pairs_of,
)
from anomalib_inp.data.loaders import image_paths_of
from anomalib_inp.files import first_few, image_files
from anomalib_inp.frame import WHOLE_IMAGE
from anomalib_inp.preprocessing import crop_box_of

SUBSETS = {"fit": ("train_data", "val_data", "test_data"), "validate": ("val_data",), "test": ("test_data",)}
READ = {**SUBSETS, "predict": ("test_data",)}


class DataCheck(Callback):
    """Checks the images of a run before it starts and says which part of them is inspected."""

    def __init__(self) -> None:
        self._anomalous = 0
        self._outside = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that there are images and that they are images.

        Raises:
            DataError: No training images, a file that is no image, or masks that do not fit.
        """
        if (box := crop_box_of(pl_module.pre_processor)) != WHOLE_IMAGE:
            rank_zero_info(
                f"Only the centre of each image is inspected: {100 * box.left:.1f} to {100 * box.right:.1f} % of its "
                f"width, {100 * box.top:.1f} to {100 * box.bottom:.1f} % of its height."
            )
        data = trainer.datamodule
        if getattr(data, "num_workers", 0) > (cores := _cores()):
            data.num_workers = cores  # anomalib's default is 8: on fewer cores they wait for each other
        _warn_of_zero_shot(pl_module, data)
        _warn_of_new_splits(data)
        if (
            stage == "fit"
            and getattr(data, "val_split_mode", "") == ValSplitMode.NONE
            and not hasattr(data, "val_data")
        ):
            trainer.limit_val_batches = 0  # anomalib's loader would ask for the images that are not there
        _check_splits(trainer, [getattr(data, name, None) for name in SUBSETS.get(stage, ())])
        there = [(name, getattr(data, name, None)) for name in READ.get(stage, ())]
        datasets: dict[str, AnomalibDataset] = {name: dataset for name, dataset in there if dataset is not None}
        if "train_data" in datasets and len(datasets["train_data"]) == 0:
            place = [str(getattr(data, part, "")) for part in ("root", "category")]
            msg = (
                f"There are no training images in {'/'.join(part for part in place if part) or data.name}. "
                "Expected normal images, in the layout of MVTec AD in <root>/<category>/train/good."
            )
            raise DataError(msg)
        if stage == "fit" and datasets:
            rank_zero_info(_counts(datasets))
        # A prediction is looked at when its images are known: they need not be those of the data module.
        deep = _look_at_files(datasets.values()) if stage in SUBSETS else None
        for name, dataset in datasets.items():
            if not isinstance(dataset, FewShotViews):  # whose images are read already
                setattr(data, name, with_deep_images(dataset, deep))

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the files of a prediction are images.

        Raises:
            DataError: A file is no image that can be used.
        """
        del pl_module
        paths = image_paths_of(trainer.predict_dataloaders)
        headers = check_headers(dict.fromkeys(paths, False))
        say_how_deep([path for path, header in headers.items() if header.deep])
        if len(paths) > 1 and (left_out := _linked(paths)):
            rank_zero_warn(
                f"{len(left_out)} images in linked folders are left out by anomalib: {first_few(left_out)}. Copy them, "
                "or predict with an export: anomalib-inp predict follows links."
            )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to count."""
        del trainer, pl_module
        self._anomalous = self._outside = 0

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: ImageBatch, *_: object
    ) -> None:
        """Count the anomalous images whose mask lies outside the inspected part."""
        del trainer, pl_module
        self._count(outputs)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the count; that of a training's last validation is reported when training ends."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._report(pl_module, "validation")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the count of the last validation."""
        del trainer
        self._report(pl_module, "validation")

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the count."""
        del trainer
        self._report(pl_module, "test")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Name the file where reading an image failed.

        Raises:
            DataError: An image cannot be decoded, or the data are not there.
        """
        del pl_module
        data = trainer.datamodule
        if isinstance(exception, URLError):
            place = Path(getattr(data, "root", ""), str(getattr(data, "category", "")))
            msg = f"There is no folder {place}, and the data set cannot be downloaded: {exception.reason}."
            raise DataError(msg) from exception
        if not isinstance(exception, OSError | SyntaxError) or not _is_of_an_image(exception):
            return
        datasets = [getattr(data, name, None) for name in ("train_data", "val_data", "test_data")]
        # validation images may be the test images: once is enough
        paths = dict.fromkeys(path for dataset in datasets if dataset is not None for path in files_of(dataset))
        paths |= dict.fromkeys(image_paths_of(trainer.predict_dataloaders))
        broken = [fault for path in track(list(paths), "Looking for the broken image") if (fault := decode_fault(path))]
        if broken:
            msg = f"Images cannot be decoded: {first_few(broken)}. Replace or remove them; training can be resumed."
            raise DataError(msg) from exception

    def _count(self, batch: ImageBatch) -> None:
        if batch.gt_mask is None or batch.gt_label is None:
            return
        anomalous = batch.gt_label.bool()
        empty = ~batch.gt_mask.flatten(1).any(dim=1)
        self._anomalous += int(anomalous.sum())
        self._outside += int((anomalous & empty).sum())

    def _report(self, pl_module: LightningModule, subset: str) -> None:
        cropped = crop_box_of(pl_module.pre_processor) != WHOLE_IMAGE
        if self._outside and cropped:
            rank_zero_warn(
                f"{self._outside} of the {self._anomalous} anomalous {subset} images have their whole mask outside the "
                "inspected centre: nobody can find these defects there. Without crop_size the whole image is inspected."
            )


def _is_of_an_image(exception: BaseException) -> bool:
    """Whether an error comes from Pillow, here or in a process that reads images: not of a checkpoint or a disk."""
    frames = traceback.extract_tb(exception.__traceback__)
    return "DataLoader worker" in str(exception) or any("PIL" in Path(frame.filename).parts for frame in frames)


def _cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _linked(paths: Sequence[str]) -> list[str]:
    """List the images below those of a prediction that only a linked folder leads to."""
    root, predicted = Path(os.path.commonpath([os.path.dirname(path) for path in paths])), set(paths)  # noqa: PTH120
    others = [path for path in image_files(root) if str(path) not in predicted]
    return [str(path) for path in others if any(place.is_symlink() for place in _below(path, root))]


def _below(path: Path, root: Path) -> list[Path]:
    """List the folders between a folder and a file below it."""
    return [place for place in path.parents if place != root and place.is_relative_to(root)]


def _look_at_files(datasets: Iterable[AnomalibDataset]) -> list[str]:
    """Check images and masks, and list the images of 16 bits."""
    is_mask: dict[str, bool] = {}  # validation images may be the test images: once is enough
    pairs: dict[tuple[str, str], None] = {}
    for dataset in datasets:
        images = set(dataset.samples.image_path)
        is_mask.update((path, path not in images) for path in files_of(dataset))
        pairs.update(dict.fromkeys(pairs_of(dataset)))
    headers = check_headers(is_mask)
    check_mask_sizes(pairs, headers)
    check_mask_values(list(dict.fromkeys(mask for _, mask in pairs)))
    deep = [path for path, header in headers.items() if header.deep and not is_mask[path]]
    say_how_deep(deep)
    return deep


def _counts(datasets: Mapping[str, AnomalibDataset]) -> str:
    """Say how many images are for what."""
    uses = {"train_data": "train", "val_data": "validate", "test_data": "test"}
    parts = []
    for name, use in uses.items():
        labels = [] if name not in datasets else list(datasets[name].samples.label_index)
        anomalous = labels.count(LabelName.ABNORMAL)
        parts.append(f"{len(labels)} {use}" + (f" ({anomalous} anomalous)" if anomalous else ""))
    return f"Images: {', '.join(parts)}."


def _check_splits(trainer: Trainer, subsets: Sequence[AnomalibDataset | None]) -> None:
    """Compare the processes' images: without a seed, anomalib draws another split in each.

    Raises:
        DataError: They differ.
    """
    images = "\n".join(path for subset in subsets if subset is not None for path in subset.samples.image_path)
    mine = hashlib.blake2b(images.encode()).hexdigest()
    if not trainer.strategy.reduce_boolean_decision(trainer.strategy.broadcast(mine) == mine):
        msg = "Each process drew a different split of the images. Give a seed: --data.seed 0"
        raise DataError(msg)


UNTRAINED = ("prototype_distance", "self_distance", "grnr")
"""Maps that show what an image says of itself, whatever was trained on."""


def _warn_of_zero_shot(pl_module: LightningModule, data: LightningDataModule | None) -> None:
    trained, tested = getattr(data, "trained", {}), getattr(data, "tested", {})
    shown = getattr(pl_module.model, "map", "")
    if trained and tested and not trained.keys() & tested.keys() and not any(name in shown for name in UNTRAINED):
        rank_zero_warn(
            f"None of the tested categories was trained on, but the map is {shown}: it shows whatever training never "
            "saw, anomalous or not. For zero-shot: --model.map prototype_distance"
        )


def _warn_of_new_splits(data: LightningDataModule | None) -> None:
    if getattr(data, "val_split_mode", None) == ValSplitMode.FROM_TEST and getattr(data, "seed", 0) is None:
        rank_zero_warn(
            "val_split_mode=from_test draws the validation images from the test images, different ones in every run, "
            "so a later test is on different images. To draw the same ones: --data.seed 0"
        )
