# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Looks at the data before hours are spent on it, and names the file where something is wrong."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from anomalib.data import MPDD, VAD, AnomalibDataset, Folder, ImageBatch, MVTecAD
from anomalib.data.datasets.image.mvtecad import IMG_EXTENSIONS
from anomalib.data.utils import LabelName, ValSplitMode
from anomalib.pre_processing.utils.spec import transform_to_spec
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from PIL import Image
from rich.progress import track
from torchvision.datasets.folder import IMG_EXTENSIONS as IMAGE_SUFFIXES
from torchvision.transforms.v2 import Transform

from anomalib_inp.preprocessing import WHOLE_IMAGE, InpPreProcessor

SUBSETS = {"fit": ("train_data", "val_data", "test_data"), "validate": ("val_data",), "test": ("test_data",)}
DEEP_MODES = {"I;16", "I;16B", "I;16L", "I;16N", "I", "F"}
"""Pillow's modes that anomalib's reader clips to 8 bits instead of scaling."""
MANY = 5000
"""Files from which on looking at their headers takes more than a few seconds."""


class DataError(ValueError):
    """The data cannot be trained or tested on; the message names the file or folder and what to do."""


def check_masks(datamodule: LightningDataModule | None) -> None:
    """Compare images and masks of folders, before anomalib pairs them by position.

    Raises:
        DataError: In the layout of MVTec AD, a mask has no image or an image has no mask, or all images are of a format
            that is not read; in folders of any name, there are more of one than of the other.
    """
    if isinstance(datamodule, Folder):
        _count_masks(datamodule)
    if not isinstance(datamodule, MVTecAD | MPDD | VAD):
        return  # others have folders of the same names with other things in them
    folder = Path(datamodule.root, datamodule.category)
    if not (folder / "test").is_dir():
        return
    there = image_files(folder)
    if ignored := [path for path in there if path.suffix not in IMG_EXTENSIONS]:
        kinds = ", ".join(sorted({path.suffix for path in ignored}))
        left_out = (
            f"{type(datamodule).__name__} reads {' and '.join(IMG_EXTENSIONS)} alone: {len(ignored)} files ({kinds}) "
            f"of {folder} are left out. Convert them, or name the folders of images to the data module Folder."
        )
        if len(ignored) == len(there):
            raise DataError(left_out)
        rank_zero_warn(left_out)
    faults = []
    found = 0
    for defect in sorted({path.name for part in ("test", "ground_truth") for path in (folder / part).glob("*")}):
        if defect == "good" or defect.startswith("."):
            continue
        images = {path.stem: path for path in _files(folder / "test" / defect)}
        masks = {path.stem.removesuffix("_mask"): path for path in _files(folder / "ground_truth" / defect)}
        found += len(masks)
        faults += [f"{images[stem]} has no mask" for stem in sorted(images.keys() - masks.keys())]
        faults += [f"the mask {masks[stem]} has no image" for stem in sorted(masks.keys() - images.keys())]
    if faults:
        msg = (
            f"Every image in test/<defect> needs its mask in ground_truth/<defect>, NNN.png and NNN_mask.png: "
            f"{some_of(faults)}. Add what is missing or remove what is left over."
        )
        if ignored:
            msg += f" {left_out}"
        if not found:
            msg += " Images without any masks are read by the data module Folder, and have image metrics alone."
        raise DataError(msg)


def _count_masks(datamodule: Folder) -> None:
    """Count the images and masks of a data module that names its folders."""

    def found(names: str | Path | Sequence[str | Path] | None) -> list[Path]:
        several = [] if names is None else [names] if isinstance(names, str | Path) else names
        return [path for name in several for path in image_files(Path(datamodule.root or ".", name))]

    images, masks = found(datamodule.abnormal_dir), found(datamodule.mask_dir)
    if datamodule.mask_dir is not None and len(images) != len(masks):
        msg = (
            f"Every anomalous image needs one mask, but {datamodule.abnormal_dir} have {len(images)} images and "
            f"{datamodule.mask_dir} have {len(masks)} masks, below {datamodule.root}."
        )
        raise DataError(msg)


class DataCheck(Callback):
    """Checks the images of a run before it starts and says which part of them is inspected."""

    def __init__(self) -> None:
        self._anomalous = 0
        self._outside = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that there are images and that they are images.

        Raises:
            DataError: No training images, or a file that is no image.
        """
        pre_processor = pl_module.pre_processor
        if isinstance(pre_processor, InpPreProcessor) and pre_processor.crop_box != WHOLE_IMAGE:
            box = pre_processor.crop_box
            rank_zero_info(
                f"Only the centre of each image is inspected: {100 * box.left:.1f} to {100 * box.right:.1f} % of its "
                f"width, {100 * box.top:.1f} to {100 * box.bottom:.1f} % of its height."
            )
        data = trainer.datamodule
        _warn_of_zero_shot(pl_module, data)
        _warn_of_new_splits(data)
        if (
            stage == "fit"
            and getattr(data, "val_split_mode", "") == ValSplitMode.NONE
            and not hasattr(data, "val_data")
        ):
            trainer.limit_val_batches = 0  # anomalib's loader would ask for the images that are not there
        _check_splits(trainer, [getattr(data, name, None) for name in SUBSETS.get(stage, ())])
        is_mask: dict[str, bool] = {}  # validation images may be the test images: once is enough
        for name in SUBSETS.get(stage, ()):
            dataset = getattr(trainer.datamodule, name, None)
            if dataset is None:
                continue
            if name == "train_data" and len(dataset) == 0:
                place = [str(getattr(trainer.datamodule, part, "")) for part in ("root", "category")]
                msg = (
                    f"There are no training images in {'/'.join(part for part in place if part) or dataset.name}. "
                    "Expected normal images, in the layout of MVTec AD in <root>/<category>/train/good."
                )
                raise DataError(msg)
            images = set(dataset.samples.image_path)
            is_mask.update((path, path not in images) for path in _paths(dataset))
        check_headers(is_mask)

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
            DataError: An image cannot be decoded.
        """
        del pl_module
        if not isinstance(exception, OSError | SyntaxError):
            return
        datasets = [getattr(trainer.datamodule, name, None) for name in ("train_data", "val_data", "test_data")]
        # validation images may be the test images: once is enough
        paths = dict.fromkeys(path for dataset in datasets if dataset is not None for path in _paths(dataset))
        broken = [fault for path in track(list(paths), "Looking for the broken image") if (fault := _decode(path))]
        if broken:
            msg = f"Images cannot be decoded: {some_of(broken)}. Replace or remove them; training can be resumed."
            raise DataError(msg) from exception

    def _count(self, batch: ImageBatch) -> None:
        if batch.gt_mask is None or batch.gt_label is None:
            return
        anomalous = batch.gt_label.bool()
        empty = ~batch.gt_mask.flatten(1).any(dim=1)
        self._anomalous += int(anomalous.sum())
        self._outside += int((anomalous & empty).sum())

    def _report(self, pl_module: LightningModule, subset: str) -> None:
        cropped = getattr(pl_module.pre_processor, "crop_box", WHOLE_IMAGE) != WHOLE_IMAGE
        if self._outside and cropped:
            rank_zero_warn(
                f"{self._outside} of the {self._anomalous} anomalous {subset} images have their whole mask outside the "
                "inspected centre: nobody can find these defects there. Without crop_size the whole image is inspected."
            )


def _check_splits(trainer: Trainer, subsets: Sequence[AnomalibDataset | None]) -> None:
    """Compare the processes' images: without a seed, anomalib splits them otherwise in each.

    Raises:
        DataError: They differ.
    """
    images = "\n".join(path for subset in subsets if subset is not None for path in subset.samples.image_path)
    mine = hashlib.blake2b(images.encode()).hexdigest()
    if not trainer.strategy.reduce_boolean_decision(trainer.strategy.broadcast(mine) == mine):
        msg = "The processes have split the images otherwise, each for itself. Give a seed: --data.seed 0"
        raise DataError(msg)


def _warn_of_zero_shot(pl_module: LightningModule, data: LightningDataModule | None) -> None:
    trained, tested = getattr(data, "trained", {}), getattr(data, "tested", {})
    shown = getattr(pl_module.model, "map", "")
    if trained and tested and not trained.keys() & tested.keys() and "prototype_distance" not in shown:
        rank_zero_warn(
            f"No category is trained on that is tested on, but the map is {shown}: it shows what training never saw, "
            "anomalous or not. For zero-shot: --model.map prototype_distance"
        )


def _warn_of_new_splits(data: LightningDataModule | None) -> None:
    if getattr(data, "val_split_mode", None) == ValSplitMode.FROM_TEST and getattr(data, "seed", 0) is None:
        rank_zero_warn(
            "val_split_mode=from_test draws validation images out of the test images, other ones in every run, so that "
            "a later test is of other images. For the same ones: --data.seed 0"
        )


def is_repeatable(transform: Transform | None) -> bool:
    """Whether a transform surely does the same to an image every time."""
    try:
        transform_to_spec(transform)
    except ValueError:
        return False
    return True


def image_files(folder: Path) -> list[Path]:
    """List the images below a folder, whatever they are of."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def _files(folder: Path) -> Iterator[Path]:
    """List what anomalib takes for images and masks of this layout."""
    return (path for path in folder.glob("*") if path.suffix in IMG_EXTENSIONS)


def _paths(dataset: AnomalibDataset) -> list[str]:
    """List the files that are read: no masks of normal images, of which BTech's table names some that are not there."""
    samples = dataset.samples
    masks = samples[samples.label_index == LabelName.ABNORMAL].mask_path if "mask_path" in samples else []
    several = (mask if isinstance(mask, list) else [mask] for mask in masks)  # MVTec LOCO has lists of them
    return [*samples.image_path, *(path for paths in several for path in paths if isinstance(path, str) and path)]


def check_headers(is_mask: Mapping[str, bool]) -> None:
    """Look at the headers of files, and whether each is a mask.

    Raises:
        DataError: A file is no image that can be used.
    """
    paths: Iterable[str] = track(list(is_mask), "Looking at the images") if len(is_mask) > MANY else is_mask
    broken = [fault for path in paths if (fault := header_fault(path, is_mask[path]))]
    if broken:
        msg = f"Files are no images that can be used: {some_of(broken)}. Replace, convert or remove them."
        raise DataError(msg)


def header_fault(path: str | Path, is_mask: bool = False) -> str | None:
    """Say what is wrong with a file by its header alone; ``None`` if nothing is."""
    try:
        with Image.open(path) as image:
            deep = image.mode in DEEP_MODES and not is_mask
            return f"{path} (mode {image.mode}; expected 8 bits per channel)" if deep else None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        return f"{path} ({type(error).__name__})"


def _decode(path: str) -> str | None:
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError) as error:
        return f"{path} ({error})"
    return None


def some_of(faults: list[str]) -> str:
    """Join the first five faults and count the others."""
    more = len(faults) - 5
    return "; ".join(faults[:5]) + (f"; and {more} more" if more > 0 else "")
