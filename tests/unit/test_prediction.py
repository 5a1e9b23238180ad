# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import csv
import io
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.data.utils import read_image
from PIL import Image

from anomalib_inp import InpFormer, prediction
from anomalib_inp.deploy import ExportedModel, Metadata, read_metadata
from anomalib_inp.evaluation.metrics import seven_metrics
from anomalib_inp.prediction import find_images, predict_images

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
def model(tiny_encoder_file: Path) -> InpFormer:
    torch.manual_seed(0)
    model = InpFormer(
        encoder="test_vit",
        encoder_weights=str(tiny_encoder_file),
        target_layers=[1, 2],  # a small graph exports fast
        image_size=(80, 96),
        crop_size=(64, 80),
        map_size=32,
        evaluator=False,
        visualizer=False,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.ndim > 1:
                parameter.mul_(8)
        images = torch.stack([torch.from_numpy(photograph(index)) for index in range(len(NAMES))])
        raw = model(images[:, None].expand(-1, 3, -1, -1) / 255)
    model.post_processor.set_thresholds(raw.pred_score.median().item(), raw.anomaly_map.median().item())
    return model


@pytest.fixture(scope="module")
def exported(model: InpFormer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model.to_openvino(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def without_thresholds(model: InpFormer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kept = {name: value.clone() for name, value in model.post_processor.state_dict().items()}
    for value in model.post_processor.state_dict().values():
        value.fill_(float("nan"))
    with pytest.warns(UserWarning, match="The model has no thresholds"):
        path = model.to_openvino(tmp_path_factory.mktemp("raw"))
    model.post_processor.load_state_dict(kept)
    return path


def table(output: Path) -> list[dict[str, str]]:
    with (output / "scores.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# --- a test folder ----------------------------------------------------------------------------------------------------


def test_a_test_folder_gives_scores_pictures_and_metrics(
    test_folder: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}

    def spy(*arguments: np.ndarray) -> dict[str, float]:
        seen["arguments"] = arguments
        seen["values"] = seven_metrics(*arguments)
        return seen["values"]

    monkeypatch.setattr(prediction, "seven_metrics", spy)
    monkeypatch.setenv("COLUMNS", "200")
    output = tmp_path / "results"
    predict_images(exported, test_folder, output)

    assert files_below(output) == {*NAMES, "scores.csv", "gallery.png"}
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

    scores, labels, raw_maps, masks = seen["arguments"]
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
            inside = rows[index]["image"].startswith("dent") and 10 <= y < 40 and 5 <= x - 20 * index < 25
            assert mask[row, column] == inside, (index, row, column)

    printed = capsys.readouterr().out
    assert len(seen["values"]) == 7
    for value in seen["values"].values():
        assert f"{100 * value:.2f}" in printed
    for text in ("part", "scores.csv", "gallery.png"):
        assert text in printed
    assert Image.open(output / "gallery.png").height > 5 * Image.open(output / NAMES[0]).height


def test_a_test_folder_without_masks_gives_image_metrics(
    test_folder: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (test_folder.parent / "ground_truth/dent/001_mask.png").unlink()
    arguments: list[tuple] = []
    monkeypatch.setattr(prediction, "seven_metrics", lambda *given: arguments.append(given) or {})
    predict_images(exported, test_folder, tmp_path / "results")
    assert [len(given) for given in arguments] == [2]


# --- other images -----------------------------------------------------------------------------------------------------


def test_a_plain_folder_gives_no_metrics(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index, name in enumerate(("a.png", "below/b.jpg", "below/c.BMP", "notes.txt")):
        path = write(tmp_path / "images/new.png", photograph(index))
        (tmp_path / "images" / name).parent.mkdir(exist_ok=True)
        path.rename(tmp_path / "images" / name)
    predict_images(exported, tmp_path / "images", tmp_path / "results")
    assert files_below(tmp_path / "results") == {"a.png", "below/b.png", "below/c.png", "scores.csv", "gallery.png"}
    assert [row["image"] for row in table(tmp_path / "results")] == ["a.png", "below/b.jpg", "below/c.BMP"]
    assert "AUROC" not in capsys.readouterr().out


def test_a_single_image(test_folder: Path, exported: Path, tmp_path: Path) -> None:
    predict_images(exported, test_folder / "dent/001.png", tmp_path / "results")
    assert files_below(tmp_path / "results") == {"001.png", "scores.csv", "gallery.png"}
    assert [row["image"] for row in table(tmp_path / "results")] == ["001.png"]


def test_images_of_one_name_keep_a_picture_each(exported: Path, tmp_path: Path) -> None:
    for index, name in enumerate(("a.jpg", "a.png", "gallery.bmp")):
        write(tmp_path / "images" / name, photograph(index))
    predict_images(exported, tmp_path / "images", tmp_path / "results")
    assert files_below(tmp_path / "results") == {
        "a.png", "a.png.png", "gallery.bmp.png", "scores.csv", "gallery.png"
    }
    assert len({(tmp_path / "results" / name).read_bytes() for name in ("a.png", "a.png.png", "gallery.png")}) == 3


@pytest.mark.parametrize("single", [True, False])
def test_pictures_do_not_replace_images(single: bool, test_folder: Path, exported: Path) -> None:
    folder = test_folder / "dent"
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=r"would replace images, .*dent/000\.png for one\. Choose an output outside"):
        predict_images(exported, folder / "000.png" if single else folder, folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_without_thresholds_there_are_raw_scores_and_no_verdicts(
    test_folder: Path, without_thresholds: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[dict] = []
    draw = prediction.draw_result
    monkeypatch.setattr(prediction, "draw_result", lambda *args, **kwargs: drawn.append(kwargs) or draw(*args, **kwargs))
    metrics = []
    for model in (exported, without_thresholds):
        monkeypatch.setattr(
            prediction, "seven_metrics", lambda *given: metrics.append(seven_metrics(*given)) or metrics[-1]
        )
        predict_images(model, test_folder, tmp_path / model.parent.name)
    assert metrics[1] == pytest.approx(metrics[0], abs=1e-3)
    rows, raw = table(tmp_path / exported.parent.name), table(tmp_path / without_thresholds.parent.name)
    for row, other in zip(rows, raw, strict=True):
        assert float(other["score"]) == float(other["raw_score"]) == pytest.approx(float(row["raw_score"]), abs=1e-4)
        assert other["anomalous"] == ""
    assert [(given["anomalous"], given["pred_mask"]) for given in drawn[len(rows) :]] == [(None, None)] * len(rows)


def test_raw_exports_are_drawn_normalised(
    model: InpFormer, test_folder: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.post_processor, "enable_normalization", False)
    raw = model.to_openvino(tmp_path)
    assert not read_metadata(raw).normalized
    drawn: list[np.ndarray] = []
    draw = prediction.draw_result
    monkeypatch.setattr(
        prediction, "draw_result", lambda image, shown, **kwargs: drawn.append(shown) or draw(image, shown, **kwargs)
    )
    for path in (exported, raw):
        predict_images(path, test_folder / "dent/001.png", tmp_path / path.parent.name)
    np.testing.assert_allclose(drawn[1], drawn[0], atol=1e-4)


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
def test_an_image_that_cannot_be_read_is_named(damage, test_folder: Path, exported: Path, tmp_path: Path) -> None:
    damage(test_folder / "dent/001.png")
    with pytest.raises(ValueError, match=r"test/dent/001\.png is no readable image: "):
        predict_images(exported, test_folder, tmp_path / "results")


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_a_folder_without_images(name: str, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=rf"a folder of images \(.*\.png.*\), found none in .*{name}"):
        predict_images(exported, tmp_path / name, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_labels_and_masks_are_those_of_the_layout(test_folder: Path) -> None:
    found = {item.path.relative_to(test_folder).as_posix(): item for item in find_images(test_folder)}
    assert list(found) == sorted(NAMES)
    for name, item in found.items():
        assert item.anomalous == name.startswith("dent")
        mask = test_folder.parent / "ground_truth" / name.replace(".png", "_mask.png")
        assert item.mask == (mask if item.anomalous else None)
    # Below a folder that has no normal images, nothing is known.
    assert {(item.anomalous, item.mask) for item in find_images(test_folder / "dent")} == {(None, None)}


def test_a_model_without_post_processor_has_no_thresholds(tiny_encoder_file: Path) -> None:
    arguments = {"encoder": "test_vit", "encoder_weights": str(tiny_encoder_file), "image_size": 64}
    metadata = Metadata.of(InpFormer(**arguments, post_processor=False))
    assert not metadata.normalized
    assert np.isnan([metadata.image_threshold, metadata.pixel_threshold]).all()
