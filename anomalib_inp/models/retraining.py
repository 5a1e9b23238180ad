# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Trains again with false alarms among the normal images, and puts the old model beside the new one."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from anomalib.engine import Engine
from lightning import seed_everything

from anomalib_inp.checkpoints.edit import kept_scores
from anomalib_inp.checkpoints.own import find_encoder, read_checkpoint
from anomalib_inp.checkpoints.writing import FINISHED
from anomalib_inp.data.noted import NotedData
from anomalib_inp.files import file_digest, first_few
from anomalib_inp.images import read_pixels
from anomalib_inp.models.learning import learn
from anomalib_inp.models.raw_scores import raw_scores
from anomalib_inp.models.registry import model_class
from anomalib_inp.results.feedback import read_feedback
from anomalib_inp.results.inspection import Inspection
from anomalib_inp.results.score_table import FILE, GOOD, Row, write_rows
from anomalib_inp.thresholds.rates import Rate

VALIDATION, TEST, ALARMS, MISSED = "validation", "test", "feedback: false alarms", "feedback: missed"
Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]
Digest = Callable[[Path], str]


class Beside(NamedTuple):
    """Old and new model on the same images.

    Attributes:
        checkpoint: The new one.
        added: False alarms that were added.
        left_out: Why others were not.
        thresholds: Image thresholds of the old and the new one.
        rates: By set and kind: images above the threshold, of the old and the new one.
        tables: Tables of scores of the old and the new one, for ``compare``.
    """

    checkpoint: Path
    added: int
    left_out: list[str]
    thresholds: tuple[float, float]
    rates: dict[str, tuple[Rate, Rate]]
    tables: tuple[Path, Path]


def retrain(
    checkpoint: Path,
    feedback: Path,
    output: Path,
    *,
    extend: bool = False,
    images: Path | None = None,
    seed: int = 0,
    accelerator: str = "auto",
    progress: Progress | None = None,
) -> Beside:
    """Train again with false alarms among the training images; validation and test images stay what they were.

    Args:
        checkpoint: The finished checkpoint of a training.
        feedback: Folder that false alarms and missed defects are kept in.
        output: Folder for the new one.
        extend: Add the false alarms to what a model with a memory remembers, instead of a training.
        images: Folder that the images of the training are below now, where they were moved.
        seed: Seed of the training.
        accelerator: What trains, as Lightning calls it.
        progress: What shows how far it is.

    Raises:
        ValueError: The checkpoint lists no images, or there is no false alarm that could be added.
        FileNotFoundError: There is no such feedback.
        DataError: Images of the training are gone.
    """
    content = read_checkpoint(checkpoint)
    if not content.get("images"):
        msg = (
            f"{checkpoint} does not say which images it was trained on: it is of an earlier version, or its data do "
            "not list them. Train anew, with the false alarms in the folder of the normal images."
        )
        raise ValueError(msg)
    if not feedback.is_dir():
        msg = f"There is no folder {feedback}: the station and anomalib-inp feedback keep images in one."
        raise FileNotFoundError(msg)
    alarms, missed = (_kept(feedback, mistake) for mistake in ("false_alarm", "missed"))
    known = NotedData(content["images"], root=images)
    digest = cache(file_digest)
    usable, left_out = _usable(alarms, known, digest)
    if not usable:
        said = f" ({first_few(left_out)})" if left_out else ""
        msg = f"There is no false alarm in {feedback} that could be added{said}: anomalib-inp feedback says what is."
        raise ValueError(msg)
    output.mkdir(parents=True, exist_ok=True)
    if extend:
        new = Path(shutil.copy(checkpoint, output / FINISHED))
        learn(new, usable)
    else:
        new = _train(checkpoint, content, NotedData(content["images"], usable, images), output, seed, accelerator)
    sets = _sets(known, alarms, missed, usable, digest)
    old_rows, new_rows = (
        _rows(model, sets, (lambda items, _: items) if progress is None else partial(_told, progress, name))
        for name, model in (("old", checkpoint), ("new", new))
    )
    tables = []
    for name, rows in (("old", old_rows), ("new", new_rows)):
        (output / name).mkdir(exist_ok=True)
        tables.append(output / name / FILE)
        write_rows(tables[-1], rows)
    rates = {
        kind: (_rate(old_rows, kind), _rate(new_rows, kind)) for kind in dict.fromkeys(row.kind for row in old_rows)
    }
    thresholds = (_in_force(checkpoint), _in_force(new))
    return Beside(new, len(usable), left_out, thresholds, rates, (tables[0], tables[1]))


def _train(
    checkpoint: Path, content: dict[str, Any], data: NotedData, output: Path, seed: int, accelerator: str
) -> Path:
    """Train a model of the same arguments, as many epochs."""
    arguments = dict(content["hyper_parameters"])
    if found := find_encoder(content, checkpoint):
        arguments["encoder_weights"] = found
    seed_everything(seed, verbose=False)
    model = model_class(content.get("model", "InpFormer"))(**{**arguments, "region_of_interest": None})
    model.inspect(Inspection(**content.get("inspection", {})))
    epochs = max(1, int(content["epoch"]))
    engine = Engine(
        default_root_dir=output,
        max_epochs=epochs,
        check_val_every_n_epoch=epochs,
        accelerator=accelerator,
        logger=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    engine.fit(model, datamodule=data)
    return Path(engine.trainer.checkpoint_callback.dirpath) / FINISHED


def _kept(feedback: Path, mistake: str) -> list[Path]:
    return [feedback / said["file"] for said in read_feedback(feedback) if said["mistake"] == mistake]


def _usable(alarms: list[Path], data: NotedData, digest: Digest) -> tuple[list[Path], list[str]]:
    """Leave out what would be both trained and validated on, or is trained on already, and what is gone."""
    known = {digest(path): "a validation image" for path, _ in data.images("val")}
    known |= {digest(path): "a training image" for path, _ in data.images("train")}
    usable, left_out = [], []
    for path in alarms:
        why = known.get(digest(path)) if path.is_file() else "gone"
        why = why or _fault_of(path)
        if why is None:
            usable.append(path)
        else:
            left_out.append(f"{path.name} is {why}")
    return usable, left_out


def _fault_of(path: Path) -> str | None:
    try:
        read_pixels(path)
    except ValueError:
        return "no image that can be read"
    return None


def _sets(
    data: NotedData, alarms: list[Path], missed: list[Path], usable: list[Path], digest: Digest
) -> list[tuple[Path, str, str]]:
    """List what both models are tried on: path, name, and set with the kind behind it; each image once."""
    sets = [(path, VALIDATION, kind) for path, kind in data.images("val")]
    sets += [(path, TEST, kind) for path, kind in data.images("test")]
    sets += [(path, ALARMS, GOOD) for path in alarms] + [(path, MISSED, "defect") for path in missed]
    trained = set(map(digest, usable))
    seen: dict[str, str] = {}
    listed = []
    for path, group, kind in sets:
        content = digest(path) if path.is_file() else ""
        # what is trained on now is no test any more; validation images may be the test images
        if not content or (content in trained and group != ALARMS) or seen.get(content) in {VALIDATION, TEST}:
            continue
        seen[content] = group
        name = f"{group}/{os.path.relpath(path, data.root)}" if group in {VALIDATION, TEST} else f"{group}/{path.name}"
        listed.append((path, name, f"{group}/{kind}"))
    return listed


def _rows(checkpoint: Path, sets: list[tuple[Path, str, str]], progress: Callable[..., Iterable[Any]]) -> list[Row]:
    threshold = _in_force(checkpoint)
    scores: Iterator[float] = raw_scores(checkpoint, [path for path, _, _ in sets])
    scored = zip(sets, progress(scores, len(sets)), strict=True)
    return [Row(name, score, score, score > threshold, kind=kind) for (_, name, kind), score in scored]


def _told(progress: Progress, name: str, items: Iterable[Any], count: int) -> Iterable[Any]:
    return progress(items, count, f"Scoring, {name}")


def _in_force(checkpoint: Path) -> float:
    _, scale, limit = kept_scores(checkpoint)
    return scale.in_force(limit)


def _rate(rows: list[Row], kind: str) -> Rate:
    chosen = [row for row in rows if row.kind == kind]
    return Rate(sum(bool(row.anomalous) for row in chosen), len(chosen))
