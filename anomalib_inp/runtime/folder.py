# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Predictions for a folder of images: scores and pictures, while memory stays the same however many there are."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from anomalib_inp.files import replacing
from anomalib_inp.frame import CropBox
from anomalib_inp.images import read_pixels
from anomalib_inp.pictures.gallery import gallery
from anomalib_inp.pictures.strip import draw_result, panel_of
from anomalib_inp.results.image_statistics import ImageStatistics, measure_image
from anomalib_inp.results.score_table import GOOD
from anomalib_inp.results.writer import ResultFiles, write_heat_map
from anomalib_inp.runtime.ahead import THREADS, Read, in_order, predict_ahead
from anomalib_inp.runtime.job import Item, Job
from anomalib_inp.runtime.metadata import Metadata
from anomalib_inp.runtime.model import ExportedModel
from anomalib_inp.runtime.predict import Prediction, fault_of, record_of

GALLERY_ROWS = 6
Observer = Callable[[Prediction, ImageStatistics], None]


class _Kept(NamedTuple):
    """What is kept of an image that was read: for the picture, and what it is like."""

    panel: Image.Image | np.ndarray | None
    statistics: ImageStatistics | None


def predict_folder(
    exported: ExportedModel, job: Job, strict: bool = False, observe: Observer | None = None
) -> Iterator[tuple[Item, Prediction]]:
    """Predict images one after the other; records, rows and pictures are written meanwhile.

    Images are read ahead and pictures drawn behind, in threads beside the model. One that cannot be read gets a row
    that says why, and is counted among the faults of the job.

    Args:
        exported: The model.
        job: The images.
        strict: Whether an image that cannot be read ends everything.
        observe: Told of each image that is not known to be anomalous, what it is like and what is said of it.

    Yields:
        Each image with its prediction, in order.

    Raises:
        ValueError: If strict: a file is no readable image; of those before it, everything is written.
    """
    metadata = exported.metadata
    ended: list[ValueError] = []

    def read(item: Item) -> Read:
        pixels = read_pixels(item.path)
        if item.mask is not None:
            check_mask(item.mask, pixels)
        panel = panel_of(pixels) if job.pictures else None
        statistics = None if observe is None else measure_image(pixels)
        return Read(exported.prepare(pixels), (pixels.shape[1], pixels.shape[0]), _Kept(panel, statistics))

    def results() -> Iterator[tuple[Item, Image.Image | np.ndarray | None, Prediction]]:
        for item, kept, said in predict_ahead(exported, job.items, read):
            if isinstance(said, ValueError):
                fault = said if str(item.path) in str(said) else ValueError(f"{item.path}: {said}")
                job.faults.append(str(fault))
                files.write(fault_of(job.name(item), fault, metadata, job.digest, item.kind))
                if strict:
                    ended.append(fault)
                    return
                continue
            record = record_of(job.name(item), said, metadata, job.digest, item.kind)
            job.raw_scores[record["path"]] = said.raw_score
            files.write(record)
            if observe is not None and kept.statistics is not None and not item.anomalous:
                observe(said, kept.statistics)
            yield item, kept.panel, said

    def draw(result: tuple[Item, Image.Image | np.ndarray | None, Prediction]) -> tuple[Item, Prediction]:
        item, panel, prediction = result
        if panel is not None:
            _draw(item, panel, prediction, job, metadata)
        return item, prediction

    going_on = bool(job.raw_scores)
    job.note_down()
    with ResultFiles(job.output, append=going_on) as files, ThreadPoolExecutor(THREADS) as painters:
        yield from in_order(painters, draw, results())
    if ended:
        raise ended[0]


def draw_gallery(job: Job) -> None:
    """Lay the most suspicious images out on one sheet: of every kind its own, the normal ones last."""
    if chosen := list(_choose(job)):
        with replacing(job.sheet) as temporary:
            gallery([Image.open(picture) for picture in chosen]).save(temporary)


def read_truth(mask: Path) -> np.ndarray:
    """Read a mask, bool ``(H, W)``.

    Raises:
        ValueError: It cannot be read.
    """
    try:
        with Image.open(mask) as image:
            return np.array(image.convert("L")) > 0
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        msg = f"{mask} is no readable mask: {error}"
        raise ValueError(msg) from error


def check_mask(mask: Path, pixels: np.ndarray) -> None:
    """Compare a mask with its image ``(H, W, 3)``.

    Raises:
        ValueError: It cannot be read, or has another size.
    """
    truth = read_truth(mask)
    if truth.shape != pixels.shape[:2]:
        (rows, columns), (height, width) = truth.shape, pixels.shape[:2]
        msg = f"The mask {mask} has {columns} x {rows} pixels, its image {width} x {height}."
        raise ValueError(msg)


def truth_of(item: Item) -> np.ndarray | None:
    """Read where the defect is, bool ``(H, W)``; in a normal image nowhere, at any size; ``None`` if it is unknown."""
    if item.mask is not None:
        return read_truth(item.mask)
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
            truth = truth_of(item)
            mask = None if truth is None else crop_box.cut(truth, prediction.raw_map.shape)
            yield prediction.raw_score, item.anomalous, prediction.raw_map, mask


def _draw(item: Item, panel: Image.Image | np.ndarray, prediction: Prediction, job: Job, metadata: Metadata) -> None:
    write_heat_map(job.output, job.name(item), prediction.shown_map)  # first: the picture says that both are there
    truth = {"gt_mask": truth_of(item), "truth": item.anomalous}
    save_strip(job.pictures[str(item.path)], panel, prediction, metadata, name=job.name(item), **truth)


def save_strip(
    picture: Path, image: Image.Image | np.ndarray, prediction: Prediction, metadata: Metadata, **known: Any
) -> None:
    """Draw what is said of an image, and write it.

    Args:
        picture: The file.
        image: The image.
        prediction: What is said of it.
        metadata: What the model says of itself.
        **known: Its name and what it really is, as :func:`draw_result` takes them.
    """
    strip = draw_result(
        image,
        prediction.shown_map,
        pred_mask=prediction.mask,
        crop_box=metadata.crop_box,
        places=metadata.places(prediction.shown_map.shape),
        score=prediction.score,
        raw_score=prediction.raw_score,
        anomalous=prediction.label,
        **known,
    )
    picture.parent.mkdir(parents=True, exist_ok=True)
    with replacing(picture) as temporary:
        strip.save(temporary)


def _choose(job: Job) -> Iterator[Path]:
    """Choose the images of the highest raw scores, of anomalous ones of different kinds first, then of normal ones."""
    by_kind: dict[str, list[tuple[float, Path]]] = {}
    labels = (job.root / GOOD).is_dir()
    for path, picture in job.pictures.items():
        name = Path(path).relative_to(job.root).as_posix()
        if name in job.raw_scores and picture.is_file():
            kind = name.partition("/")[0] if labels and "/" in name else ""
            by_kind.setdefault("~" if kind == GOOD else kind, []).append((-job.raw_scores[name], picture))
    kinds = sorted(by_kind)
    for pictures in by_kind.values():
        pictures.sort()
    for position in range(GALLERY_ROWS if kinds else 0):
        kind = kinds[position % len(kinds)]
        if position // len(kinds) < len(by_kind[kind]):
            yield by_kind[kind][position // len(kinds)][1]
