# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Images whose verdict was wrong: kept once, as they were, with where they came from."""

from pathlib import Path

import pytest

from anomalib_inp.results.feedback import FILE, drop_feedback, keep_feedback, read_feedback


def kept(folder: Path) -> list[tuple[str, str, str]]:
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {FILE}
    said = list(read_feedback(folder))
    assert {entry["file"] for entry in said} == files
    return [(entry["mistake"], entry["origin"], (folder / entry["file"]).read_text()) for entry in said]


def test_an_image_is_kept_once(tmp_path: Path) -> None:
    folder = tmp_path / "feedback"
    keep_feedback(folder, "false_alarm", b"one", "/line/a.JPG", 0.5, "model")
    keep_feedback(folder, "missed", b"two", "b.png")
    keep_feedback(folder, "false_alarm", b"one", "/line/again.jpg", 0.6, "newer")
    assert kept(folder) == [("missed", "b.png", "two"), ("false_alarm", "/line/again.jpg", "one")]
    keep_feedback(folder, "missed", b"one", "/line/a.jpg")  # somebody has thought better of it
    assert kept(folder) == [("missed", "b.png", "two"), ("missed", "/line/a.jpg", "one")]
    (_, last) = read_feedback(folder)
    assert (last["score"], last["model"]) == (None, "")


def test_images_are_dropped(tmp_path: Path) -> None:
    first = keep_feedback(tmp_path, "false_alarm", b"one", "a.png")
    keep_feedback(tmp_path, "false_alarm", b"two", "b.png")
    keep_feedback(tmp_path, "missed", b"three", "c.png")
    assert [entry["origin"] for entry in drop_feedback(tmp_path, [Path(first["file"]).name, "c.png"])] == [
        "a.png",
        "c.png",
    ]
    assert kept(tmp_path) == [("false_alarm", "b.png", "two")]
    assert drop_feedback(tmp_path, ["c.png"]) == []


def test_lines_that_are_none_are_left_out(tmp_path: Path) -> None:
    """A half line, and one that would lead out of the folder."""
    said = keep_feedback(tmp_path, "missed", b"one", "a.png")
    file = tmp_path / FILE
    text = file.read_text()
    file.write_text(text.replace(said["file"], "missed/../../etc/passwd") + text + '{"mistake": "mis')
    assert [entry["file"] for entry in read_feedback(tmp_path)] == [said["file"]]


def test_other_mistakes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="false_alarm or missed, got 'good'"):
        keep_feedback(tmp_path, "good", b"", "a.png")
