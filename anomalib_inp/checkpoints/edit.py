# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Changes of a checkpoint in place: its thresholds, and what it inspects."""

from pathlib import Path
from typing import Any

from anomalib_inp.checkpoints.own import check_map, read_checkpoint, write_checkpoint
from anomalib_inp.files import in_place
from anomalib_inp.results.inspection import Inspection
from anomalib_inp.thresholds.scale import NO_SCORES, Scale, Thresholds, ValidationScores, buffer_names, move


@in_place
def set_thresholds(
    checkpoint: str | Path,
    image: float | None = None,
    pixel: float | None = None,
    normalized: bool | None = None,
    category: str | None = None,
) -> Thresholds:
    """Set the thresholds of a checkpoint, in place, and choose between normalised and raw exports.

    Args:
        checkpoint: A checkpoint of ours.
        image: New image threshold, a raw score; ``None`` leaves it, or takes the other one's value where it is missing.
        pixel: New pixel threshold, a raw map value; ``None`` likewise.
        normalized: Whether exports give normalised scores; ``None`` leaves it.
        category: The category whose thresholds are meant; ``None`` for the one that was chosen for the model, if one
            was, else the common ones.

    Returns:
        What the checkpoint says now: the thresholds of the category, or the common ones.

    Raises:
        ValueError: Not a checkpoint of ours, an unknown category, or a threshold that is no finite number.
    """
    path = Path(checkpoint)
    content = read_checkpoint(path)
    config = _config_of(path, content)
    category = category or config.get("category")
    if category is None:
        moved = common_thresholds(content, image, pixel)
    else:
        moved = move(_ranges_of(config, category), image, pixel)
        for values, scale in zip(config["ranges"][category], moved, strict=True):
            values[:] = scale
    if normalized is not None:
        config["enable_normalization"] = normalized
    if (image, pixel, normalized) != (None, None, None):
        write_checkpoint(path, content)
    first, second = moved
    return Thresholds(first.threshold, second.threshold, config["enable_normalization"], list(config.get("ranges", {})))


@in_place
def set_inspection(
    checkpoint: str | Path, mask: str | Path | bytes | None = None, smallest_area: float | None = None
) -> tuple[Inspection, Inspection]:
    """Change what a checkpoint inspects, in place.

    Of another mask, the thresholds stay as they are; the scores of validation images that it keeps go, since they were
    of other places.

    Args:
        checkpoint: A checkpoint of ours.
        mask: An image file or the content of one, white where to look; an empty text for everywhere; ``None`` leaves
            it.
        smallest_area: Pixels of the image that a region has at least; ``None`` leaves it.

    Returns:
        What it inspected before, and what it does now.

    Raises:
        ValueError: Not a checkpoint of ours, or a mask that leaves nothing.
    """
    path = Path(checkpoint)
    content = read_checkpoint(path)
    config = _config_of(path, content)
    before = Inspection(**content.get("inspection", {}))
    now = before.changed(mask, smallest_area)
    if now.mask != before.mask:
        config.update(validation=NO_SCORES._asdict(), category_validation={})
    if now != before:
        content["inspection"] = dict(now._asdict())
        write_checkpoint(path, content)
    return before, now


def _config_of(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    config = content.get("anomalib_post_processor_config")
    if config is None:
        msg = f"{path} is no checkpoint with a post-processor of anomalib-inp."
        raise ValueError(msg)
    return config


def _ranges_of(config: dict[str, Any], category: str) -> tuple[Scale, Scale]:
    ranges = config.get("ranges", {})
    if category not in ranges:
        msg = f"The checkpoint has no thresholds of the category {category!r}; it has {', '.join(ranges) or 'none'}."
        raise ValueError(msg)
    image, pixel = ranges[category]
    return Scale(*image), Scale(*pixel)


def kept_scores(checkpoint: str | Path, category: str | None = None) -> tuple[ValidationScores, Scale, float]:
    """Read the scores of validation images that a checkpoint keeps.

    Args:
        checkpoint: A checkpoint of ours.
        category: Those of this category; ``None`` for the one that was chosen for the model, if one was, else of all.

    Returns:
        The scores, the scale that is chosen from them, and the normalised score above which an image is anomalous.

    Raises:
        ValueError: Not a checkpoint of ours, an unknown category, or thresholds of another map than is shown.
    """
    path = Path(checkpoint)
    content = read_checkpoint(path)
    config, scale = _config_of(path, content), common_thresholds(content)[0]
    check_map(path, content)
    category, kept = category or config.get("category"), config.get("validation")
    if category is not None:
        kept, scale = config.get("category_validation", {}).get(category), _ranges_of(config, category)[0]
    return (NO_SCORES if kept is None else ValidationScores(**kept)), scale, 1 - config["image_sensitivity"]


def common_thresholds(
    content: dict[str, Any], image: float | None = None, pixel: float | None = None
) -> tuple[Scale, Scale]:
    """Set the common thresholds in the content of a checkpoint.

    Args:
        content: What was read from the file.
        image: New image threshold, a raw score; ``None`` leaves it.
        pixel: New pixel threshold, a raw map value; ``None`` leaves it.

    Returns:
        The scales of scores and of pixels that it holds now.
    """
    state = content["state_dict"]
    stored = [[state[f"post_processor.{name}"] for name in buffer_names(kind)] for kind in ("image", "pixel")]
    for buffers, scale in zip(stored, move((Scale(*stored[0]), Scale(*stored[1])), image, pixel), strict=True):
        # In place: model.ckpt holds the post-processor a second time, among the callbacks, by the same tensors.
        for buffer, value in zip(buffers, scale, strict=True):
            buffer.fill_(value)
    first, second = (Scale(*map(float, buffers)) for buffers in stored)  # as they are in 32 bits
    return first, second
