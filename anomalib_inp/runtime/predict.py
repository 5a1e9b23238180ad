# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Predictions of an exported model for a folder of images: pictures, scores and metrics."""

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from anomalib.data.utils import read_image
from PIL import Image
from rich.console import Console
from rich.progress import track

from anomalib_inp.evaluation.functional import seven_metrics
from anomalib_inp.evaluation.report import metrics_table
from anomalib_inp.files import IMAGE_SUFFIXES, first_few, header_fault, image_files
from anomalib_inp.frame import CropBox
from anomalib_inp.pictures.gallery import gallery
from anomalib_inp.pictures.strip import draw_result
from anomalib_inp.runtime.model import ExportedModel

GALLERY_ROWS = 6


class Item(NamedTuple):
    """An image to predict; label and mask are ``None`` where the folder does not tell them."""

    path: Path
    anomalous: bool | None
    mask: Path | None


class Prediction(NamedTuple):
    """What an exported model says of an image.

    Attributes:
        item: The image.
        score: Image score as the model gives it, normalised or raw.
        label: Whether the score is above the threshold; ``None`` without one.
        mask: Pixels above the threshold ``(h, w)``; ``None`` without one.
        raw_score: Image score before normalisation.
        raw_map: Anomaly map before normalisation ``(h, w)``.
        shown_map: Anomaly map as pictures show it: normalised where there is a threshold.
    """

    item: Item
    score: float
    label: bool | None
    mask: np.ndarray | None
    raw_score: float
    raw_map: np.ndarray
    shown_map: np.ndarray


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


def predict_images(
    model: Path,
    images: Path,
    output: Path,
    device: str = "CPU",
    precision: str | None = "f32",
    category: str | None = None,
) -> None:
    """Predict images one by one; see ``anomalib-inp predict --help``.

    Raises:
        FileNotFoundError: No model or no images.
        ValueError: The model is no export of ours or does not know the category, a file is no readable image, or a
            picture would replace an image.
    """
    items = find_images(images)
    if faults := [fault for item in items if (fault := header_fault(item.path))]:
        msg = f"Files are no images that can be used: {first_few(faults)}. Replace, convert or remove them."
        raise ValueError(msg)
    if images.is_dir() and output.resolve().is_relative_to(images.resolve()):
        msg = f"The pictures would become images of the next run. Choose an output outside {images}."
        raise ValueError(msg)
    root, sheet = images if images.is_dir() else images.parent, output / "gallery.png"
    pictures = _name_pictures(items, root, output, sheet)
    exported = ExportedModel(model, device, precision, category=category)
    output.mkdir(parents=True, exist_ok=True)
    predictions = []
    with (output / "scores.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("image", "score", "raw_score", "anomalous"))
        for item, picture in track(list(zip(items, pictures, strict=True)), "Predicting"):
            prediction = predict(exported, item)
            verdict = "" if prediction.label is None else int(prediction.label)
            name = item.path.relative_to(root)
            table.writerow((name, f"{prediction.score:.6f}", f"{prediction.raw_score:.6f}", verdict))
            strip = draw_result(
                Image.open(item.path).convert("RGB"),
                prediction.shown_map,
                pred_mask=prediction.mask,
                gt_mask=read_truth(item),
                crop_box=exported.metadata.crop_box,
                score=prediction.score,
                anomalous=prediction.label,
                truth=item.anomalous,
                name=name.as_posix(),
            )
            picture.parent.mkdir(parents=True, exist_ok=True)
            strip.save(picture)
            predictions.append(prediction)
    console = Console()
    gallery([Image.open(picture) for picture in _choose(pictures, items)]).save(sheet)
    if values := measure(predictions, exported.metadata.crop_box):
        unknown = sum(prediction.item.anomalous is True and prediction.item.mask is None for prediction in predictions)
        if unknown:
            console.print(f"No pixel metrics: {unknown} anomalous images have no mask.")
        console.print(metrics_table({root.resolve().parent.name: values}))
    console.print(f"Scores:   {output / 'scores.csv'}\nPictures: {output}\nGallery:  {sheet}")


def predict(exported: ExportedModel, item: Item) -> Prediction:
    """Predict one image.

    Raises:
        ValueError: The file is no readable image.
    """
    result, metadata = exported(read(item)), exported.metadata
    score, shown_map = float(result.pred_score[0]), result.anomaly_map[0, 0]
    raw_score, raw_map = score, shown_map
    decides = not math.isnan(metadata.image.threshold)
    if metadata.normalized:
        raw_score, raw_map = float(metadata.to_raw(score)), metadata.to_raw(shown_map, "pixel")
    elif decides:
        shown_map = metadata.to_normalized(raw_map, "pixel")
    label = bool(result.pred_label[0]) if decides else None
    mask = result.pred_mask[0, 0] if decides else None
    return Prediction(item, score, label, mask, raw_score, raw_map, shown_map)


def read(item: Item) -> np.ndarray:
    """Read an image as a batch of one, ``(1, 3, H, W)``, float32 in [0, 1].

    Raises:
        ValueError: The file is no readable image.
    """
    try:
        return read_image(item.path, as_tensor=True).numpy()[None]
    except (OSError, SyntaxError) as error:  # Pillow calls a broken PNG a syntax error
        msg = f"{item.path} is no readable image: {error}"
        raise ValueError(msg) from error


def measure(predictions: list[Prediction], crop_box: CropBox) -> dict[str, float]:
    """Compute the seven metrics of predictions whose labels are known; without masks, those of images only."""
    known = [prediction for prediction in predictions if prediction.item.anomalous is not None]
    if not known:
        return {}
    scores, labels = zip(*((prediction.raw_score, prediction.item.anomalous) for prediction in known), strict=True)
    maps = np.stack([prediction.raw_map for prediction in known])
    truths = [read_truth(prediction.item) for prediction in known]
    masks = [crop_box.cut(truth, maps.shape[1:]) for truth in truths if truth is not None]
    pixels = (maps, np.stack(masks)) if len(masks) == len(known) else ()
    return seven_metrics(np.array(scores), np.array(labels), *pixels)


def read_truth(item: Item) -> np.ndarray | None:
    """Read the mask of an image, bool ``(H, W)``; ``None`` where it is not known."""
    if item.mask is not None:
        return np.array(Image.open(item.mask).convert("L")) > 0
    if item.anomalous is False:
        with Image.open(item.path) as image:
            return np.zeros(image.size[::-1], dtype=bool)
    return None


def _name_pictures(items: list[Item], root: Path, output: Path, sheet: Path) -> list[Path]:
    """Name a picture for every image; of images that differ in their suffix alone, all but one keep it."""
    pictures: dict[Path, Item] = {}
    for item in items:
        relative = item.path.relative_to(root)
        picture = output / relative.with_suffix(".png")
        taken = picture == sheet or picture in pictures
        pictures[output / f"{relative}.png" if taken else picture] = item
    replaced = {item.path.resolve() for item in items} & {picture.resolve() for picture in (*pictures, sheet)}
    if replaced:
        msg = f"The pictures would replace images, {min(replaced)} for one. Choose an output outside {root}."
        raise ValueError(msg)
    return list(pictures)


def _choose(pictures: list[Path], items: list[Item]) -> Iterator[Path]:
    """Choose anomalous images of different kinds first, then normal ones."""
    by_kind: dict[str, list[Path]] = {}
    for picture, item in zip(pictures, items, strict=True):
        by_kind.setdefault("~" if item.anomalous is False else picture.parent.name, []).append(picture)
    kinds = sorted(by_kind)
    for position in range(GALLERY_ROWS):
        kind = kinds[position % len(kinds)]
        if position // len(kinds) < len(by_kind[kind]):
            yield by_kind[kind][position // len(kinds)]
