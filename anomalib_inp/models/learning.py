# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Learns from false alarms: their tokens are remembered, in a checkpoint and in its exports, and can be forgotten."""

import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from anomalib.models.components import AnomalibModule
from torch import Tensor

from anomalib_inp.checkpoints.edit import common_thresholds
from anomalib_inp.checkpoints.own import check_map, read_checkpoint, replacing_checkpoint
from anomalib_inp.data.deep import read_tensor
from anomalib_inp.files import file_digest, locked
from anomalib_inp.models.raw_scores import raw_score
from anomalib_inp.models.registry import load_model
from anomalib_inp.pictures.visualizer import short_name
from anomalib_inp.runtime.edit import ExportedMemory
from anomalib_inp.scoring.memory import NormalMemory, remembered
from anomalib_inp.thresholds.choose import image_scale
from anomalib_inp.thresholds.scale import Scale

SHARE = 0.1
"""Share of an image's tokens that is learnt: those farthest from what is known, at each depth. The rest is known."""


class Learnt(NamedTuple):
    """What a checkpoint has learnt.

    Attributes:
        images: Names of all images that were learnt, in this order.
        changed: How many of them are new, or were forgotten now.
        tokens: Tokens that are remembered at each depth.
        threshold: The common image threshold; NaN where there is none.
        before: The common image threshold before.
        kept: Why it was not chosen anew; empty where it was.
        alarming: Names of images that were learnt and alarm nevertheless, by the threshold in force.
    """

    images: list[str]
    changed: int
    tokens: int
    threshold: float
    before: float
    kept: str
    alarming: list[str]


def learn(
    checkpoint: str | Path, images: Sequence[Path] = (), exports: Sequence[Path] = (), forget: bool = False
) -> Learnt:
    """Remember what is unlike all that is known in images that are normal, or forget what was learnt.

    The common image threshold is chosen anew from the scores of the validation images and of those that were learnt;
    one that was set by hand, pixel thresholds, those of categories, and the statistics of the memory stay. All files
    are changed, or none.

    Args:
        checkpoint: A checkpoint of ours with a memory; it is changed in place.
        images: The images.
        exports: Exports of the same checkpoint, ``.xml`` or ``.onnx``; they are changed too.
        forget: Take these images out again instead; without images, all that was learnt.

    Raises:
        ValueError: The checkpoint has no memory, or another map than its thresholds are of; an image cannot be read or
            to be forgotten was never learnt, or an export is of another checkpoint.
    """
    path = Path(checkpoint)
    with ExitStack() as stack:
        for file in sorted({path.resolve(), *(Path(export).resolve() for export in exports)}):
            stack.enter_context(locked(file))
        return _learn(path, images, exports, forget)


def _learn(path: Path, images: Sequence[Path], exports: Sequence[Path], forget: bool) -> Learnt:
    content, model = read_checkpoint(path), load_model(path).eval()
    memory = model.model.head_of(NormalMemory)
    if memory is None or not memory.tokens.numel():
        msg = f"{path} remembers nothing that could be added to: train TokenMemory, or another model with memory true."
        raise ValueError(msg)
    check_map(path, content)
    known, old = list(content.get("learnt", [])), memory.tokens.clone()
    exported = [ExportedMemory(file, old.numpy()) for file in exports]  # before the images are looked at
    if forget:
        left = _without(known, images)
        memory.tokens = _keep(old, known, left)
        changed = len(known) - len(left)
    else:
        new = _remember(model, images, {entry["digest"] for entry in known})
        left = known + [{**entry, "score": raw_score(model, image)} for image, entry in new]
        changed = len(new)
    (name,) = (key for key in content["state_dict"] if key.endswith(".tokens"))
    content["state_dict"][name] = memory.tokens
    content["learnt"] = left
    before = common_thresholds(content)[0].threshold
    was_chosen, threshold = (_threshold(content, entries) for entries in (known, left))
    kept = ""
    if threshold is None or was_chosen is None:
        kept = "the checkpoint keeps no validation scores to choose from"
    elif not math.isclose(before, was_chosen, rel_tol=1e-6, abs_tol=1e-7):
        kept = "it was set by hand"
    after = before if kept else common_thresholds(content, image=threshold)[0].threshold
    with ExitStack() as stack:
        for each in exported:
            stack.enter_context(each.replacing(memory.tokens.numpy(), None if kept else after))
        stack.enter_context(replacing_checkpoint(path, content))
    in_force = _in_force(content)
    alarming = [entry["image"] for entry in left if entry["score"] > in_force]
    names = [entry["image"] for entry in left]
    return Learnt(names, changed, memory.tokens.shape[1], after, before, kept, alarming)


def _in_force(content: dict[str, Any]) -> float:
    """Raw score above which images of no known category alarm: by the chosen category's scale, or the common one."""
    config, scale = content.get("anomalib_post_processor_config", {}), common_thresholds(content)[0]
    chosen = config.get("ranges", {}).get(config.get("category"))
    scale = scale if chosen is None else Scale(*chosen[0])
    return scale.in_force(1 - config.get("image_sensitivity", 0.5))


@torch.no_grad()
def _remember(model: AnomalibModule, images: Sequence[Path], known: set[str]) -> list[tuple[Path, dict[str, Any]]]:
    """Remember tokens of images that are not known yet, each beside those before it; say of each what they are."""
    memory, transform, found = model.model.head_of(NormalMemory), model.pre_processor.transform, []
    for path in images:
        digest = file_digest(path)
        if digest in known:
            continue
        known = known | {digest}
        image = transform(read_tensor(path).unsqueeze(0))
        parts = [model.model.network.encoder(part) for part in model.model.view.cut(image)]
        depths = range(len(parts[0].depths))
        distances = torch.cat(
            [torch.stack(memory.distances(part, depths)).flatten(1) for part in parts], dim=1
        )  # (K, N)
        farthest = distances.topk(math.ceil(SHARE * distances.shape[1]), dim=1).indices
        chosen = [
            torch.cat([part.depths[depth].flatten(0, 1) for part in parts])[places]
            for depth, places in zip(depths, farthest, strict=True)
        ]
        memory.tokens = torch.cat([memory.tokens, remembered(torch.stack(chosen))], dim=1)
        entry = {"image": _name(path), "digest": digest, "tokens": farthest.shape[1]}
        found.append((path, entry))
    return found


def _without(known: list[dict[str, Any]], images: Sequence[Path]) -> list[dict[str, Any]]:
    """Entries that are left without some images, which are found by their content, or else by their names."""
    left = list(known) if images else []
    for path in images:
        digest, name = file_digest(path) if path.is_file() else None, _name(path)
        found = [each for each in left if each["digest"] == digest] or [each for each in left if each["image"] == name]
        if len(found) != 1:
            names = ", ".join(each["image"] for each in known) or "nothing"
            what = "has the name of several that were learnt" if found else "was never learnt"
            msg = f"{path} {what}; what was: {names}."
            raise ValueError(msg)
        left.remove(found[0])
    return left


def _name(path: Path) -> str:
    """Name an image in text, which the name of a file need not be."""
    return os.fsencode(short_name(str(path.absolute()))).decode("utf-8", "backslashreplace")


def _keep(tokens: Tensor, known: list[dict[str, Any]], left: list[dict[str, Any]]) -> Tensor:
    """Drop the tokens of what was learnt and is not left; those of the training come first."""
    counts = [entry["tokens"] for entry in known]
    base, *learnt = tokens.split([tokens.shape[1] - sum(counts), *counts], dim=1)
    kept = [part for part, entry in zip(learnt, known, strict=True) if entry in left]
    return torch.cat([base, *kept], dim=1)


def _threshold(content: dict[str, Any], learnt: list[dict[str, Any]]) -> float | None:
    """Choose the image threshold from the kept scores and those of what is learnt; ``None`` where none are kept."""
    config = content.get("anomalib_post_processor_config", {})
    validation = config.get("validation", {"normal": [], "anomalous": []})
    normal, anomalous = [*validation["normal"], *(entry["score"] for entry in learnt)], validation["anomalous"]
    if not validation["normal"]:
        return None
    scores, labels = torch.tensor(normal + anomalous), torch.tensor([0] * len(normal) + [1] * len(anomalous))
    return float(image_scale(scores, labels, config["normal_image_quantile"]).threshold)
