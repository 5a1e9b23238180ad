# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Images of a folder, here or at a URL, predicted by Ray into Parquet, and what is there already left out."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import ray
from pyarrow import parquet as pq

from anomalib_inp.bulk.dataset import BATCH, FILE, KIND, PATH, cores_of_machines, predict_dataset, text
from anomalib_inp.files import is_image_name
from anomalib_inp.results.writer import NOTE
from anomalib_inp.runtime.job import find_images
from anomalib_inp.runtime.model import model_digest

ROWS = "predictions"
"""Folder of the Parquet files in the output."""
LOCAL = "local"
PART = 8 * BATCH
"""Images that are given out together, and rows of a Parquet file; fewer where there are few, so that all have some."""


class Listed(NamedTuple):
    """Images: what they are called below their folder, where each lies, and what it is."""

    names: list[str]
    files: list[bytes]
    kinds: list[str]


class Output:
    """A folder of Parquet files, here or at a URL.

    Args:
        place: The folder.
    """

    def __init__(self, place: str) -> None:
        self.place = place.rstrip("/")
        self.filesystem, self._folder = find(self.place)
        self.rows = f"{self._folder}/{ROWS}"
        self._note = f"{self._folder}/{NOTE}"

    def files(self) -> list[str]:
        """List the Parquet files; those that nobody has finished are removed: a kill may have left them."""
        found = []
        for file in sorted(self.filesystem.glob(f"{self.rows}/*.parquet")):
            try:
                with self.filesystem.open(file, "rb") as opened:
                    pq.read_metadata(opened)
            except pa.ArrowInvalid:
                self.filesystem.rm(file)
            else:
                found.append(file)
        return found

    def done(self) -> set[str]:
        """Name the images that something is said of; rows that say why nothing is are removed, to be tried again."""
        names = set[str]()
        for file in self.files():
            with self.filesystem.open(file, "rb") as opened:
                table = pq.read_table(opened, columns=[PATH, "error"])
            said = pc.is_null(table["error"])
            names.update(table.filter(said)[PATH].to_pylist())
            if table["error"].null_count < len(table):
                self._keep(file, said)
        return names

    def _keep(self, file: str, rows: Any) -> None:
        with self.filesystem.open(file, "rb") as opened:
            kept = pq.read_table(opened).filter(rows)
        unfinished = f"{file}.partial"  # no .parquet: nobody reads it
        with self.filesystem.open(unfinished, "wb") as opened:
            pq.write_table(kept, opened)
        self.filesystem.mv(unfinished, file)

    def note(self, made_by: dict[str, str], resume: bool) -> None:
        """Note what the rows are made by.

        Raises:
            ValueError: There are rows already and nobody wants to go on, or they were made by something else.
        """
        if self.filesystem.glob(f"{self.rows}/*.parquet"):
            if not resume:
                msg = f"{self.place} holds predictions already. --resume true goes on; or choose another output."
                raise ValueError(msg)
            try:
                before = json.loads(self.filesystem.cat_file(self._note))
            except (OSError, ValueError):
                before = None
            if before != made_by:
                msg = (
                    f"{self.place} holds results of another model, threshold, category or precision, or of another "
                    "folder of images. Choose another output."
                )
                raise ValueError(msg)
        self.filesystem.makedirs(self.rows, exist_ok=True)
        self.filesystem.pipe_file(self._note, json.dumps(made_by).encode())

    def count(self) -> Counter[str]:
        """Count the verdicts, and the errors."""
        counted = Counter[str]()
        for file in self.files():
            with self.filesystem.open(file, "rb") as opened:
                table = pq.read_table(opened, columns=["verdict", "error"])
            for verdict, error in zip(*(table[name].to_pylist() for name in ("verdict", "error")), strict=True):
                counted["error" if error is not None else verdict or "no verdict"] += 1
        return counted


def find(place: str) -> tuple[Any, str]:
    """Say what opens a place, and what it is called there.

    Raises:
        ValueError: It needs a package that is not there, such as s3fs, or nothing opens it.
    """
    try:
        filesystem, path = fsspec.url_to_fs(place)
    except (ImportError, ValueError) as error:
        msg = f"{place} cannot be opened: {error}"
        raise ValueError(msg) from error
    return filesystem, path


def list_images(images: str) -> Listed:
    """List an image, or the images below a folder, on this machine or at a URL.

    Raises:
        FileNotFoundError: There is none.
        ValueError: The URL needs a package, such as s3fs, or is of an unknown kind.
    """
    if "://" not in images:
        folder = Path(images)
        items = find_images(folder).items
        root = folder if folder.is_dir() else folder.parent
        return Listed(
            [text(os.fsencode(item.path.relative_to(root))) for item in items],
            [os.fsencode(item.path.absolute()) for item in items],
            [item.kind for item in items],
        )
    filesystem, place = find(images)
    found = [path for path in sorted(filesystem.find(place)) if is_image_name(path.rpartition("/")[2])]
    if not found:
        msg = f"Expected an image or images below {images}, found none."
        raise FileNotFoundError(msg)
    below = place.rstrip("/") + "/"
    names = [path.removeprefix(below) if path != place else path.rpartition("/")[2] for path in found]
    return Listed(names, [filesystem.unstrip_protocol(path).encode() for path in found], [""] * len(found))


def connect(address: str) -> None:
    """Join a cluster of Ray's, or begin one of this machine alone, which tells nobody outside."""
    if ray.is_initialized():
        return
    if address != LOCAL:
        ray.init(address)
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init("local", include_dashboard=False)


def predict_images(images: str, model: Path, output: Output, resume: bool = False, **settings: Any) -> Counter[str]:
    """Predict what is not predicted yet, and write it.

    Args:
        images: An image or a folder, here or at a URL.
        model: An exported model.
        output: Where to.
        resume: Whether to go on where an earlier run has ended; errors are tried again.
        **settings: As :func:`predict_dataset` takes them.

    Returns:
        Verdicts, and errors, of all images.

    Raises:
        FileNotFoundError: No images, or no model.
        ValueError: The output holds something else.
    """
    listed = list_images(images)
    where = images if "://" in images else str(Path(images).resolve())
    made_by = f"{model_digest(model)} {settings.get('category')} {settings.get('precision')}"
    output.note({"made_by": made_by, "images": where}, resume)
    done = output.done() if resume else set()
    left = [place for place, name in enumerate(listed.names) if name not in done]
    if left:
        tables = list(_tables(listed, left, max(1, sum(cores_of_machines()))))
        predicted = predict_dataset(ray.data.from_arrow(tables), model, **settings)
        # reading and writing wait for the disk, and would wait for actors that have all CPUs
        predicted.write_parquet(output.rows, filesystem=output.filesystem, ray_remote_args={"num_cpus": 0})
    return output.count()


def _tables(listed: Listed, left: list[int], cores: int) -> Iterator[pa.Table]:
    """Make the parts that images are given out in: each is written by a process that takes a second to start."""
    length = min(PART, max(BATCH, len(left) // (2 * cores)))
    for first in range(0, len(left), length):
        part = left[first : first + length]
        columns: list[list[Any]] = [[values[place] for place in part] for values in listed]
        yield pa.table(dict(zip((PATH, FILE, KIND), columns, strict=True)))
