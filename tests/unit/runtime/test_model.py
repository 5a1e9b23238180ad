# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import nullcontext
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from threading import Barrier

import numpy as np
import onnx
import openvino
import pytest
from small_disk import small_disk

import anomalib_inp
from anomalib_inp.files import VARIABLE
from anomalib_inp.runtime.model import ExportedModel, Predictions

WRITTEN = Path(__file__).parents[2] / "golden" / "written_before"
KINDS = ("model.xml", "model.onnx")


def images(count: int = 6) -> list[np.ndarray]:
    """Batches of one, of different sizes."""
    rng = np.random.default_rng(0)
    return [rng.random((1, 3, 40 + 9 * index, 90 - 7 * index), dtype=np.float32) for index in range(count)]


def test_the_package_names_it() -> None:
    assert anomalib_inp.ExportedModel is ExportedModel


@pytest.mark.parametrize("kind", KINDS)
def test_another_process_opens_the_file_anew(kind: str) -> None:
    model, (image,) = ExportedModel(WRITTEN / kind, category="grass"), images(1)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        theirs = process.submit(ExportedModel.__call__, model, image).result()
    ours = model(image)
    for name in ours._fields:
        np.testing.assert_array_equal(getattr(theirs, name), getattr(ours, name))


def test_a_copy_has_the_same_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(WRITTEN)
    model = ExportedModel("model.xml", performance="throughput", threads=2, streams=2, category="brick")
    monkeypatch.chdir(tmp_path)
    assert pickle.loads(pickle.dumps(model)).__reduce__() == model.__reduce__()  # noqa: S301
    assert pickle.loads(pickle.dumps(model)).metadata == model.metadata  # noqa: S301


@pytest.mark.parametrize("performance", ["latency", "throughput"])
@pytest.mark.parametrize("kind", KINDS)
def test_many_threads_share_a_model(kind: str, performance: str) -> None:
    model, batches = ExportedModel(WRITTEN / kind, performance=performance), images()
    expected = [model(batch) for batch in batches]
    together = Barrier(4)

    def run(start: int) -> list[float]:
        together.wait(10)  # all at once, each with another image
        found = []
        for position in range(12):
            index = (start + position) % len(batches)
            result = model(batches[index])
            np.testing.assert_array_equal(result.anomaly_map, expected[index].anomaly_map)
            found.append(float(result.pred_score[0] - expected[index].pred_score[0]))
        return found

    with ThreadPoolExecutor(4) as threads:
        assert {difference for found in threads.map(run, range(4)) for difference in found} == {0.0}


def test_what_was_compiled_before_gives_the_same_numbers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    first, second = ([ExportedModel(WRITTEN / "model.xml")(image) for image in images()] for _ in range(2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.anomaly_map, other.anomaly_map)
    (kept,) = (tmp_path / "openvino").iterdir()
    kept.write_bytes(b"broken")
    assert ExportedModel(WRITTEN / "model.xml")(images(1)[0]).pred_score == first[0].pred_score
    assert kept.stat().st_size > 1000


def test_another_file_of_the_same_name_is_compiled_anew(tmp_path: Path) -> None:
    for suffix in ("xml", "bin"):
        shutil.copy(WRITTEN / f"model.{suffix}", tmp_path)
    before = ExportedModel(tmp_path / "model.xml")(images(1)[0]).pred_score
    places = re.findall(r'offset="(\d+)" size="(\d+)"', (tmp_path / "model.xml").read_text())
    offset, size = max(((int(offset), int(size)) for offset, size in places), key=lambda place: place[1])
    with (tmp_path / "model.bin").open("r+b") as file:
        file.seek(offset)
        file.write(bytes(size))
    assert ExportedModel(tmp_path / "model.xml")(images(1)[0]).pred_score != before


@pytest.mark.parametrize("size", [(1, 3, 40, 50), (2, 3, 64, 96), (1, 3, 150, 70)])
def test_resizing_outside_the_graph_changes_nothing(size: tuple[int, ...]) -> None:
    """OpenVINO runs the file as it is, resizing included, and gives the same numbers."""
    image = np.random.default_rng(1).random(size, dtype=np.float32)
    core = openvino.Core()
    whole = core.compile_model(core.read_model(WRITTEN / "model.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    theirs, ours = whole(image), ExportedModel(WRITTEN / "model.xml")(image)
    for name in ("pred_score", "anomaly_map"):
        np.testing.assert_allclose(getattr(ours, name), theirs[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_images_may_be_prepared_beforehand(kind: str) -> None:
    model = ExportedModel(WRITTEN / kind)
    for image in images():
        prepared = model.prepare(image)
        assert prepared.batch.shape[2:] == ((64, 96) if kind == "model.xml" else image.shape[2:])
        np.testing.assert_array_equal(model(prepared).anomaly_map, model(image).anomaly_map)


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_file_is_named(kind: str, tmp_path: Path) -> None:
    (tmp_path / kind).write_bytes((WRITTEN / kind).read_bytes()[:-100])
    shutil.copy(WRITTEN / "model.bin", tmp_path)
    with pytest.raises(ValueError, match=rf"{kind} cannot be read as a model"):
        ExportedModel(tmp_path / kind)


def test_a_model_without_its_weights(tmp_path: Path) -> None:
    shutil.copy(WRITTEN / "model.xml", tmp_path)
    with pytest.raises(ValueError, match=r"needs its \.bin beside it"):
        ExportedModel(tmp_path / "model.xml")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_a_signal_comes_through_when_another_thread_has_let_a_model_go() -> None:
    """The stack for signals that OpenVINO gives to a thread stays as long as the thread."""
    code = f"""
import signal, sys, threading
from anomalib_inp.runtime.model import ExportedModel
models = [ExportedModel({str(WRITTEN / "model.xml")!r})]
thread = threading.Thread(target=models.clear)
thread.start()
thread.join()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
signal.raise_signal(signal.SIGTERM)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 7


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux tells where threads may run")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core is all cores")
def test_models_that_take_some_cores_do_not_all_take_the_first() -> None:
    code = f"""
import contextlib, os, threading
import numpy as np
from anomalib_inp.runtime.model import ExportedModel
cores = os.sched_getaffinity(0)
model = ExportedModel({str(WRITTEN / "model.xml")!r}, performance="throughput", threads=1)
images = [np.zeros((1, 3, 40, 40), np.float32)] * 300
working = threading.Thread(target=lambda: list(model.stream(images)))
working.start()
while working.is_alive():  # where threads may run counts only as long as they work
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            assert os.sched_getaffinity(int(thread)) == cores
"""
    subprocess.run([sys.executable, "-c", code], check=True)


COLOURS = np.random.default_rng(3).integers(0, 256, (50, 60, 3), dtype=np.uint8)


def same(one: Predictions, other: Predictions, atol: float = 1e-6) -> None:
    for name in one._fields:
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=atol)


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_taken_as_cameras_and_opencv_give_them(kind: str) -> None:
    model = ExportedModel(WRITTEN / kind)
    expected = model(COLOURS.transpose(2, 0, 1)[None] * np.float32(1 / 255))
    same(model(COLOURS), expected)
    same(model(COLOURS.astype(np.uint16) * np.uint16(257)), expected, atol=1e-5)  # other roundings of the pixels
    same(model(COLOURS[..., ::-1], channels="bgr"), expected)
    same(model(model.prepare(COLOURS[..., ::-1], channels="bgr"), channels="bgr"), expected)  # turned round once
    (streamed,) = model.stream([COLOURS[..., ::-1]], channels="bgr")
    same(streamed, expected)
    pair = model(np.stack([COLOURS, COLOURS[::-1]]))
    np.testing.assert_allclose(pair.pred_score, [expected.pred_score[0], model(COLOURS[::-1]).pred_score[0]], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_that_are_no_images_never_reach_the_runtime(kind: str) -> None:
    model = ExportedModel(WRITTEN / kind)
    with pytest.raises(ValueError, match="nan to nan"):
        model(np.where(COLOURS > 250, np.nan, COLOURS / 255))
    with pytest.raises(ValueError, match="got 0 to 255"):
        next(model.stream([COLOURS.astype(np.float32)]))
    with pytest.raises(ValueError, match=r"channels must be rgb or bgr, got 'grb'"):
        model(COLOURS, channels="grb")  # type: ignore[arg-type]
    same(model(COLOURS), model(COLOURS))  # and it goes on


def fixed_size_onnx(path: Path) -> Path:
    """The golden model for images of one size."""
    model = onnx.load(WRITTEN / "model.onnx")
    for place, length in enumerate((1, 3, 40, 50)):
        model.graph.input[0].type.tensor_type.shape.dim[place].dim_value = length
    onnx.save(model, path)
    return path


def fixed_size_openvino(path: Path) -> Path:
    """The golden model for images of one size."""
    model = openvino.Core().read_model(WRITTEN / "model.xml")
    model.reshape([-1, 3, 40, 50])
    openvino.save_model(model, path, compress_to_fp16=False)
    return path


@pytest.mark.parametrize("make", [fixed_size_onnx, fixed_size_openvino])
def test_an_export_for_one_size_says_which(make: Callable[[Path], Path], tmp_path: Path) -> None:
    kind = "model.onnx" if make is fixed_size_onnx else "model.xml"
    model = ExportedModel(make(tmp_path / kind))
    image = COLOURS[:40, :50]
    same(model(image), ExportedModel(WRITTEN / kind)(image))
    batch = "1" if make is fixed_size_onnx else "any"
    message = rf"a batch of {batch} x 3 x 40 x 50 \(images, channels, height, width\), got 1 x 3 x 50 x 60\. Resize"
    with pytest.raises(ValueError, match=message):
        model(COLOURS)


@pytest.mark.parametrize("place", ["file", "full"])
def test_a_cache_that_takes_no_files_is_done_without(
    place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(VARIABLE, str(tmp_path / place))
    expected = ExportedModel(WRITTEN / "model.onnx")(COLOURS)
    with small_disk(1000) if place == "full" else nullcontext():
        with pytest.warns(UserWarning, match=rf"cannot be kept in .*{place}/openvino: .*{VARIABLE} in the environment"):
            model = ExportedModel(WRITTEN / "model.xml")
        same(model(COLOURS), expected, atol=1e-5)
    assert not [path for path in (tmp_path / place).rglob("*") if path.is_file()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("performance", ["latency", "throughput"])
def test_what_was_done_before_a_source_fails_is_given(kind: str, performance: str) -> None:
    model = ExportedModel(WRITTEN / kind, performance=performance)

    def source() -> Iterator[np.ndarray]:
        yield from images(5)
        msg = "the camera is gone"
        raise OSError(msg)

    stream = model.stream(source())
    results = list(islice(stream, 5))
    same(results[-1], model(images(5)[-1]))
    with pytest.raises(OSError, match="the camera is gone"):
        next(stream)
