# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Changes of a checkpoint in place: its thresholds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from anomalib_inp.checkpoints.own import read_checkpoint, write_checkpoint
from anomalib_inp.thresholds.scale import check_thresholds


def set_thresholds(
    checkpoint: str | Path,
    image: float | None = None,
    pixel: float | None = None,
    normalized: bool | None = None,
    category: str | None = None,
) -> dict[str, Any]:
    """Set the thresholds of a checkpoint, in place, and choose between normalised and raw exports.

    Args:
        checkpoint: A checkpoint of ours.
        image: New image threshold, a raw score; ``None`` leaves it, or takes the other one's value where it is missing.
        pixel: New pixel threshold, a raw map value; ``None`` likewise.
        normalized: Whether exports give normalised scores; ``None`` leaves it.
        category: The category whose thresholds are meant; ``None`` for the common ones.

    Returns:
        What the checkpoint says now, and which categories have thresholds of their own.

    Raises:
        ValueError: Not a checkpoint of ours, an unknown category, or a threshold that is no finite number.
    """
    path = Path(checkpoint)
    content = read_checkpoint(path)
    config = content.get("anomalib_post_processor_config")
    if config is None:
        msg = f"{path} is no checkpoint with a post-processor of anomalib-inp."
        raise ValueError(msg)
    given = {name: value for name, value in (("image", image), ("pixel", pixel)) if value is not None}
    check_thresholds(image, pixel)
    if category is None:
        thresholds = _move_common(content["state_dict"], given)
    else:
        thresholds = _move_own(config.get("ranges", {}), category, given)
    if normalized is not None:
        config["enable_normalization"] = normalized
    if (image, pixel, normalized) != (None, None, None):
        write_checkpoint(path, content)
    return {**thresholds, "normalized": config["enable_normalization"], "categories": list(config.get("ranges", {}))}


def _move_common(state: dict[str, torch.Tensor], given: Mapping[str, float]) -> dict[str, float]:
    """Set the common thresholds in a state dict, and tell them."""
    thresholds = {kind: state[f"post_processor._{kind}_threshold"] for kind in ("image", "pixel")}
    for name, value in given.items():
        for kind, threshold in thresholds.items():
            if kind == name or (kind not in given and threshold.isnan()):
                threshold.fill_(value)
    return {kind: float(threshold) for kind, threshold in thresholds.items()}


def _move_own(ranges: dict[str, Any], category: str, given: Mapping[str, float]) -> dict[str, float]:
    """Set the thresholds of a category in the post-processor's description, and tell them.

    Raises:
        ValueError: There are none.
    """
    if category not in ranges:
        msg = f"The checkpoint has no thresholds of the category {category!r}; it has {', '.join(ranges) or 'none'}."
        raise ValueError(msg)
    own = dict(zip(("image", "pixel"), ranges[category], strict=True))
    for name, value in given.items():
        own[name][0] = value
    return {kind: values[0] for kind, values in own.items()}
