# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What people say of verdicts, kept for the next training: images, and where they came from."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from typing_extensions import TypedDict

from anomalib_inp.files import IMAGE_SUFFIXES, in_place, replacing

FILE = "feedback.jsonl"
Mistake = Literal["false_alarm", "missed"]
MISTAKES: tuple[Mistake, ...] = get_args(Mistake)
FOLDERS: dict[Mistake, str] = {"false_alarm": "false_alarms", "missed": "missed"}
"""Folders that the images of either kind are kept in."""
DIGITS = 16
"""Of the fingerprint in the name of a file."""


class Feedback(TypedDict):
    """What was said of a verdict.

    mistake: false_alarm or missed. file: the image, below the folder of the feedback. origin: where it came from.
    score: its raw score, and model: the fingerprint of the model that gave it, as far as they are known. time: when,
    UTC.
    """

    mistake: Mistake
    file: str
    origin: str
    score: float | None
    model: str
    time: str


@in_place
def keep_feedback(
    folder: Path, mistake: Mistake, content: bytes, origin: str, score: float | None = None, model: str = ""
) -> Feedback:
    """Keep an image whose verdict was wrong, as it was, once however often it is said.

    What was said of it before is replaced.

    Args:
        folder: Where feedback is kept; it is made.
        mistake: What was wrong.
        content: The file of the image.
        origin: Where it came from; its suffix is that of the kept file.
        score: Its raw score.
        model: Fingerprint of the model.

    Raises:
        ValueError: Another mistake.
    """
    if mistake not in FOLDERS:
        msg = f"A verdict was a {' or '.join(MISTAKES)}, got {mistake!r}."
        raise ValueError(msg)
    suffix = Path(origin).suffix.lower()
    digest = hashlib.blake2b(content, digest_size=DIGITS // 2).hexdigest()
    name = f"{digest}{suffix if suffix in IMAGE_SUFFIXES else '.png'}"
    others, before = _part(folder, lambda entry: Path(entry["file"]).stem == digest)
    said: Feedback = {
        "mistake": mistake,
        "file": f"{FOLDERS[mistake]}/{name}",
        "origin": origin,
        "score": score,
        "model": model,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    file = folder / said["file"]
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        temporary.write_bytes(content)
    _write(folder, [*others, said])
    for entry in before:
        if entry["file"] != said["file"]:
            (folder / entry["file"]).unlink(missing_ok=True)
    return said


@in_place
def drop_feedback(folder: Path, names: list[str]) -> list[Feedback]:
    """Take images out of the feedback, by the names of their files or where they came from; those dropped come back."""
    wanted = set(names)
    left, dropped = _part(
        folder, lambda entry: not wanted.isdisjoint({entry["file"], Path(entry["file"]).name, entry["origin"]})
    )
    _write(folder, left)
    for entry in dropped:
        (folder / entry["file"]).unlink(missing_ok=True)
    return dropped


def read_feedback(folder: Path) -> Iterator[Feedback]:
    """Read what was said, the oldest first.

    Raises:
        ValueError: A line is none of ours.
    """
    file = folder / FILE
    lines = file.read_bytes().splitlines() if file.is_file() else []
    for number, text in enumerate(lines, start=1):
        try:
            entry = json.loads(text)
            wrong = not _is_feedback(entry)
        except ValueError:
            wrong = True
        if wrong:
            msg = f"Line {number} of {file} says nothing of an image that is kept: mend it, or take it out."
            raise ValueError(msg)
        yield entry


def _is_feedback(entry: Any) -> bool:
    """Whether it has the fields of a line, of their kinds, and its file lies in one of the folders."""
    texts = ("mistake", "file", "origin", "model", "time")
    if not isinstance(entry, dict) or not all(isinstance(entry.get(name), str) for name in texts):
        return False
    parts = PurePosixPath(os.path.normpath(entry["file"])).parts
    is_number = entry.get("score", "") is None or isinstance(entry.get("score"), int | float)
    return is_number and entry["mistake"] in FOLDERS and len(parts) == 2 and parts[0] in FOLDERS.values()


def _part(folder: Path, is_meant: Callable[[Feedback], bool]) -> tuple[list[Feedback], list[Feedback]]:
    """Part what was said: what is not meant, and what is."""
    parts: tuple[list[Feedback], list[Feedback]] = [], []
    for entry in read_feedback(folder):
        parts[is_meant(entry)].append(entry)
    return parts


def _write(folder: Path, entries: list[Feedback]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / FILE) as temporary:
        temporary.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
