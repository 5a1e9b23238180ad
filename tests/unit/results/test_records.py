# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Records of predictions: lines of JSON that fit the schema of the docs, and rows of the table made of them."""

import json
import math
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from anomalib_inp.results.records import FILE, Record, line, make_record, read_records, with_regions
from anomalib_inp.results.regions import Region
from anomalib_inp.results.score_table import read_all_rows
from anomalib_inp.results.writer import (
    HEAT_MAPS,
    ResultFiles,
    keep_records,
    picture_path,
    read_note,
    write_heat_map,
    write_note,
)

REGION = Region((1, 2, 3, 4), [(1, 2), (3, 4)], 4.0, 0.5, 0.9, 0.8)
SCHEMA = Path(__file__).parents[3] / "docs/predictions.schema.json"


def record(path: str = "dent/000.png", **kwargs: object) -> Record:
    known = {"kind": "dent", "anomalous": True, "scores": (0.7, 1.5), "size": (10, 8), **kwargs}
    return make_record(path, "abc", (1.0, 2.0), **known)


def failed(path: str, error: str = "no image") -> Record:
    return make_record(path, "abc", (math.nan, math.nan), error=error)


def test_the_schema_is_that_of_the_docs() -> None:
    schema = TypeAdapter(Record).json_schema()
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == schema
    assert set(schema["required"]) == set(Record.__annotations__)


def test_lines_fit_the_schema() -> None:
    adapter = TypeAdapter(Record)
    for one in (with_regions(record(), [REGION]), record(anomalous=None), failed("x.png")):
        assert adapter.validate_json(line(one), strict=True) == json.loads(line(one)) == one
    with pytest.raises(ValidationError):
        adapter.validate_python({**record(), "verdict": "bad"})
    said = json.loads(line(with_regions(record(), [REGION])))
    assert said["regions"][0]["box"] == [1, 2, 3, 4]
    assert said["thresholds"] == {"image": 1.0, "pixel": 2.0}
    assert datetime.fromisoformat(said["time"]).utcoffset().total_seconds() == 0


def test_files_hold_the_same_in_both(tmp_path: Path) -> None:
    """A name that is no text, an error, a line that a kill has cut in half."""
    names = ["dent/000.png", 'umläut, "quoted".png', "no\udcfftext.png"]
    with ResultFiles(tmp_path) as files:
        for name in names:
            files.write(record(name))
        files.write(failed("broken.png"))
    with (tmp_path / FILE).open("a") as file:
        file.write('{"path": "half')
    rows, records = read_all_rows(tmp_path), list(read_records(tmp_path / FILE))
    assert [row.image for row in rows] == [one["path"] for one in records] == [*names, "broken.png"]
    assert (rows[0].score, rows[0].raw_score, rows[0].anomalous, rows[0].kind) == (0.7, 1.5, True, "dent")
    assert rows[-1].error == "no image"
    kept = keep_records(tmp_path, [names[2], names[0], "broken.png", "other.png"])
    assert [one["path"] for one in kept] == [names[0], names[2]]
    with ResultFiles(tmp_path, append=True) as files:
        files.write(record("more.png"))
    assert [row.image for row in read_all_rows(tmp_path)] == [names[0], names[2], "more.png"]
    assert [one["path"] for one in read_records(tmp_path / FILE)] == [names[0], names[2], "more.png"]


def test_notes_and_heat_maps(tmp_path: Path) -> None:
    assert read_note(tmp_path) == {}
    write_note(tmp_path, tmp_path, "model.xml", "made by")
    assert read_note(tmp_path) == {
        "made_by": "made by",
        "images": str(tmp_path.resolve()),
        "model": "model.xml",
        "crop_box": [0, 0, 1, 1],
        "shifts": {},
    }
    file = picture_path(tmp_path, HEAT_MAPS, "dent/000.jpg")
    write_heat_map(tmp_path, "dent/000.jpg", np.array([[-1.0, 0.0], [0.5, 2.0]]))
    np.testing.assert_array_equal(np.asarray(Image.open(file)), [[0, 0], [128, 255]])
