# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""An exported model on a dataset of Ray: rows with images become rows with what is said of them."""

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import ray
from PIL import Image
from ray.data import ActorPoolStrategy, Dataset
from ray.data.dataset import MaterializedDataset

from anomalib_inp.files import cache_folder, locked, replacing
from anomalib_inp.images import as_batch, decode_pixels
from anomalib_inp.results.records import Record
from anomalib_inp.results.writer import heat_map_image
from anomalib_inp.runtime.ahead import Read, predict_ahead
from anomalib_inp.runtime.engines import GPUS
from anomalib_inp.runtime.metadata import read_metadata
from anomalib_inp.runtime.model import ExportedModel, model_digest, model_files
from anomalib_inp.runtime.predict import fault_of, record_of

PATH, FILE, CONTENT, PIXELS, KIND, HEAT_MAP = "path", "file", "bytes", "image", "kind", "heat_map"
"""Columns: name of an image, where it lies if that is not its name, its file's content, its pixels, what it is."""
MOST_THREADS = 4
"""CPU threads of an actor, if its machine has so many: more images side by side need no more models in memory."""
BATCH = 32
"""Images that an actor takes at a time; Ray gives out no smaller parts."""
MOST_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)
"""Pixels of an image: what Pillow takes for no bomb."""

REGION = pa.struct({
    "box": pa.list_(pa.int64()),
    "contour": pa.list_(pa.list_(pa.int64())),
    **dict.fromkeys(("area", "area_percent", "peak", "mean"), pa.float64()),
})  # fmt: skip
SCHEMA = pa.schema({
    **dict.fromkeys(("path", "kind", "verdict"), pa.string()),
    **dict.fromkeys(("score", "raw_score"), pa.float64()),
    "thresholds": pa.struct({"image": pa.float64(), "pixel": pa.float64()}),
    "size": pa.list_(pa.int64()),
    "regions": pa.list_(REGION),
    **dict.fromkeys(("time", "model", "error"), pa.string()),
})  # fmt: skip
"""The columns of ``predictions.jsonl``."""


def predict_dataset(
    dataset: Dataset,
    model: str | Path,
    *,
    device: str = "CPU",
    precision: str | None = "f32",
    category: str | None = None,
    actors: int | tuple[int, int] | None = None,
    threads: int | None = None,
    heat_maps: bool = False,
    **resources: Any,
) -> Dataset:
    """Predict the images of a dataset; nothing is done before the result is read or written.

    Rows have a name in ``path``, and the image in ``bytes``, the content of its file, or in ``image``, an array as
    :class:`ExportedModel` takes it; with neither, it is read from ``path``, a file or any URL that fsspec opens. An
    image that cannot be read becomes a row that says why.

    Args:
        dataset: The images. Other columns are left out, but for ``kind``, what an image really is.
        model: The ``.xml`` of an OpenVINO model, or an ``.onnx`` file, on this machine; others get a copy.
        device: As :class:`ExportedModel` takes it. With ``cuda`` and ``tensorrt`` an actor has one GPU.
        precision: OpenVINO's inference precision.
        category: Of a model of several categories: the one whose thresholds hold.
        actors: How many run the model, or how many at least and at most; by default as many as there is room for, and
            more when machines are added.
        threads: CPU threads of each; by default 4, or as many as the smallest machine has.
        heat_maps: Whether a column ``heat_map`` holds PNGs, grey, 128 at the threshold.
        **resources: What else an actor needs, as :meth:`ray.data.Dataset.map_batches` takes it.

    Returns:
        A dataset with the columns of ``predictions.jsonl``.

    Raises:
        FileNotFoundError: No such model.
        ValueError: No export of ours, an unknown category, a dataset without images, or fewer than one actor or thread.
    """
    path = Path(model).absolute()
    metadata = read_metadata(path)
    if category is not None:
        metadata.of_category(category)
    files = {part.name: part.read_bytes() for part in model_files(path)}
    columns = dataset.columns() or []
    if PATH not in columns:
        msg = f"A dataset of images needs a column path, with names, and best bytes or image, got {', '.join(columns)}."
        raise ValueError(msg)
    cores = cores_of_machines()
    if threads is None:
        threads = min((MOST_THREADS, *(count for count in cores if count)))
    least, most = actors if isinstance(actors, tuple) else (actors, actors)
    if threads < 1 or (least is not None and most is not None and not 1 <= least <= most):
        msg = f"Expected one actor or more, each with one thread or more, got {actors} actors with {threads} threads."
        raise ValueError(msg)
    settings = {"device": device, "precision": precision, "threads": threads, "category": category}
    # What is not read yet is read by tasks, of one core each: actors that have all would wait for them forever.
    free = sum(cores) if isinstance(dataset, MaterializedDataset) else sum(cores) - 1
    room = max(1, min(sum(count // threads for count in cores), free // threads))
    return dataset.map_batches(
        Predictor,
        batch_format="numpy",
        batch_size=BATCH,
        compute=ActorPoolStrategy(min_size=least or 1, max_size=most, initial_size=least or room),
        fn_constructor_args=(ray.put(files), str(path), model_digest(path), settings, heat_maps),
        num_cpus=min(threads, free / (least or room)),
        num_gpus=1 if device in GPUS else None,
        udf_modifying_row_count=False,
        **resources,
    )


class Predictor:
    """An actor: one runtime on one machine.

    Args:
        files: The files of the model by name, in Ray's store.
        path: Where the model lies on the machine that began.
        digest: Fingerprint of the files.
        settings: How it runs.
        heat_maps: Whether heat maps are wanted.
    """

    def __init__(self, files: Any, path: str, digest: str, settings: dict[str, Any], heat_maps: bool) -> None:
        self._exported = ExportedModel(local_model(files, Path(path), digest), performance="throughput", **settings)
        self._digest, self._heat_maps = digest, heat_maps

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        """Predict the images of a batch."""
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        records: list[Record] = []
        heat_maps: list[bytes | None] = []
        metadata = self._exported.metadata
        for row, _, said in predict_ahead(self._exported, rows, self._read):
            name, kind, heat_map = text(row[PATH]), str(row.get(KIND) or ""), None
            if isinstance(said, ValueError):
                records.append(fault_of(name, said, metadata, self._digest, kind))
            else:
                records.append(record_of(name, said, metadata, self._digest, kind))
                heat_map = _png(said.shown_map) if self._heat_maps else None
            heat_maps.append(heat_map)
        table = pa.Table.from_pylist(records, SCHEMA)
        return table.append_column(HEAT_MAP, pa.array(heat_maps, pa.binary())) if self._heat_maps else table

    def _read(self, row: Mapping[str, Any]) -> Read:
        if PIXELS in row:
            images = as_batch(row[PIXELS])
            if len(images) != 1:
                msg = f"A row holds one image, got {len(images)}."
                raise ValueError(msg)
        else:
            images = as_batch(decode_pixels(_content(row), text(row[PATH]), MOST_PIXELS))
        return Read(self._exported.prepare(images), (images.shape[3], images.shape[2]))


def cores_of_machines() -> list[int]:
    """Count the cores of each machine of the cluster, as it is now."""
    return [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]


def local_model(files: Any, path: Path, digest: str) -> Path:
    """Find the model on this machine: where it lies on the first one, or a copy among the caches, which is kept."""
    if path.is_file() and model_digest(path) == digest:
        return path
    copy = cache_folder("models") / digest.replace(" ", "-") / path.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    with locked(copy):
        if not copy.is_file() or model_digest(copy) != digest:
            for name, content in ray.get(files).items():
                with replacing(copy.with_name(name)) as temporary:
                    temporary.write_bytes(content)
    return copy


def text(name: str | bytes) -> str:
    """Write a name; the bytes of one that is no text are escaped, for Parquet takes text alone."""
    return name.decode(errors="backslashreplace") if isinstance(name, bytes) else str(name)


def _content(row: Mapping[str, Any]) -> bytes:
    """Take, or read, the content of an image file.

    Raises:
        ValueError: It cannot be read.
    """
    if CONTENT in row:
        return row[CONTENT]
    place = row.get(FILE, row[PATH])
    try:
        if "://" not in text(place):
            return Path(os.fsdecode(place)).read_bytes()
        with fsspec.open(text(place), "rb") as file:
            return file.read()
    except OSError as error:
        msg = f"{text(place)} cannot be read: {error.strerror or error}"
        raise ValueError(msg) from error


def _png(shown_map: np.ndarray) -> bytes:
    file = io.BytesIO()
    heat_map_image(shown_map).save(file, "PNG")
    return file.getvalue()
