# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import io
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from anomalib.data import Folder, MVTecAD
from part import SIZE, mask, pixels, write, write_part
from PIL import Image

from anomalib_inp.data.file_checks import DataError
from anomalib_inp.training import data_check

Make = Callable[..., Any]
CROPPED = {"image_size": SIZE, "crop_size": 64}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_part(tmp_path / "data")


@pytest.fixture
def datamodule(root: Path) -> MVTecAD:
    return MVTecAD(root=root, category="part", num_workers=0, train_batch_size=1, val_split_mode="same_as_test")


# --- files that are no images -----------------------------------------------------------------------------------------


def test_an_empty_training_folder_is_named(
    quiet_engine: Make, datamodule: MVTecAD, root: Path, tiny_model: Make
) -> None:
    for path in (root / "part/train/good").iterdir():
        path.unlink()
    with pytest.raises(DataError) as caught:
        quiet_engine().fit(tiny_model(), datamodule=datamodule)
    assert f"There are no training images in {root / 'part'}. " in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no image"], ids=["empty", "text"])
@pytest.mark.parametrize("name", ["train/good/001.png", "test/dent/001.png", "ground_truth/dent/001_mask.png"])
def test_a_file_that_is_no_image_is_named_before_training(
    content: bytes,
    name: str,
    quiet_engine: Make,
    datamodule: MVTecAD,
    root: Path,
    tiny_model: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = root / "part" / name
    path.write_bytes(content)
    model, steps = tiny_model(), []
    monkeypatch.setattr(model, "training_step", lambda *_: steps.append(1))
    with pytest.raises(DataError) as caught:
        quiet_engine().fit(model, datamodule=datamodule)
    assert f"Files are no images that can be used: {path} (UnidentifiedImageError). Replace, convert or remove" in str(
        caught.value
    )
    assert not steps


def test_every_run_looks_at_its_own_images(
    quiet_engine: Make, datamodule: MVTecAD, root: Path, tiny_model: Make
) -> None:
    (root / "part/train/good/001.png").write_bytes(b"")
    model = tiny_model()
    quiet_engine().validate(model, datamodule=datamodule)
    with pytest.raises(DataError, match=r"train/good/001\.png"):
        quiet_engine().fit(model, datamodule=datamodule)


def truncated() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels()).save(buffer, "PNG")
    return buffer.getvalue()[: buffer.tell() // 2]


def with_broken_chunk() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels()).save(buffer, "PNG")
    content = bytearray(buffer.getvalue())
    start = content.index(b"IDAT") - 4
    # Two data chunks, the second of which has no valid name.
    length = int.from_bytes(content[start : start + 4], "big")
    data = bytes(content[start + 8 : start + 8 + length])
    return bytes(content[:start]) + chunk(b"IDAT", data[:50]) + chunk(b"\0\1\2\3", data[50:])


def chunk(name: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")


@pytest.mark.parametrize("broken", [truncated, with_broken_chunk])
@pytest.mark.parametrize("name", ["train/good/001.png", "test/dent/001.png", "ground_truth/dent/001_mask.png"])
def test_an_image_that_cannot_be_decoded_is_named(
    broken, name: str, quiet_engine: Make, datamodule: MVTecAD, root: Path, tiny_model: Make
) -> None:
    path = root / "part" / name
    path.write_bytes(broken())
    with pytest.raises(DataError) as caught:
        quiet_engine().fit(tiny_model(), datamodule=datamodule)
    assert f"Images cannot be decoded: {path} (" in str(caught.value)
    assert str(caught.value).count(str(root)) == 1
    assert isinstance(caught.value.__cause__, OSError | SyntaxError)


def test_other_errors_stay_what_they_are(
    quiet_engine: Make, datamodule: MVTecAD, tiny_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    model = tiny_model()
    monkeypatch.setattr(model, "training_step", fail)
    for error in (OSError("disk full"), RuntimeError("no memory")):
        with pytest.raises(type(error), match=str(error)):
            quiet_engine().fit(model, datamodule=datamodule)


# --- what a crop leaves out -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", ["fit", "validate", "test"])
def test_a_crop_is_announced_and_what_it_misses_is_counted(
    run: str, quiet_engine: Make, datamodule: MVTecAD, tiny_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(data_check, "rank_zero_info", said.append)
    subset = "test" if run == "test" else "validation"
    expected = f"1 of the 3 anomalous {subset} images have their whole mask outside the inspected centre"
    model = tiny_model(**CROPPED)
    # Of a training, two epochs here, the last validation is reported.
    with pytest.warns(UserWarning, match=expected) as caught:
        getattr(quiet_engine(max_epochs=2), run)(model, datamodule=datamodule)
    assert len([warning for warning in caught if "whole mask outside" in str(warning.message)]) == 1
    centre = "Only the centre of each image is inspected: 16.7 to 83.3 % of its width, 16.7 to 83.3 % of its height."
    counts = ["Images: 2 train, 4 validate (3 anomalous), 4 test (3 anomalous)."] if run == "fit" else []
    assert said == [centre, *counts]


def test_without_a_crop_nothing_is_missed(
    quiet_engine: Make, datamodule: MVTecAD, tiny_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(data_check, "rank_zero_info", said.append)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet_engine().test(tiny_model(), datamodule=datamodule)
    assert not [warning for warning in caught if "mask outside" in str(warning.message)]
    assert not said


def test_a_crop_that_misses_nothing_says_so_by_silence(
    quiet_engine: Make, datamodule: MVTecAD, root: Path, tiny_model: Make
) -> None:
    write(root / "part/ground_truth/dent/000_mask.png", mask(slice(0, 20), slice(0, 20)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet_engine().test(tiny_model(**CROPPED), datamodule=datamodule)
    assert not [warning for warning in caught if "mask outside" in str(warning.message)]


def test_the_file_for_a_folder_of_good_images_uses_them(
    tiny_model: Make, quiet_engine: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(20):
        write(tmp_path / f"parts/good/{index:03}.png", pixels(index))
    said: list[str] = []
    monkeypatch.setattr(data_check, "rank_zero_info", said.append)
    settings = yaml.safe_load((Path(__file__).parents[3] / "configs/data/folder.yaml").read_text(encoding="utf-8"))
    arguments = settings["data"]["init_args"] | {"root": tmp_path / "parts", "num_workers": 0, "train_batch_size": 8}
    model = tiny_model()
    quiet_engine(max_epochs=2, **settings["trainer"]).train(model, datamodule=Folder(**arguments))
    assert said == ["Images: 18 train, 2 validate, 0 test."]
    assert model.post_processor.image_threshold.isfinite()


@pytest.mark.parametrize(("wanted", "used"), [(0, 0), (1, 1), (8, 3)])
def test_no_more_processes_read_images_than_there_are_cores(
    wanted: int, used: int, datamodule: MVTecAD, tiny_model: Make, quiet_engine: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_check, "_cores", lambda: 3)
    datamodule.num_workers = wanted
    quiet_engine(limit_val_batches=0).validate(tiny_model(), datamodule=datamodule)  # without starting any
    assert datamodule.num_workers == used


def test_a_prediction_names_what_anomalib_leaves_out(
    tiny_model: Make, quiet_engine: Make, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    for index in range(3):
        write(tmp_path / f"images/{index}.png", pixels(index))
        write(tmp_path / f"store/{index}.png", pixels(index))
    model = tiny_model()
    quiet_engine().predict(model, data_path=tmp_path / "images")
    quiet_engine().predict(model, data_path=tmp_path / "images/0.png")
    assert not [warning for warning in recwarn if "left out" in str(warning.message)]
    (tmp_path / "images/more").symlink_to(tmp_path / "store", target_is_directory=True)
    with pytest.warns(UserWarning, match=r"3 images in linked folders are left out by anomalib: .*more/0\.png"):
        predicted = quiet_engine().predict(model, data_path=tmp_path / "images", return_predictions=True)
    assert len(predicted) == 3  # else nothing is left out


def test_a_missing_checkpoint_is_no_broken_image(
    datamodule: MVTecAD, tiny_model: Make, quiet_engine: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    monkeypatch.setattr(data_check, "decode_fault", decoded.append)
    with pytest.raises(FileNotFoundError, match=r"nothing\.ckpt"):
        quiet_engine().test(tiny_model(), datamodule=datamodule, ckpt_path=tmp_path / "nothing.ckpt")
    assert not decoded
