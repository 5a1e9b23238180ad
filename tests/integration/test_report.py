# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The report of a run: one file that a browser opens from disk."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from browser import needs_browser, open_page
from PIL import Image
from scipy.stats import binomtest

from anomalib_inp.reports.report import write_report
from anomalib_inp.results.records import make_record, with_regions
from anomalib_inp.results.regions import Region
from anomalib_inp.results.writer import ResultFiles, write_heat_map, write_note

THRESHOLD = 0.5
HOSTILE = '<img src=x onerror="document.title=1"> & co'


def write_run(folder: Path, num_normal: int = 10, num_dents: int = 10, categories: tuple[str, ...] = ("",)) -> Path:
    """Normal images of scores up to 0.6, dents from 0.4; an image that is gone, and one that never was an image."""
    rng, root = np.random.default_rng(0), folder / "images"
    run = folder / "run"
    write_note(run, root, "/models/it's mine.xml", "made by")
    with ResultFiles(run) as files:
        for category in categories:
            for kind, count, low in (("good", num_normal, 0.0), ("dent", num_dents, 0.4), (HOSTILE, 1, 0.9)):
                for index in range(count):
                    score = low + 0.6 * (index + 0.5) / count
                    name = "/".join(
                        part for part in (category, kind.partition("<")[0] or "odd", f"{index:04}.png") if part
                    )
                    path = root / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(rng.integers(0, 255, (24, 40), dtype=np.uint8)).resize((400, 240)).save(path)
                    write_heat_map(run, name, rng.random((16, 16)))
                    known = {
                        "kind": f"{category}/{kind}".lstrip("/"),
                        "anomalous": score > THRESHOLD,
                        "size": (400, 240),
                    }
                    record = make_record(name, "abc", (THRESHOLD, 0.7), scores=(score, score), **known)
                    region = Region((10, 20, 50, 60), [(10, 20), (50, 20), (50, 60)], 800.0, 0.8, 1.0, 0.9)
                    files.write(with_regions(record, [region]))
        files.write(make_record("broken.png", "abc", (THRESHOLD, 0.7), error=f"no image {HOSTILE}"))
    next(root.rglob("dent/0000.png")).unlink()
    return run


@needs_browser
def test_a_browser_shows_it_from_disk(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    written = write_report(run)
    assert (written.images, written.missing) == (21, 1)
    with open_page() as page:
        page.route(re.compile("^http"), lambda route: pytest.fail(f"asks the network for {route.request.url}"))
        page.goto(written.path.as_uri())
        row = lambda kind: page.locator(f"tr[data-kind='{kind}'] td").all_inner_texts()  # noqa: E731
        low, high = binomtest(2, 10).proportion_ci()
        assert row("good") == ["good", "10", "2", "", "", "20.0", f"{100 * low:.1f} to {100 * high:.1f}"]
        assert row("dent")[:5] == ["dent", "10", "", "8", "2"]
        assert page.locator("#counts tr").count() == 3
        assert HOSTILE in page.locator("#counts").inner_text()
        assert HOSTILE in page.locator("#errors").inner_text()
        assert page.title() != "1"

        box = page.locator("#histogram").bounding_box()
        handle = page.locator("#line").bounding_box()
        x, y = handle["x"] + handle["width"] / 2, box["y"] + 60
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] - 1, y, steps=5)
        assert row("good")[2] == "0"
        assert row("dent")[3:5] == ["0", "10"]
        page.mouse.up()
        page.locator("#verdict").select_option("missed")
        assert page.locator("#shown").inner_text() == "11 of 21 images"
        page.locator("#reset").click()
        assert row("dent")[3] == "8"
        assert page.locator("#shown").inner_text() == "2 of 21 images"

        page.locator("#threshold").fill("0.25")
        page.locator("#threshold").press("Enter")
        command = page.locator("#command").inner_text()
        assert command == "anomalib-inp threshold '/models/it'\\''s mine.xml' --image 0.25"
        page.locator("#copy").click()
        page.locator("#verdict").select_option("")
        page.locator("#kind").select_option("dent")
        scores = [
            float(text.split()[-1])
            for text in page.locator("figcaption").evaluate_all(
                "nodes => nodes.map(node => node.firstChild.textContent + node.childNodes[1].textContent)"
            )
        ]
        assert scores == sorted(scores, reverse=True)
        assert len(scores) == 10
        assert page.locator("figure .gone").count() == 1
        page.locator("#heat").fill("0.25")
        assert page.locator("img.heat").first.evaluate("node => getComputedStyle(node).opacity") == "0.25"
        assert page.locator("img.heat").first.evaluate("node => node.naturalWidth") > 0
        assert page.locator("img.photo").first.evaluate("node => node.naturalWidth") == 640
        page.locator("figure").first.click()
        assert page.locator("#large.open .picture svg polygon").count() == 1
        page.keyboard.press("Escape")
        assert page.locator("#large.open").count() == 0


@needs_browser
def test_each_category_has_its_own_line(tmp_path: Path) -> None:
    written = write_report(write_run(tmp_path, categories=("bolt", "nut")))
    with open_page() as page:
        page.goto(written.path.as_uri())
        assert page.locator("#category option").all_inner_texts() == ["bolt", "nut"]
        page.locator("#category").select_option("nut")
        assert page.locator("#counts tr").count() == 3
        assert page.locator("#command").inner_text().endswith("--image 0.5 --category 'nut'")


def test_two_thousand_images(tmp_path: Path) -> None:
    """No larger than a mail takes."""
    run = write_run(tmp_path, 1500, 499)
    written = write_report(run, tmp_path / "pages" / "two thousand.html")
    assert written.images == 2000
    assert written.path.stat().st_size < 60e6


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no predictions\.jsonl in"):
        write_report(tmp_path)
    with ResultFiles(tmp_path) as files:
        files.write(make_record("broken.png", "abc", (THRESHOLD, 0.7), error="no image"))
    with pytest.raises(ValueError, match="no image with a score"):
        write_report(tmp_path)


def test_the_command(tmp_path: Path) -> None:
    run = write_run(tmp_path, 2, 2)
    moved = (tmp_path / "images").rename(tmp_path / "moved")
    command = [sys.executable, "-m", "anomalib_inp.cli", "report", str(run)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "5 images are not where the run says" in said
    said = subprocess.run([*command, "--images", str(moved)], capture_output=True, text=True, check=True).stdout
    assert "1 images are not" in said
    assert (run / "report.html").is_file()
