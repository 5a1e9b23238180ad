# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Commands that show or change a model in place: its map, its thresholds, what it inspects."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path


def choose_map(checkpoint: Path, map: str | None = None) -> None:  # noqa: A002
    """Show or set the anomaly map of a checkpoint, in place: anomalib export takes it from there.

    Args:
        checkpoint: The checkpoint of a finished training.
        map: Name of the map; its thresholds are not chosen anew.
    """
    from anomalib_inp.models.convert import set_map

    print(f"Map: {set_map(checkpoint, map)}")


def threshold(
    model: Path,
    image: float | None = None,
    pixel: float | None = None,
    normalized: bool | None = None,
    category: str | None = None,
    false_alarms: float | None = None,
    confidence: float | None = None,
    images: Path | None = None,
) -> None:
    """Show or set the thresholds of a checkpoint (.ckpt) or an exported model (.xml, .onnx), in place.

    By hand, or by the false alarms that are allowed: "threshold MODEL --false_alarms 0.02" takes the lowest image
    threshold that at most 2 % of the normal validation images are above, and says what that promises of those to come.

    Args:
        model: The file.
        image: New image threshold, a raw score.
        pixel: New pixel threshold, a raw value of the anomaly map.
        normalized: Of a checkpoint: whether what is exported from it gives normalised scores, or raw ones (false).
        category: Of a model of several categories: the one whose thresholds are meant; by default the common ones.
        false_alarms: Choose the image threshold so that at most this share of the normal images is above it.
        confidence: Choose it so that this share holds for images to come, as surely as this, such as 0.95; refused
            where there are too few images to promise it.
        images: Folder of normal images to choose it from; by default the validation images, whose scores the file
            keeps. Of a test folder in the layout of MVTec AD, "good" counts.
    """
    if false_alarms is None and (confidence, images) != (None, None):
        sys.exit("anomalib-inp: --confidence and --images belong to --false_alarms: --false_alarms 0.02, for example.")
    if false_alarms is not None:
        if image is not None:
            sys.exit("anomalib-inp: --image sets the threshold that --false_alarms would choose: give one of them.")
        image = _choose_threshold(model, category, false_alarms, confidence, images)
    if model.suffix == ".ckpt":
        from anomalib_inp.checkpoints import edit as checkpoint

        shown = checkpoint.set_thresholds(model, image, pixel, normalized, category)
    elif normalized is not None:
        sys.exit("anomalib-inp: --normalized is for checkpoints: set it there and export again.")
    else:
        from anomalib_inp.runtime import edit as export

        shown = export.set_thresholds(model, image, pixel, category)
    print(f"Image threshold: {shown.image:.6g}\nPixel threshold: {shown.pixel:.6g}")
    print(f"Scores: {'normalised' if shown.normalized else 'raw'}")
    if category is None and shown.categories:
        print(f"With --category, those of: {', '.join(shown.categories)}")


def _choose_threshold(
    model: Path, category: str | None, false_alarms: float, confidence: float | None, folder: Path | None
) -> float:
    """Choose an image threshold by false alarms, and say what it promises."""
    from rich.console import Console
    from rich.progress import track

    from anomalib_inp.files import first_few
    from anomalib_inp.images import image_fault
    from anomalib_inp.results.score_table import GOOD
    from anomalib_inp.runtime.job import find_images
    from anomalib_inp.runtime.metadata import read_metadata
    from anomalib_inp.runtime.predict import raw_scores
    from anomalib_inp.thresholds.rates import CONFIDENCE, Rate, allowed_alarms, images_needed, operating_point

    score: Callable[[Path, list[Path]], Iterable[float]] = raw_scores
    if model.suffix == ".ckpt":
        from anomalib_inp.checkpoints.edit import kept_scores

        kept, scale, limit = kept_scores(model, category)
    else:
        metadata = read_metadata(model)
        metadata = metadata if category in {None, metadata.category} else metadata.of_category(str(category))
        kept, scale, limit = metadata.validation, metadata.image, metadata.image_limit
    if folder is None:
        normal, whose = kept.normal, "normal validation images"
        if not normal:
            sys.exit(f"anomalib-inp: {model} keeps no scores of normal validation images: give some by --images DIR.")
    else:
        if model.suffix == ".ckpt":
            from anomalib_inp.models import raw_scores as of_checkpoints

            score = of_checkpoints.raw_scores
        items = find_images(folder).items
        kind = GOOD if any(item.kind for item in items) else ""  # or a folder without kinds
        paths = [item.path for item in items if item.kind == kind]
        allowed_alarms(len(paths), false_alarms, confidence)  # before they are scored
        if faults := [fault for path in paths if (fault := image_fault(path))]:
            sys.exit(f"anomalib-inp: Files are no images that can be used: {first_few(faults)}. Remove them.")
        scores = track(score(model, paths), "Scoring", len(paths), console=Console())
        normal, whose = list(scores), f"normal images in {folder}"
    point = operating_point(normal, false_alarms, confidence, float(scale.span))
    sure = CONFIDENCE if confidence is None else confidence
    bound = point.false_alarms.upper_bound(sure)
    print(
        f"Of {point.false_alarms.total} {whose}, {point.false_alarms.hits} are above it. Of those to come, at most "
        f"{bound:.2%} are, with a confidence of {sure:.0%}."
    )
    if bound > false_alarms:
        needed = images_needed(false_alarms, sure)
        print(f"To promise {false_alarms:.2%} takes at least {needed} normal images, and --confidence {sure}.")
    if folder is None and kept.anomalous:
        caught = Rate(sum(score > point.threshold for score in kept.anomalous), len(kept.anomalous))
        print(f"Anomalous validation images above it: {caught}.")
    return point.threshold - scale.shift(limit)  # where a sensitivity moves what is in force


def inspect(model: Path, mask: str | None = None, smallest_area: float | None = None) -> None:
    """Show or set what a checkpoint (.ckpt) or an exported model (.xml, .onnx) inspects, in place.

    Places that are black in a mask count in no score, no region and no metric, whoever uses the model.

    Args:
        model: The file.
        mask: An image drawn over the whole image, white where to look; "" for everywhere again. Thresholds stay as they
            are, and are best chosen anew.
        smallest_area: Pixels of the image that a region has at least; smaller ones are not listed, nor drawn.
    """
    if model.suffix == ".ckpt":
        from anomalib_inp.checkpoints import edit as checkpoint

        before, now = checkpoint.set_inspection(model, mask, smallest_area)
    else:
        from anomalib_inp.runtime import edit as export

        before, now = export.set_inspection(model, mask, smallest_area)
    pixels = now.pixels
    print(f"Inspected: {'everything' if pixels is None else f'{pixels.mean():.1%} of the image'}")
    print(f"Smallest area: {now.smallest_area:g} pixels")
    if before.mask != now.mask:
        print(
            "The thresholds were chosen with another mask: choose them anew, threshold MODEL --false_alarms 0.02 "
            "--images DIR, or anomalib validate."
        )
