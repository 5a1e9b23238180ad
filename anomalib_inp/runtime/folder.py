# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Predictions for a folder of images: scores and pictures, while memory stays the same however many there are."""

import csv
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image

from anomalib_inp.files import IMAGE_SUFFIXES, first_few, image_files
from anomalib_inp.frame import CropBox
from anomalib_inp.images import image_fault, read_pixels
from anomalib_inp.pictures.gallery import gallery
from anomalib_inp.pictures.strip import draw_result, panel_image
from anomalib_inp.runtime.model import ExportedModel, Prepared
from anomalib_inp.runtime.predict import Prediction, interpret

GALLERY_ROWS = 6
THREADS = min(8, os.cpu_count() or 1)
"""Images that are read at a time, and pictures that are drawn at a time."""

T = TypeVar("T")
R = TypeVar("R")


class Item(NamedTuple):
    """An image to predict; label and mask are ``None`` where the folder does not tell them."""

    path: Path
    anomalous: bool | None
    mask: Path | None


class Job(NamedTuple):
    """Images, and where the results go.

    Attributes:
        items: The images.
        root: Folder that their names begin below.
        output: Folder for the results.
        pictures: The picture of each image; none where pictures are not drawn.
    """

    items: list[Item]
    root: Path
    output: Path
    pictures: dict[Item, Path]

    @property
    def sheet(self) -> Path:
        """The gallery."""
        return self.output / "gallery.png"


def find_images(images: Path) -> list[Item]:
    """List an image, or the images below a folder, with the labels and masks that MVTec AD's layout tells.

    Raises:
        FileNotFoundError: There is no such image, or no image in the folder.
    """
    if images.is_file():
        return [Item(images, None, None)]
    if not images.exists():
        msg = f"There is no image or folder {images}."
        raise FileNotFoundError(msg)
    paths = image_files(images)
    if not paths:
        msg = f"Expected an image or a folder of images ({', '.join(IMAGE_SUFFIXES)}), found none in {images}."
        raise FileNotFoundError(msg)
    if not (images / "good").is_dir():
        return [Item(path, None, None) for path in paths]
    truth = images.parent / "ground_truth"
    items = []
    for path in paths:
        kind = path.relative_to(images).parts[0]
        mask = truth / kind / f"{path.stem}_mask.png"
        items.append(Item(path, kind != "good", mask if mask.is_file() else None))
    return items


def plan(images: Path, output: Path, pictures: bool = True) -> Job:
    """Look at all images before the first is predicted, and name their pictures.

    Raises:
        FileNotFoundError: No images.
        ValueError: A file is no readable image, or a picture would replace an image or become one of the next run.
    """
    items = find_images(images)
    if faults := [fault for item in items if (fault := image_fault(item.path))]:
        msg = f"Files are no images that can be used: {first_few(faults)}. Replace, convert or remove them."
        raise ValueError(msg)
    root = images if images.is_dir() else images.parent
    job = Job(items, root, output, {})
    if not pictures:
        return job
    if images.is_dir() and output.resolve().is_relative_to(images.resolve()):
        msg = f"The pictures would become images of the next run. Choose an output outside {images}."
        raise ValueError(msg)
    return job._replace(pictures=_name_pictures(job))


def predict_folder(exported: ExportedModel, job: Job) -> Iterator[tuple[Item, Prediction]]:
    """Predict images one after the other; ``scores.csv``, their pictures and the gallery are written meanwhile.

    Images are read ahead and pictures drawn behind, in threads beside the model.

    Yields:
        Each image with its prediction, in order.

    Raises:
        ValueError: A file is no readable image; of those before it, everything is written.
    """
    waiting: deque[tuple[Item, Image.Image | None]] = deque()
    failed: list[ValueError] = []

    def read(item: Item) -> tuple[Item, Image.Image | None, Prepared]:
        pixels = read_pixels(item.path)
        return item, panel_image(pixels) if job.pictures else None, exported.prepare(pixels)

    def batches() -> Iterator[Prepared]:
        try:
            for item, panel, batch in in_order(readers, read, job.items):
                waiting.append((item, panel))
                yield batch
        except ValueError as error:  # raised when the images before it are done
            failed.append(error)

    def results() -> Iterator[tuple[Item, Image.Image | None, Prediction]]:
        table = csv.writer(file)
        table.writerow(("image", "score", "raw_score", "anomalous"))
        for outputs in exported.stream(batches()):
            item, panel = waiting.popleft()
            prediction = interpret(outputs, exported.metadata)
            verdict = "" if prediction.label is None else int(prediction.label)
            name = item.path.relative_to(job.root)
            table.writerow((name, f"{prediction.score:.6f}", f"{prediction.raw_score:.6f}", verdict))
            yield item, panel, prediction

    def draw(result: tuple[Item, Image.Image | None, Prediction]) -> tuple[Item, Prediction]:
        item, panel, prediction = result
        if panel is not None:
            _draw(item, panel, prediction, job, exported.metadata.crop_box)
        return item, prediction

    job.output.mkdir(parents=True, exist_ok=True)
    with (
        (job.output / "scores.csv").open("w", newline="") as file,
        ThreadPoolExecutor(THREADS) as readers,
        ThreadPoolExecutor(THREADS) as painters,
    ):
        yield from in_order(painters, draw, results())
    if failed:
        raise failed[0]
    if job.pictures:
        gallery([Image.open(picture) for picture in _choose(job)]).save(job.sheet)


def in_order(pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Call a function for each item in the threads of a pool, a few ahead of what is used; results come in order."""
    running: deque[Future[R]] = deque()
    for item in items:
        running.append(pool.submit(function, item))
        if len(running) > 2 * THREADS:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def read_truth(item: Item) -> np.ndarray | None:
    """Read the mask of an image, bool ``(H, W)``; of a normal image, an empty one of any size; ``None`` if unknown."""
    if item.mask is not None:
        return np.array(Image.open(item.mask).convert("L")) > 0
    return np.zeros((1, 1), dtype=bool) if item.anomalous is False else None


def labelled(
    results: Iterable[tuple[Item, Prediction]], crop_box: CropBox
) -> Iterator[tuple[float, bool, np.ndarray, np.ndarray | None]]:
    """Give, of the images whose label is known, what metrics need.

    Yields:
        Raw score, label, raw map ``(h, w)`` and the inspected part of the mask at the same size, if there is one.
    """
    for item, prediction in results:
        if item.anomalous is not None:
            truth = read_truth(item)
            mask = None if truth is None else crop_box.cut(truth, prediction.raw_map.shape)
            yield prediction.raw_score, item.anomalous, prediction.raw_map, mask


def _draw(item: Item, panel: Image.Image, prediction: Prediction, job: Job, crop_box: CropBox) -> None:
    strip = draw_result(
        panel,
        prediction.shown_map,
        pred_mask=prediction.mask,
        gt_mask=read_truth(item),
        crop_box=crop_box,
        score=prediction.score,
        anomalous=prediction.label,
        truth=item.anomalous,
        name=item.path.relative_to(job.root).as_posix(),
    )
    job.pictures[item].parent.mkdir(parents=True, exist_ok=True)
    strip.save(job.pictures[item])


def _name_pictures(job: Job) -> dict[Item, Path]:
    """Name a picture for every image; of images that differ in their suffix alone, all but one keep it."""
    names: dict[Path, Item] = {}
    for item in job.items:
        relative = item.path.relative_to(job.root)
        picture = job.output / relative.with_suffix(".png")
        taken = picture == job.sheet or picture in names
        names[job.output / f"{relative}.png" if taken else picture] = item
    replaced = {item.path.resolve() for item in job.items} & {picture.resolve() for picture in (*names, job.sheet)}
    if replaced:
        msg = f"The pictures would replace images, {min(replaced)} for one. Choose an output outside {job.root}."
        raise ValueError(msg)
    return {item: picture for picture, item in names.items()}


def _choose(job: Job) -> Iterator[Path]:
    """Choose anomalous images of different kinds first, then normal ones."""
    by_kind: dict[str, list[Path]] = {}
    for item, picture in job.pictures.items():
        by_kind.setdefault("~" if item.anomalous is False else picture.parent.name, []).append(picture)
    kinds = sorted(by_kind)
    for position in range(GALLERY_ROWS):
        kind = kinds[position % len(kinds)]
        if position // len(kinds) < len(by_kind[kind]):
            yield by_kind[kind][position // len(kinds)]
