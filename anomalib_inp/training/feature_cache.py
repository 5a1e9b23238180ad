# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Feature cache: what the frozen encoder says of the training images, computed once instead of once an epoch.

Training needs nothing of an image but the means of two groups of layers, and neither the encoder nor the transform
changes. On disk the cache is a memory-mapped file: the disk limits its size, and several processes share it.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from anomalib.data import AnomalibDataset
from anomalib.pre_processing.utils.spec import transform_to_spec
from filelock import FileLock, Timeout
from lightning import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng
from pandas import DataFrame
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import DataLoader

import anomalib_inp
from anomalib_inp.data.file_checks import DataError, is_repeatable
from anomalib_inp.files import VARIABLE, DiskError, cache_folder, readable
from anomalib_inp.outputs import PatchFeatures
from anomalib_inp.preprocessing import InpPreProcessor
from anomalib_inp.training.feature_file import DTYPES, is_complete, map_features, num_bytes, write_features

Store = Literal["memory", "disk"]
CacheDtype = Literal["float32", "bfloat16"]
STORES = ("memory", "disk")
ELSEWHERE = (
    f"Choose another folder (--model.feature_cache_dir, or {VARIABLE} in the environment) or no cache "
    "(--model.feature_cache off)."
)
WITHOUT_CACHE = "Train without a cache: --model.feature_cache off."


class CachedFeatures:
    """Patch features of a set of images.

    Args:
        source: The features of each depth, from shallow to deep ``(images, K, N, D)``, or the file that holds them.
        grid: Patch rows and columns ``(h, w)``.
        num_further: How many of the depths are further blocks; the others are the groups.
    """

    def __init__(self, source: Tensor | Path, grid: tuple[int, int], num_further: int = 0) -> None:
        self.source = source
        self.grid = grid
        self.num_further = num_further
        self._mapped: Tensor | None = None

    def __getitem__(self, indices: list[int]) -> PatchFeatures:
        """Read the features of a batch that training needs: the groups."""
        mapped = self._map()
        return PatchFeatures([mapped[indices, group] for group in range(self.num_further, mapped.shape[1])], self.grid)

    def depths(self, indices: list[int]) -> Tensor:
        """Read the features of a batch at all depths, ``(B, K, N, D)``."""
        return self._map()[indices]

    def _map(self) -> Tensor:
        if self._mapped is None:
            self._mapped = self.source if isinstance(self.source, Tensor) else map_features(self.source)
        return self._mapped

    def __getstate__(self) -> dict[str, Any]:
        """Leave the mapping behind: a worker process makes its own, of the same memory."""
        return {**self.__dict__, "_mapped": None}


class FeatureCache:
    """Encodes the training images before the first step.

    Args:
        store: ``memory`` keeps the features in this process (in each of several); ``disk`` in a file that other
            trainings on the same images find again.
        dtype: Precision of the features; ``bfloat16`` halves their size.
        folder: Where files go; ``None`` for the user's cache folder.

    Raises:
        ValueError: Unknown store or precision.
    """

    def __init__(self, store: Store, dtype: CacheDtype = "float32", folder: str | Path | None = None) -> None:
        for name, value, choices in (("feature_cache", store, STORES), ("feature_cache_dtype", dtype, DTYPES)):
            if value not in choices:
                off = "off, " if name == "feature_cache" else ""
                msg = f"{name} must be one of {off}{', '.join(choices)}, got {value!r}."
                raise ValueError(msg)
        self.store = store
        self.dtype = dtype
        self.folder = cache_folder("features") if folder is None else Path(folder).expanduser()

    def features_of(self, images: AnomalibDataset, trainer: Trainer, pl_module: LightningModule) -> CachedFeatures:
        """Encode the images, or find their features kept.

        Raises:
            DataError: The images cannot be cached, or the cache is larger than the memory or the disk.
        """
        pre_processor = pl_module.pre_processor
        if not isinstance(pre_processor, InpPreProcessor):
            msg = f"The feature cache needs an InpPreProcessor, got {type(pre_processor).__name__}. {WITHOUT_CACHE}"
            raise DataError(msg)
        if not is_repeatable(images.augmentations):
            msg = (
                f"The training images are augmented by {images.augmentations}, which may give other images in every "
                f"epoch; cached features would freeze the first. Leave out --data.train_augmentations. {WITHOUT_CACHE}"
            )
            raise DataError(msg)
        encoder = pl_module.model.network.encoder
        rows, columns = (side // encoder.patch_size for side in pre_processor.crop_size)
        shape = (len(images), len(encoder.depth_names), rows * columns, encoder.embed_dim)
        features = encode(trainer, pl_module, encoder, images)
        with isolate_rng():  # the training draws the same numbers, cached or not
            if self.store == "memory":
                source: Tensor | Path = self._keep(shape, features, trainer.num_devices)
            else:
                transforms = [
                    transform_to_spec(step) for step in (images.augmentations, pre_processor.training_transform)
                ]
                description = {
                    "anomalib_inp": anomalib_inp.__version__,
                    "torch": torch.__version__,
                    "encoder": encoder.digest,
                    "target_layers": json.dumps(encoder.target_layers),
                    "transforms": json.dumps(transforms),
                    "precision": trainer.precision,
                    "dtype": self.dtype,
                    "images": digest_of(images.samples),
                }
                if encoder.further_layers:
                    description["further_layers"] = json.dumps(encoder.further_layers)
                source = self._write(shape, features, description)
        return CachedFeatures(source, (rows, columns), len(encoder.further_layers))

    def _keep(self, shape: tuple[int, ...], features: Iterator[Tensor], processes: int) -> Tensor:
        size, memory = num_bytes(shape, self.dtype), _memory()
        if size * processes > memory:
            copies = f", in each of {processes} processes" if processes > 1 else ""
            msg = (
                f"The features of {shape[0]} images take {readable(size)} in {self.dtype}{copies}, more than the "
                f"memory of this machine, {readable(memory)}. Keep them on disk: --model.feature_cache disk."
            )
            raise DataError(msg)
        rank_zero_info(f"Feature cache: {shape[0]} images, {readable(size)} of memory.")
        kept = torch.empty(shape, dtype=getattr(torch, self.dtype))
        first = 0
        for batch in features:
            kept[first : first + len(batch)] = batch
            first += len(batch)
        return kept

    def _write(self, shape: tuple[int, ...], features: Iterator[Tensor], description: dict[str, str]) -> Path:
        key = hashlib.blake2b(json.dumps(description, sort_keys=True).encode(), digest_size=12).hexdigest()
        path = self.folder / f"{key}.safetensors"
        _make(self.folder)
        with _alone(path):
            if is_complete(path, description):
                rank_zero_info(f"Feature cache: {path} holds the features of these {shape[0]} images.")
                return path
            size, free = num_bytes(shape, self.dtype), shutil.disk_usage(self.folder).free
            if size > free:
                msg = (
                    f"The features of {shape[0]} images take {readable(size)} in {self.dtype}, but {self.folder} has "
                    f"{readable(free)} left. Halve them (--model.feature_cache_dtype bfloat16). {ELSEWHERE}"
                )
                raise DataError(msg)
            rank_zero_info(f"Feature cache: {shape[0]} images, {readable(size)} on disk, in {path}.")
            try:
                write_features(path, features, shape, self.dtype, description)
            except (DiskError, IsADirectoryError) as error:
                msg = f"The feature cache {path} cannot be written: {error} {ELSEWHERE}"
                raise DataError(msg) from error
        return path


def encode(
    trainer: Trainer, pl_module: LightningModule, encoder: nn.Module, images: AnomalibDataset
) -> Iterator[Tensor]:
    """Encode images as training would, batch by batch: features at all depths ``(B, K, N, D)``, on the CPU."""
    data, transform, device = trainer.datamodule, transform_of(pl_module), trainer.strategy.root_device
    batches = DataLoader(
        images, batch_size=data.train_batch_size, num_workers=data.num_workers, collate_fn=images.collate_fn
    )
    for batch in track(batches, "Encoding the training images"):
        yield torch.stack(encode_batch(trainer, encoder, transform(batch.image.to(device))).depths, dim=1).cpu()


@torch.no_grad()
def encode_batch(trainer: Trainer, encoder: nn.Module, images: Tensor) -> PatchFeatures:
    """Encode images ``(B, 3, H, W)``, transformed already, as training would: on its device, in its precision."""
    device = trainer.strategy.root_device
    with trainer.precision_plugin.forward_context():
        return encoder.to(device)(images.to(device))


def transform_of(pl_module: LightningModule) -> Callable[..., Any]:
    """Find what a model does to images, and masks beside them, before they are encoded."""
    pre_processor = pl_module.pre_processor
    return (
        (lambda *images: images[0] if len(images) == 1 else images)
        if pre_processor is None
        else getattr(pre_processor, "training_transform", pre_processor.transform)
    )


def digest_of(samples: DataFrame) -> str:
    """Fingerprint of a table of images and of the state of each file.

    Size, time of change and, where the system keeps it, time of the last change of anything: whoever replaces an image
    changes one of them, without a byte of it being read.
    """
    digest = hashlib.blake2b(samples.to_json().encode(), digest_size=16)
    for path in samples.image_path:
        state = os.stat(path)  # noqa: PTH116 - twice as fast, for a hundred thousand files
        digest.update(f"{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}\n".encode())
    return digest.hexdigest()


def _make(folder: Path) -> None:
    """Make the folder of the caches, and see that files can be made in it.

    Raises:
        DataError: It cannot be made, or takes no files.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        msg = f"The folder {folder} takes no feature cache: {error.strerror}. {ELSEWHERE}"
        raise DataError(msg) from error


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one process at a time look for a file and write it; the others wait, and find it."""
    lock = FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        rank_zero_info(f"Another process fills the feature cache {path}: waiting for it.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _memory() -> int:
    """Bytes of memory of this machine; without limit where the system does not say."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return 2**63
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
