# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Images whose verdict was wrong: kept once, as they were, with where they came from."""

import json
import subprocess
import sys
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


@pytest.mark.parametrize(
    ("field", "value"),
    [("file", "missed/../../etc/passwd"), ("file", "/etc/passwd"), ("file", None), ("score", "x"), ("mistake", "good")],
)
def test_a_line_that_is_none_is_named(tmp_path: Path, field: str, value: object) -> None:
    """Not left out: the next mark would write the file without it."""
    keep_feedback(tmp_path, "missed", b"one", "a.png")
    file = tmp_path / FILE
    text = file.read_text()
    file.write_text(text + json.dumps({**json.loads(text), field: value}) + "\n")
    for use in (lambda: list(read_feedback(tmp_path)), lambda: keep_feedback(tmp_path, "missed", b"two", "b.png")):
        with pytest.raises(ValueError, match=rf"Line 2 of .*{FILE} says nothing of an image"):
            use()


def test_half_a_line_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b'{"mistake": "mis\xff')
    with pytest.raises(ValueError, match="Line 1"):
        list(read_feedback(tmp_path))


def test_several_keep_feedback_at_once(tmp_path: Path) -> None:
    """Processes, and threads of each: what all of them have kept is there."""
    code = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from anomalib_inp.results.feedback import keep_feedback

def keep(number):
    keep_feedback(Path(sys.argv[1]), "missed", f"{sys.argv[2]} {number}".encode(), "a.png")

with ThreadPoolExecutor(2) as pool:
    list(pool.map(keep, range(20)))
"""
    running = [subprocess.Popen([sys.executable, "-c", code, tmp_path, str(name)]) for name in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert len(kept(tmp_path)) == 60


def test_other_mistakes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="false_alarm or missed, got 'good'"):
        keep_feedback(tmp_path, "good", b"", "a.png")
