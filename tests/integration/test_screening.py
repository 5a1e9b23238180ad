# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""A folder without labels, by the command."""

import csv
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_inp import cli
from anomalib_inp.commands import INTERRUPTED, UNREADABLE
from anomalib_inp.encoder.weights import build_encoder
from anomalib_inp.models.screening import Screen
from anomalib_inp.outputs import Reconstruction
from anomalib_inp.runtime.job import Item
from anomalib_inp.scoring.memory import directions
from anomalib_inp.scoring.mutual import mutual_distance
from anomalib_inp.scoring.self_similarity import SelfDistance


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve images of stripes, all a little different, one of them with a white blot."""
    generator = np.random.default_rng(0)
    stripes = np.where(np.arange(64) % 8 < 4, 60, 180)[None, :, None]
    (tmp_path / "images" / "below").mkdir(parents=True)
    for number in range(12):
        pixels = (stripes + generator.integers(-9, 10, (64, 64, 3))).astype(np.uint8)
        if number == 7:
            pixels[16:32, 16:32] = 255
        Image.fromarray(pixels).save(tmp_path / "images" / ("below" if number % 2 else ".") / f"{number:02d}.png")
    return tmp_path / "images"


@pytest.fixture
def run(tiny_encoder_file: Path, monkeypatch: pytest.MonkeyPatch):
    def screen(images: Path, output: Path, *arguments: str) -> None:
        encoder = ["--encoder", "test_vit", "--encoder_weights", str(tiny_encoder_file), "--image_size", "64"]
        command = ["anomalib-inp", "screen", str(images), "--output", str(output), *encoder, *arguments]
        monkeypatch.setattr(sys, "argv", command)
        cli.main()

    return screen


def rows(output: Path) -> list[list[str]]:
    with (output / "scores.csv").open(newline="") as file:
        return list(csv.reader(file))


def test_the_odd_image_comes_first(folder: Path, run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(folder, tmp_path / "out")
    header, *table = rows(tmp_path / "out")
    assert header == ["image", "score", "raw_score", "anomalous", "error", "kind"]
    assert len(table) == 12
    assert table[0][0] == "below/07.png"
    scores = [float(row[2]) for row in table]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 2 * scores[1]
    assert (tmp_path / "out" / "gallery.png").is_file()
    assert len(list((tmp_path / "out" / "below").glob("*.png"))) == 6
    said = capsys.readouterr().out
    assert said.index("below/07.png") < said.index(table[1][0])
    run(folder, tmp_path / "bare", "--pictures", "false")
    assert not list((tmp_path / "bare").rglob("*.png"))
    assert rows(tmp_path / "bare") == rows(tmp_path / "out")


def test_an_image_that_changes_meanwhile_gets_a_row_of_its_own(folder: Path, run, tmp_path: Path, monkeypatch) -> None:
    compare = Screen.compare

    def change(self: Screen, items: list[Item], *args: object) -> None:
        compare(self, items, *args)
        Image.new("RGB", (64, 64)).save(folder / "02.png")

    monkeypatch.setattr(Screen, "compare", change)
    with pytest.raises(SystemExit) as ended:
        run(folder, tmp_path / "out")
    assert ended.value.code == UNREADABLE
    *_, (name, score, _, _, error, _) = rows(tmp_path / "out")
    assert (name, score) == ("02.png", "")
    assert "was written or changed while the images were compared" in error


def test_ctrl_c_keeps_what_is_written(folder: Path, run, tmp_path: Path, monkeypatch, capsys) -> None:
    stream = Screen.stream

    def stop(self: Screen, batches: object) -> object:
        for place, outputs in enumerate(stream(self, batches)):
            if place == 5:
                raise KeyboardInterrupt
            yield outputs

    monkeypatch.setattr(Screen, "stream", stop)
    with pytest.raises(SystemExit) as ended:
        run(folder, tmp_path / "out")
    assert ended.value.code == INTERRUPTED
    assert "Stopped; 5 images are written" in capsys.readouterr().out
    assert len(rows(tmp_path / "out")) == 6
    assert (tmp_path / "out" / "gallery.png").is_file()


@pytest.mark.parametrize("references", [256, 5])
def test_readings_by_hand(folder: Path, tiny_encoder_file: Path, references: int) -> None:
    """Few references or many, the order in which images are read makes no difference."""
    items = [Item(path) for path in sorted(folder.rglob("*.png"))]
    encoder = build_encoder("test_vit", tiny_encoder_file)
    screen = Screen(encoder, (64, 64), references)
    screen.compare(items)
    assert len(screen.readings) == 12
    tokens, own = [], []
    with torch.no_grad():
        for item in items:
            image = torch.from_numpy(np.asarray(Image.open(item.path)).copy()).permute(2, 0, 1).float() / 255
            features = encoder(screen.transform(image.unsqueeze(0)))
            tokens.append(directions(features.groups)[0, 0])
            own.append(SelfDistance()(Reconstruction(features))[0])
    known = np.linspace(0, 11, min(12, references)).round().astype(int).tolist()
    for place, item in enumerate(items):
        others = [tokens[other] for other in known if other != place]
        expected = own[place] * mutual_distance(tokens[place], others).unflatten(0, (4, 4))
        prepared = screen.prepare(np.asarray(Image.open(item.path)))
        torch.testing.assert_close(screen.readings[prepared.batch.tobytes()], expected, rtol=2e-2, atol=2e-3)


def test_images_that_cannot_be_read_come_last_and_the_others_stay(folder: Path, run, tmp_path: Path) -> None:
    run(folder, tmp_path / "whole", "--pictures", "false")
    (folder / "00a.png").write_bytes(b"no image")
    with pytest.raises(SystemExit) as stopped:
        run(folder, tmp_path / "out")
    assert stopped.value.code == 3
    *good, broken = rows(tmp_path / "out")
    assert broken[0] == "00a.png"
    assert broken[4]
    for row, whole in zip(good[1:], rows(tmp_path / "whole")[1:], strict=True):
        assert row[0] == whole[0]
        assert float(row[2]) == pytest.approx(float(whole[2]), abs=1e-5)


def test_copies_are_not_compared_with_each_other(folder: Path, run, tmp_path: Path) -> None:
    """Else an odd image that lies there twice would be normal."""
    shutil.copy(folder / "below" / "07.png", folder / "copy.png")
    run(folder, tmp_path / "out", "--pictures", "false")
    _, first, second, third, *_ = rows(tmp_path / "out")
    assert {first[0], second[0]} == {"below/07.png", "copy.png"}
    assert first[2] == second[2]
    assert float(first[2]) > 2 * float(third[2])


def test_one_image_is_compared_with_itself_alone(folder: Path, run, tmp_path: Path) -> None:
    run(folder / "below" / "07.png", tmp_path / "out")
    assert float(rows(tmp_path / "out")[1][2]) > 0


def test_labels_that_a_folder_tells_are_measured(write_small_sample, run, tmp_path: Path, capsys) -> None:
    root = write_small_sample(tmp_path, categories=("brick",))
    run(root / "brick" / "test", tmp_path / "out", "--pictures", "false")
    assert "I-AUROC" in capsys.readouterr().out


def test_what_makes_no_sense_is_refused(folder: Path, run, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="references must be at least 2 images"):
        run(folder, tmp_path / "out", "--references", "1")
    with pytest.raises(SystemExit, match="multiple of the encoder's patch size"):
        run(folder, tmp_path / "out", "--image_size", "70")
    with pytest.raises(SystemExit, match="There is no image or folder"):
        run(tmp_path / "gone", tmp_path / "out")
    assert not (tmp_path / "out").exists()
