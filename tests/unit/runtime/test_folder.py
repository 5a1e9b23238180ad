# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import copy
import csv
import io
import os
import shutil
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.data.utils import read_image
from PIL import Image

from anomalib_inp import InpFormer
from anomalib_inp.commands.prediction import predict as predict_images
from anomalib_inp.evaluation import predictions
from anomalib_inp.evaluation.functional import seven_metrics
from anomalib_inp.exporting.convert import metadata_of
from anomalib_inp.frame import WHOLE_IMAGE
from anomalib_inp.images import as_batch
from anomalib_inp.pictures.strip import draw_result
from anomalib_inp.results.writer import HEAT_MAPS
from anomalib_inp.runtime import folder
from anomalib_inp.runtime.ahead import THREADS
from anomalib_inp.runtime.folder import draw_gallery, predict_folder
from anomalib_inp.runtime.job import Item, Job, find_images, plan, resume
from anomalib_inp.runtime.metadata import Metadata, read_metadata
from anomalib_inp.runtime.model import ExportedModel, Predictions, Prepared
from anomalib_inp.runtime.predict import predict
from anomalib_inp.thresholds.post_processor import InpPostProcessor
from anomalib_inp.thresholds.scale import Scale

SIZE = (60, 80)
NAMES = [f"good/{index:03}.png" for index in range(3)] + [f"dent/{index:03}.png" for index in range(3)]


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def photograph(index: int) -> np.ndarray:
    rng = np.random.default_rng(index)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] / SIZE[1]
    shape = 128 + 80 * np.sin(2 * np.pi * (2 + index) * (x + y**2))
    return (shape + rng.normal(0, 30, SIZE)).clip(0, 255).astype(np.uint8)


@pytest.fixture
def test_folder(tmp_path: Path) -> Path:
    """Test images and masks of a category in the layout of MVTec AD."""
    for index, name in enumerate(NAMES):
        write(tmp_path / "part/test" / name, photograph(index))
    for index in range(3):
        mask = np.zeros(SIZE, dtype=np.uint8)
        mask[10:40, 5 + 20 * index : 30 + 20 * index] = 255
        write(tmp_path / f"part/ground_truth/dent/{index:03}_mask.png", mask)
    return tmp_path / "part/test"


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., InpFormer]) -> InpFormer:
    torch.manual_seed(0)
    # a graph of two blocks exports fast
    model = tiny_model(target_layers=[1, 2], image_size=(80, 96), crop_size=(64, 80), map_size=32, spread=8)
    with torch.no_grad():
        images = torch.stack([torch.from_numpy(photograph(index)) for index in range(len(NAMES))])
        raw = model(images[:, None].expand(-1, 3, -1, -1) / 255)
    between = raw.pred_score.sort().values[2:4].mean().item()  # no verdict hangs on how an export rounds
    model.post_processor.set_thresholds(between, raw.anomaly_map.median().item())
    return model


@pytest.fixture(scope="module")
def exported(model: InpFormer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model.to_openvino(tmp_path_factory.mktemp("export"))


@pytest.fixture
def own_model(model: InpFormer) -> InpFormer:
    return copy.deepcopy(model)


@pytest.fixture
def in_torch(own_model: InpFormer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A path that stands for an export of the model, run by PyTorch: the same numbers without compiling a graph."""

    class InTorch:
        digest = "of torch"

        def __init__(self, *_: object, category: str | None = None) -> None:
            assert category is None
            self.metadata = metadata_of(own_model)

        def prepare(self, images: np.ndarray) -> Prepared:
            return Prepared(as_batch(images))

        def stream(self, batches: Iterable[Prepared]) -> Iterator[Predictions]:
            for (images,) in batches:
                with torch.no_grad():
                    yield Predictions(*(value.numpy() for value in own_model(torch.from_numpy(images))))

    monkeypatch.setattr("anomalib_inp.runtime.model.ExportedModel", InTorch)
    return Path("model.xml")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What is drawn from now on, in any order."""
    drawn: list[dict[str, Any]] = []

    def draw(image: Image.Image, shown: np.ndarray, **kwargs: Any) -> Image.Image:
        drawn.append({"shown": shown, **kwargs})
        return draw_result(image, shown, **kwargs)

    monkeypatch.setattr(folder, "draw_result", draw)
    return drawn


def by_name(drawn: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(drawn, key=lambda given: given["name"])


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What is measured from now on: scores, labels, maps and masks, and what comes out."""
    measured: list[dict[str, Any]] = []

    def spy(images: Iterable[tuple], *count_and_places: Any) -> tuple[dict[str, float], int]:
        images = list(images)
        scores, labels, maps, masks = zip(*images, strict=True)
        values, unmasked = predictions_measure(images, *count_and_places)
        measured.append({"scores": scores, "labels": labels, "maps": maps, "masks": masks, "values": values})
        return values, unmasked

    predictions_measure = predictions.measure
    monkeypatch.setattr(predictions, "measure", spy)
    return measured


def table(output: Path) -> list[dict[str, str]]:
    with (output / "scores.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def files_below(folder: Path) -> set[str]:
    """Files of a folder, less the heat maps, which lie below one of their own."""
    files = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {path.as_posix() for path in files if path.parts[0] != HEAT_MAPS}


# --- a test folder ----------------------------------------------------------------------------------------------------


def test_a_test_folder_gives_scores_pictures_and_metrics(
    test_folder: Path,
    exported: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    measured: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    output = tmp_path / "results"
    predict_images(exported, test_folder, output)

    assert files_below(output) == {
        *NAMES,
        "scores.csv",
        "predictions.jsonl",
        "confusion.csv",
        "run.json",
        "gallery.png",
    }
    network, metadata = ExportedModel(exported), read_metadata(exported)
    rows = table(output)
    assert [row["image"] for row in rows] == sorted(NAMES)
    maps = []
    for row in rows:
        result = network(read_image(test_folder / row["image"], as_tensor=True).numpy()[None])
        assert float(row["score"]) == pytest.approx(float(result.pred_score[0]), abs=1e-6)
        assert float(row["raw_score"]) == pytest.approx(float(metadata.to_raw(result.pred_score[0])), abs=1e-6)
        assert int(row["anomalous"]) == int(result.pred_label[0]) == (float(row["score"]) > 0.5)
        maps.append(metadata.to_raw(result.anomaly_map[0, 0], "pixel"))
    assert {row["anomalous"] for row in rows} == {"0", "1"}

    (seen,) = measured
    scores, labels, raw_maps, masks = (np.array(seen[name]) for name in ("scores", "labels", "maps", "masks"))
    np.testing.assert_allclose(scores, [float(row["raw_score"]) for row in rows], atol=1e-6)
    assert labels.tolist() == [row["image"].startswith("dent") for row in rows]
    np.testing.assert_allclose(raw_maps, maps, atol=1e-6)
    # The inspected part of a mask: 5/6 of its width and 4/5 of its height, 32 x 32 of its pixels.
    assert masks.shape == (6, 32, 32)
    box = metadata.crop_box
    assert box == pytest.approx((1 / 12, 1 / 10, 11 / 12, 9 / 10))
    for index, mask in enumerate(masks):
        for row, column in ((0, 0), (5, 5), (16, 9), (20, 30)):
            y = (box.top + (row + 0.5) / 32 * (box.bottom - box.top)) * SIZE[0]
            x = (box.left + (column + 0.5) / 32 * (box.right - box.left)) * SIZE[1]
            inside = rows[index]["image"].startswith("dent") and 10 <= y < 40 and 5 <= x - 20 * index < 30
            assert mask[row, column] == inside, (index, row, column)

    printed = capsys.readouterr().out
    assert len(seen["values"]) == 7
    assert seen["values"] == pytest.approx(seven_metrics(scores, labels, raw_maps, masks), abs=1e-6)
    for value in seen["values"].values():
        assert f"{100 * value:.2f}" in printed
    for text in ("part", "scores.csv", "predictions.jsonl", "gallery.png"):
        assert text in printed
    assert Image.open(output / "gallery.png").height > 5 * Image.open(output / NAMES[0]).height


def test_a_test_folder_without_masks_gives_image_metrics(
    test_folder: Path,
    in_torch: Path,
    tmp_path: Path,
    measured: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (test_folder.parent / "ground_truth/dent/001_mask.png").unlink()
    predict_images(in_torch, test_folder, tmp_path / "results")
    assert [set(given["values"]) for given in measured] == [{"image_AUROC", "image_AP", "image_F1Max"}]
    assert "No pixel metrics: 1 anomalous images have no mask." in capsys.readouterr().out


# --- other images -----------------------------------------------------------------------------------------------------


def test_a_plain_folder_gives_no_metrics(in_torch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index, name in enumerate(("a.png", "below/b.jpg", "below/c.BMP", "notes.txt")):
        path = write(tmp_path / "images/new.png", photograph(index))
        (tmp_path / "images" / name).parent.mkdir(exist_ok=True)
        path.rename(tmp_path / "images" / name)
    predict_images(in_torch, tmp_path / "images", tmp_path / "results")
    assert files_below(tmp_path / "results") == {
        "a.png",
        "below/b.png",
        "below/c.png",
        "scores.csv",
        "predictions.jsonl",
        "run.json",
        "gallery.png",
    }
    assert [row["image"] for row in table(tmp_path / "results")] == ["a.png", "below/b.jpg", "below/c.BMP"]
    assert "AUROC" not in capsys.readouterr().out


def test_a_single_image(test_folder: Path, in_torch: Path, tmp_path: Path) -> None:
    predict_images(in_torch, test_folder / "dent/001.png", tmp_path / "results")
    assert files_below(tmp_path / "results") == {
        "001.png",
        "scores.csv",
        "predictions.jsonl",
        "run.json",
        "gallery.png",
    }
    assert [row["image"] for row in table(tmp_path / "results")] == ["001.png"]


def test_images_of_one_name_keep_a_picture_each(in_torch: Path, tmp_path: Path) -> None:
    for index, name in enumerate(("a.jpg", "a.png", "gallery.bmp")):
        write(tmp_path / "images" / name, photograph(index))
    predict_images(in_torch, tmp_path / "images", tmp_path / "results")
    assert files_below(tmp_path / "results") == {
        "a.png",
        "a.png.png",
        "gallery.bmp.png",
        "scores.csv",
        "predictions.jsonl",
        "run.json",
        "gallery.png",
    }
    assert len({(tmp_path / "results" / name).read_bytes() for name in ("a.png", "a.png.png", "gallery.png")}) == 3


@pytest.mark.parametrize("single", [True, False])
def test_pictures_do_not_replace_images(single: bool, test_folder: Path, in_torch: Path) -> None:
    folder = test_folder / "dent"
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(
        ValueError, match=r"would (replace images|become images of the next run).* Choose an output outside"
    ):
        predict_images(in_torch, folder / "000.png" if single else folder, folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_without_thresholds_there_are_raw_scores_and_no_verdicts(
    own_model: InpFormer,
    test_folder: Path,
    in_torch: Path,
    tmp_path: Path,
    drawn: list[dict[str, Any]],
    measured: list[dict[str, Any]],
) -> None:
    predict_images(in_torch, test_folder, tmp_path / "with")
    own_model.post_processor = InpPostProcessor()
    predict_images(in_torch, test_folder, tmp_path / "without")

    assert measured[1]["values"] == pytest.approx(measured[0]["values"], abs=1e-3)
    for row, other in zip(table(tmp_path / "with"), table(tmp_path / "without"), strict=True):
        assert float(other["score"]) == float(other["raw_score"]) == pytest.approx(float(row["raw_score"]), abs=1e-4)
        assert (row["anomalous"] in "01", other["anomalous"]) == (True, "")
    assert len(drawn) == 2 * len(NAMES)
    for given in drawn[len(NAMES) :]:
        assert (given["anomalous"], given["pred_mask"]) == (None, None)
        assert np.isfinite(given["shown"]).all()


def test_raw_exports_are_drawn_normalised(
    own_model: InpFormer,
    test_folder: Path,
    in_torch: Path,
    tmp_path: Path,
    drawn: list[dict[str, Any]],
) -> None:
    predict_images(in_torch, test_folder, tmp_path / "normalised")
    own_model.post_processor.enable_normalization = False
    predict_images(in_torch, test_folder, tmp_path / "raw")
    assert len(drawn) == 2 * len(NAMES)
    for normalised, raw in zip(by_name(drawn[: len(NAMES)]), by_name(drawn[len(NAMES) :]), strict=True):
        assert raw["name"] == normalised["name"]
        np.testing.assert_allclose(raw["shown"], normalised["shown"], atol=1e-5)
        np.testing.assert_array_equal(raw["pred_mask"], normalised["pred_mask"])
    for normalised, raw in zip(table(tmp_path / "normalised"), table(tmp_path / "raw"), strict=True):
        assert raw["score"] == raw["raw_score"]
        assert float(raw["raw_score"]) == pytest.approx(float(normalised["raw_score"]), abs=1e-5)
        assert raw["anomalous"] == normalised["anomalous"]


def test_good_images_alone_give_false_alarms(test_folder: Path, exported: Path, tmp_path: Path, capsys) -> None:
    """Of a folder that is called so, and of one that has no other; metrics would be no numbers."""
    shutil.copytree(test_folder / "good", tmp_path / "alone" / "good")
    for place, images in enumerate((test_folder / "good", tmp_path / "alone")):
        output = tmp_path / str(place)
        predict_images(exported, images, output)
        printed = capsys.readouterr().out
        rows = table(output)
        assert {row["kind"] for row in rows} == {"good"}
        with (output / "confusion.csv").open(newline="") as file:
            (counted,) = csv.DictReader(file)
        assert counted["images"] == str(len(rows))
        assert counted["above"] == str(sum(row["anomalous"] == "1" for row in rows))
        assert "false alarms" in printed
        assert "AUROC" not in printed
        assert "nan" not in printed


def test_a_resumed_job_counts_all_of_its_images(test_folder: Path, exported: Path, tmp_path: Path) -> None:
    output = tmp_path / "results"
    predict_images(exported, test_folder, output)
    before = (output / "confusion.csv").read_bytes()
    (output / "dent/001.png").unlink()
    predict_images(exported, test_folder, output, resume=True)
    assert (output / "confusion.csv").read_bytes() == before


def test_without_pictures(test_folder: Path, in_torch: Path, tmp_path: Path, capsys) -> None:
    predict_images(in_torch, test_folder, tmp_path / "with")
    capsys.readouterr()
    predict_images(in_torch, test_folder, tmp_path / "without", pictures=False)
    assert files_below(tmp_path / "without") == {"scores.csv", "predictions.jsonl", "confusion.csv", "run.json"}
    assert (tmp_path / "without/scores.csv").read_bytes() == (tmp_path / "with/scores.csv").read_bytes()
    printed = capsys.readouterr().out
    assert "AUROC" in printed
    assert "Pictures" not in printed
    # without pictures, nothing is in the way of the next run
    predict_images(in_torch, test_folder / "dent", test_folder / "dent/results", pictures=False)


# --- many images ------------------------------------------------------------------------------------------------------


class Brightness:
    """Stands for an export that scores an image by its brightness, and counts the batches that it is given."""

    metadata = Metadata(False, Scale(0.5, 0, 1), Scale(0.5, 0, 1), WHOLE_IMAGE)

    def __init__(self) -> None:
        self.given = 0

    def prepare(self, images: np.ndarray) -> Prepared:
        return Prepared(as_batch(images))

    def stream(self, batches: Iterable[Prepared]) -> Iterator[Predictions]:
        for (images,) in batches:
            self.given += 1
            brightness = images.mean(axis=(1, 2, 3))
            maps = np.broadcast_to(images[:, :1, :1, :1], (len(images), 1, 256, 256)).copy()
            yield Predictions(brightness, brightness > 0.5, maps, maps > 0.5)


@pytest.fixture
def brightness_folder(tmp_path: Path) -> Path:
    for index in range(40):
        pixels = np.full((20 + index, 30), 6 * index, dtype=np.uint8)
        write(tmp_path / f"images/{index:03}.{'jpg' if index % 3 else 'png'}", pixels)
    return tmp_path / "images"


def test_results_come_in_the_order_of_the_images(brightness_folder: Path, tmp_path: Path) -> None:
    job = plan(brightness_folder, tmp_path / "results")
    results = list(predict_folder(Brightness(), job))
    assert [item for item, _ in results] == job.items
    assert [prediction.score for _, prediction in results] == pytest.approx(np.arange(40) * 6 / 255, abs=2 / 255)
    assert [row["image"] for row in table(tmp_path / "results")] == [item.path.name for item in job.items]


def test_images_are_read_as_results_are_used(brightness_folder: Path, tmp_path: Path) -> None:
    model = Brightness()
    results = predict_folder(model, plan(brightness_folder, tmp_path / "results"))
    next(results)
    assert model.given <= 2 * THREADS + 2
    results.close()


def test_what_comes_before_a_broken_image_is_written(brightness_folder: Path, tmp_path: Path) -> None:
    truncated(write(brightness_folder / "024.png", photograph(0)))
    with pytest.raises(ValueError, match=r"024\.png is no readable image"):
        list(predict_folder(Brightness(), plan(brightness_folder, tmp_path / "results"), strict=True))
    before = [f"{index:03}" for index in range(24)]
    assert [Path(row["image"]).stem for row in table(tmp_path / "results")] == [*before, "024"]
    assert "is no readable image" in table(tmp_path / "results")[-1]["error"]
    assert files_below(tmp_path / "results") == {
        "scores.csv",
        "predictions.jsonl",
        "run.json",
        *(f"{name}.png" for name in before),
    }


@pytest.mark.parametrize("pictures", [False, True])
def test_memory_stays_the_same_however_many_images(brightness_folder: Path, tmp_path: Path, pictures: bool) -> None:
    item, *_ = find_images(brightness_folder).items

    def peak(count: int) -> int:
        paths = [brightness_folder / f"{count}_{index}.png" for index in range(count)]
        for path in paths:
            path.symlink_to(item.path)
        items = [Item(path) for path in paths]
        drawn = {str(path): tmp_path / "results" / path.name for path in paths} if pictures else {}
        tracemalloc.start()
        for _ in predict_folder(Brightness(), Job(items, brightness_folder, tmp_path / "results", drawn)):
            pass
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    assert peak(200) < peak(60) + 15 * 2**20  # maps and masks of 140 images are 44 MiB


def test_pictures_are_those_that_are_drawn_alone(test_folder: Path, exported: Path, tmp_path: Path) -> None:
    predict_images(exported, test_folder, tmp_path / "results")
    model = ExportedModel(exported)
    for item in find_images(test_folder).items:
        prediction = predict(model, item.path)
        size = SIZE if item.mask is None else np.array(Image.open(item.mask)).shape
        alone = draw_result(
            Image.open(item.path).convert("RGB"),
            prediction.shown_map,
            pred_mask=prediction.mask,
            gt_mask=np.zeros(size, bool) if item.mask is None else np.array(Image.open(item.mask)) > 0,
            crop_box=model.metadata.crop_box,
            score=prediction.score,
            raw_score=prediction.raw_score,
            anomalous=prediction.label,
            truth=item.anomalous,
            name=item.path.relative_to(test_folder).as_posix(),
        )
        beside = Image.open(tmp_path / "results" / item.path.relative_to(test_folder))
        np.testing.assert_array_equal(np.asarray(beside), np.asarray(alone))


# --- what cannot be predicted -----------------------------------------------------------------------------------------


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def with_broken_chunk(path: Path) -> None:
    """Two chunks of data, the second of which has no valid name."""
    buffer = io.BytesIO()
    Image.open(path).save(buffer, "PNG")
    content = buffer.getvalue()
    start = content.index(b"IDAT") - 4
    data = content[start + 8 : start + 8 + int.from_bytes(content[start : start + 4], "big")]
    chunks = [
        len(part).to_bytes(4, "big") + name + part + zlib.crc32(name + part).to_bytes(4, "big")
        for name, part in ((b"IDAT", data[:50]), (b"\0\1\2\3", data[50:]))
    ]
    path.write_bytes(content[:start] + b"".join(chunks))


@pytest.mark.parametrize("damage", [truncated, with_broken_chunk, lambda path: path.write_bytes(b"")])
def test_an_image_that_cannot_be_read_is_named_and_the_others_go_on(
    damage: Callable[[Path], object],
    test_folder: Path,
    in_torch: Path,
    tmp_path: Path,
    measured: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    predict_images(in_torch, test_folder, tmp_path / "whole")
    damage(test_folder / "dent/001.png")
    with pytest.raises(ValueError, match=r"test/dent/001\.png( is no readable image: | \()"):
        predict_images(in_torch, test_folder, tmp_path / "strict", strict=True)
    with pytest.raises(SystemExit) as ended:
        predict_images(in_torch, test_folder, tmp_path / "results")
    assert ended.value.code == 3
    for row, other in zip(table(tmp_path / "results"), table(tmp_path / "whole"), strict=True):
        assert row["image"] == other["image"]
        if row["image"] == "dent/001.png":
            assert "001.png is no readable image: " in row["error"]
            assert (row["score"], row["raw_score"], row["anomalous"]) == ("", "", "")
        else:
            assert row == other
            assert not row["error"]
    assert files_below(tmp_path / "results") == files_below(tmp_path / "whole") - {"dent/001.png"}
    assert len(measured[-1]["scores"]) == len(NAMES) - 1
    assert "1 images could not be predicted" in capsys.readouterr().out


def test_faults_at_both_ends_and_in_a_row_keep_the_order(brightness_folder: Path, tmp_path: Path) -> None:
    broken = [0, 1, 7, 8, 9, 38, 39]
    paths = sorted(brightness_folder.iterdir())
    for index in broken:
        truncated(paths[index])
    job = plan(brightness_folder, tmp_path / "results")
    results = list(predict_folder(Brightness(), job))
    rows = table(tmp_path / "results")
    assert [row["image"] for row in rows] == [path.name for path in paths]
    assert [index for index, row in enumerate(rows) if row["error"]] == broken
    assert len(results) == len(paths) - len(broken)
    assert len(job.faults) == len(broken)


def test_nothing_that_can_be_read(brightness_folder: Path, tmp_path: Path, in_torch: Path) -> None:
    for path in brightness_folder.iterdir():
        truncated(path)
    with pytest.raises(SystemExit) as ended:
        predict_images(in_torch, brightness_folder, tmp_path / "results")
    assert ended.value.code == 3
    assert all(row["error"] for row in table(tmp_path / "results"))


def test_links_that_lead_nowhere_and_masks_that_do_not_fit_are_errors(
    test_folder: Path, in_torch: Path, tmp_path: Path
) -> None:
    (test_folder / "dent/009.png").symlink_to(tmp_path / "nowhere.png")
    write(test_folder.parent / "ground_truth/dent/001_mask.png", np.zeros((80, 60), np.uint8))
    truncated(test_folder.parent / "ground_truth/dent/002_mask.png")
    with pytest.raises(SystemExit):
        predict_images(in_torch, test_folder, tmp_path / "results")
    errors = {row["image"]: row["error"] for row in table(tmp_path / "results") if row["error"]}
    assert "No such file" in errors["dent/009.png"]
    assert errors["dent/001.png"].endswith("001_mask.png has 60 x 80 pixels, its image 80 x 60.")
    assert "002_mask.png is no readable mask" in errors["dent/002.png"]
    assert len(errors) == 3


# --- stopped and gone on with ----------------------------------------------------------------------------------------


def test_ctrl_c_leaves_what_was_done_and_resuming_does_the_rest(
    test_folder: Path, in_torch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    predict_images(in_torch, test_folder, tmp_path / "whole")
    read, seen = folder.read_pixels, []

    def interrupted(path: Path) -> np.ndarray:
        if path.name == "001.png" and path.parent.name == "good" and not seen:
            seen.append(path)
            raise KeyboardInterrupt
        return read(path)

    monkeypatch.setattr(folder, "read_pixels", interrupted)
    with pytest.raises(SystemExit) as ended:
        predict_images(in_torch, test_folder, tmp_path / "results")
    assert ended.value.code == 130
    done = [row["image"] for row in table(tmp_path / "results")]
    assert done == sorted(NAMES)[: len(done)]
    assert {*done} <= files_below(tmp_path / "results")
    assert "--resume goes on" in capsys.readouterr().out
    predict_images(in_torch, test_folder, tmp_path / "results", resume=True)
    assert f"{len(done)} images are done, {len(NAMES) - len(done)} are left." in capsys.readouterr().out
    assert table(tmp_path / "results") == table(tmp_path / "whole")
    for name in ("gallery.png", *NAMES):
        assert (tmp_path / "results" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_half_a_row_errors_and_rows_without_picture_are_done_again(
    test_folder: Path, in_torch: Path, tmp_path: Path
) -> None:
    output = tmp_path / "results"
    predict_images(in_torch, test_folder, output)
    expected = table(output)
    rows = (output / "scores.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (output / "scores.csv").write_text(
        "".join([*rows[:4], "good/000.png,,,,could not be read,good\n", rows[5][:9]]), encoding="utf-8", newline=""
    )
    lost = [output / "dent/001.png", output / "heat_maps/good/001.png.png"]
    partial = output / "heat_maps/good/.001.png.partial.png"
    for file in lost:
        file.unlink()
    partial.touch()
    predict_images(in_torch, test_folder, output, resume=True)
    assert sorted(table(output), key=lambda row: row["image"]) == expected
    assert all(file.is_file() for file in lost)
    assert not partial.exists()
    before = (output / "scores.csv").read_bytes()
    predict_images(in_torch, test_folder, output, resume=True)  # nothing is left
    assert (output / "scores.csv").read_bytes() == before


def test_results_of_another_model_are_not_gone_on_with(test_folder: Path, tmp_path: Path) -> None:
    job = plan(test_folder, tmp_path / "results")
    job.made_by = "one"
    list(predict_folder(Brightness(), job))
    again = plan(test_folder, tmp_path / "results")
    again.made_by = "another"
    with pytest.raises(ValueError, match="holds results of another model, threshold, category or precision"):
        resume(again)
    again.made_by = "one"
    resume(again)
    assert not again.items


def test_results_of_other_images_are_not_gone_on_with(test_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "results"
    list(predict_folder(Brightness(), plan(test_folder, output)))
    other = tmp_path / "other"
    shutil.copytree(test_folder, other)
    with pytest.raises(ValueError, match=r"or of another folder of images\. Choose another output"):
        resume(plan(other, output))
    (output / "run.json").write_text("")  # a disk was full
    with pytest.raises(ValueError, match="Choose another output"):
        resume(plan(test_folder, output))


def test_an_image_that_was_replaced_is_predicted_again(test_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "results"
    list(predict_folder(Brightness(), plan(test_folder, output)))
    (old,) = [row for row in table(output) if row["image"] == "good/001.png"]
    replaced, renamed = test_folder / "good/001.png", test_folder / "good/002.png"
    write(replaced, np.full(SIZE, 255, dtype=np.uint8))
    with (output / "scores.csv").open("a", newline="") as file:
        file.write("\r\ngood/000.png,0.1,no number,0,,good\r\n")  # and an empty row
    renamed.rename(renamed.with_name("moved.png"))
    again = plan(test_folder, output)
    resume(again)
    assert [item.path.name for item in again.items] == ["001.png", "moved.png"]
    list(predict_folder(Brightness(), again))
    (new,) = [row for row in table(output) if row["image"] == "good/001.png"]
    assert float(new["raw_score"]) > float(old["raw_score"])


def test_a_score_that_is_no_number_is_no_verdict(test_folder: Path, tmp_path: Path) -> None:
    class Broken(Brightness):
        def stream(self, batches: Iterable[Prepared]) -> Iterator[Predictions]:
            for place, outputs in enumerate(super().stream(batches)):
                yield outputs._replace(pred_score=outputs.pred_score * np.nan) if place == 2 else outputs

    job = plan(test_folder, tmp_path / "results")
    assert len(list(predict_folder(Broken(), job))) == len(NAMES) - 1
    (row,) = [row for row in table(tmp_path / "results") if row["error"]]
    assert (row["score"], row["anomalous"]) == ("", "")
    assert "the model gives no number for it (NaN)" in row["error"]
    assert row["image"] in row["error"]
    with pytest.raises(ValueError, match="the model gives no number for it"):
        list(predict_folder(Broken(), plan(test_folder, tmp_path / "strict"), strict=True))
    assert len(table(tmp_path / "strict")) == 3  # two, and the one that ended it


def test_folders_and_images_may_be_called_alike(tmp_path: Path, in_torch: Path) -> None:
    """A folder like the picture of an image, and the longest name that a file may have."""
    long = "x" * 251 + ".png"
    for name in ("a.jpg", "a.png/b.png", long):
        write(tmp_path / "images" / name, photograph(0))
    predict_images(in_torch, tmp_path / "images", tmp_path / "results")
    assert files_below(tmp_path / "results") == {
        *("a.jpg.png", "a.png/b.png", long),
        *("scores.csv", "predictions.jsonl", "run.json", "gallery.png"),
    }


def test_images_of_other_kinds_are_not_left_out_in_silence(
    test_folder: Path, in_torch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("good/100.GIF", "dent/100.jfif", "notes.txt", ".hidden.gif"):
        (test_folder / name).touch()
    predict_images(in_torch, test_folder, tmp_path / "results")
    said = " ".join(capsys.readouterr().out.split())
    assert "2 files were left out, whose suffixes are not read: dent/100.jfif; good/100.GIF" in said


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text elsewhere")
def test_names_and_tables_in_any_language_and_locale(exported: Path, tmp_path: Path) -> None:
    names = [b"gr\xc3\xbcn [red].png", "部品 #1.png".encode(), b"caf\xe9.png", b'a,"b"\n.png']
    for index, name in enumerate(names):
        content = io.BytesIO()
        Image.fromarray(photograph(index)).save(content, "PNG")
        (tmp_path / "images").mkdir(exist_ok=True)
        Path(os.fsdecode(os.fsencode(tmp_path / "images") + b"/" + name)).write_bytes(content.getvalue())
    command = [sys.executable, "-m", "anomalib_inp.cli", "predict", str(exported), str(tmp_path / "images")]
    plain = {"PATH": os.environ["PATH"], "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([*command, "--output", str(tmp_path / "results")], env=plain, check=True, capture_output=True)
    found = [os.fsencode(row["image"]) for row in table(tmp_path / "results")]
    assert sorted(found) == sorted(names)
    again = [*command, "--output", str(tmp_path / "results"), "--resume", "true"]
    printed = subprocess.run(again, env=plain, check=True, capture_output=True).stdout
    assert b"4 images are done, 0 are left." in printed


def test_a_folder_without_images(in_torch: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/notes.txt").touch()
    (tmp_path / "empty/folder.png").mkdir()
    with pytest.raises(FileNotFoundError, match=r"a folder of images \(.*\.png.*\), found none in .*empty"):
        predict_images(in_torch, tmp_path / "empty", tmp_path / "results")
    with pytest.raises(FileNotFoundError, match=r"There is no image or folder .*missing"):
        predict_images(in_torch, tmp_path / "missing", tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_values_of_unknown_range_are_refused_before_the_first_prediction(in_torch: Path, tmp_path: Path) -> None:
    write(tmp_path / "images/deep.tif", np.full((64, 64), 40000, np.float32))
    with pytest.raises(ValueError, match=r"deep\.tif \(mode F; expected 8 bits per channel"):
        predict_images(in_torch, tmp_path / "images", tmp_path / "results", strict=True)
    assert not (tmp_path / "results").exists()


def test_images_of_16_bits_are_those_of_8(exported: Path, tmp_path: Path) -> None:
    """Neither scores nor pictures tell them apart."""
    for name, factor in (("a8", np.uint8(1)), ("b16", np.uint16(257))):
        write(tmp_path / f"images/{name}.png", photograph(0) * factor)
    job = plan(tmp_path / "images", tmp_path / "results")
    eight, sixteen = (prediction.raw_score for _, prediction in predict_folder(ExportedModel(exported), job))
    assert sixteen == pytest.approx(eight, abs=2e-6)
    drawn = [np.asarray(Image.open(tmp_path / f"results/{name}.png"), int) for name in ("a8", "b16")]
    left = [picture[40:, :200] for picture in drawn]  # the image, below the names
    assert np.abs(left[0] - left[1]).max() <= 1


@pytest.mark.parametrize("name", ["001.png", "001_mask.PNG", "001.bmp"])
def test_masks_of_every_accepted_name_are_found(test_folder: Path, name: str) -> None:
    masks = test_folder.parent / "ground_truth/dent"
    (masks / "001_mask.png").rename(masks / name)
    found = {item.path.name: item.mask for item in find_images(test_folder).items if item.anomalous}
    assert found["001.png"] == masks / name


def test_a_folder_may_be_given_by_any_path(test_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [(item.path.name, item.anomalous, item.mask) for item in find_images(test_folder).items]
    (tmp_path / "link").symlink_to(test_folder, target_is_directory=True)
    (tmp_path / "place/test").mkdir(parents=True)
    for part in ("test", "ground_truth"):
        if part == "test":
            (tmp_path / "place/test").rmdir()
        (tmp_path / "place" / part).symlink_to(test_folder.parent / part, target_is_directory=True)
    monkeypatch.chdir(test_folder)
    for path in (Path(), Path("../test"), tmp_path / "link", tmp_path / "place/test"):
        found = find_images(path).items
        assert [(item.path.name, item.anomalous) for item in found] == [row[:2] for row in expected]
        assert [item.mask and item.mask.name for item in found] == [mask and mask.name for *_, mask in expected]
        assert all(item.mask is None or item.mask.is_file() for item in found)


def test_a_stray_picture_is_of_no_kind(test_folder: Path) -> None:
    write(test_folder / "overview.png", photograph(9))
    write(test_folder / ".ipynb_checkpoints/000.png", photograph(9))
    found = {item.path.relative_to(test_folder).as_posix(): item for item in find_images(test_folder).items}
    assert found.keys() == {*NAMES, "overview.png"}
    assert (found["overview.png"].anomalous, found["overview.png"].mask) == (None, None)


def test_linked_folders_are_entered(test_folder: Path, in_torch: Path, tmp_path: Path) -> None:
    """18 images, 6 of them in a linked folder that leads back."""
    store = tmp_path / "store"
    for index in range(6):
        write(store / f"{index}.png", photograph(index))
        write(tmp_path / f"images/a/{index}.png", photograph(index))
        write(tmp_path / f"images/b/{index}.png", photograph(index))
    (tmp_path / "images/c").symlink_to(store, target_is_directory=True)
    (store / "back").symlink_to(tmp_path / "images", target_is_directory=True)
    predict_images(in_torch, tmp_path / "images", tmp_path / "results")
    assert len(table(tmp_path / "results")) == 18
    assert len([name for name in files_below(tmp_path / "results") if name.endswith(".png")]) == 19


def test_the_gallery_shows_the_highest_raw_scores_first(
    brightness_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []

    def sheet(pictures: list[Image.Image]) -> Image.Image:
        shown.extend(Path(picture.filename).stem for picture in pictures)
        return pictures[0]

    monkeypatch.setattr(folder, "gallery", sheet)
    job = plan(brightness_folder, tmp_path / "results")
    list(predict_folder(Brightness(), job))
    draw_gallery(job)
    assert shown == ["039", "038", "037", "036", "035", "034"]
    # of a test folder, the highest of every kind, the normal ones last
    shown.clear()
    for index, name in enumerate(("good/0", "good/1", "b/2", "b/3", "a/4", "a/5")):
        write(tmp_path / f"test/{name}.png", np.full((20, 30), 40 * index, np.uint8))
    job = plan(tmp_path / "test", tmp_path / "kinds")
    list(predict_folder(Brightness(), job))
    draw_gallery(job)
    assert shown == ["5", "3", "1", "4", "2", "0"]


def test_labels_and_masks_are_those_of_the_layout(test_folder: Path) -> None:
    found = {item.path.relative_to(test_folder).as_posix(): item for item in find_images(test_folder).items}
    assert list(found) == sorted(NAMES)
    for name, item in found.items():
        assert item.anomalous == name.startswith("dent")
        mask = test_folder.parent / "ground_truth" / name.replace(".png", "_mask.png")
        assert item.mask == (mask if item.anomalous else None)
    # Below a folder that has no normal images, nothing is known.
    assert {(item.anomalous, item.mask) for item in find_images(test_folder / "dent").items} == {(None, None)}
