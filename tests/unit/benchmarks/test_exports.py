# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine

from anomalib_inp import InpFormer
from anomalib_inp.benchmarks import exports
from anomalib_inp.benchmarks.exports import COLUMNS, Format, benchmark_export, cost_of, memory_now, memory_peak
from anomalib_inp.data.sample import write_sample_data
from anomalib_inp.runtime.job import find_images


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample_data(tmp_path_factory.mktemp("data") / "sample", categories=("brick",)) / "brick"


@pytest.fixture(scope="module")
def checkpoint(data: Path, tiny_model: Callable[..., InpFormer], quiet_engine: Callable[..., Engine]) -> Path:
    torch.manual_seed(0)
    run = quiet_engine()
    module = MVTecAD(data.parent, "brick", num_workers=0, val_split_mode="same_as_test")
    run.fit(tiny_model(target_layers=[1, 2], map_size=32), datamodule=module)
    (path,) = Path(run.trainer.default_root_dir).rglob("finished.ckpt")
    return path


@pytest.mark.usefixtures("_measured_here")
def test_every_format_is_measured_and_scores_like_pytorch(checkpoint: Path, data: Path, tmp_path: Path, capsys) -> None:
    benchmark_export(checkpoint, data / "test", output=tmp_path, runs=2)
    with (tmp_path / "formats.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(COLUMNS)
    cpu = [(row["format"], row["precision"]) for row in rows if row["device"] == "CPU"]
    openvino = [f"OpenVINO {kind}" for kind in ("FP32", "FP16", "INT8")]
    assert cpu == [
        ("PyTorch", "f32"),
        ("ONNX Runtime", "f32"),
        *((kind, p) for kind in openvino for p in ("f32", "own")),
    ]
    by_name = {(row["format"], row["precision"]): row for row in rows}
    torch_row = by_name["PyTorch", "f32"]
    for name in ("ONNX Runtime", "OpenVINO FP32"):
        row = by_name[name, "f32"]
        assert float(row["score difference"]) < 1e-4
        assert (row["I-AUROC"], row["P-AP"]) == (torch_row["I-AUROC"], torch_row["P-AP"])
    sizes = [float(by_name[kind, "f32"]["size MB"]) for kind in openvino]
    assert sizes[0] > 1.5 * max(sizes[1:])
    # the encoder is no part of a checkpoint, but PyTorch needs it
    assert float(torch_row["size MB"]) == pytest.approx(sizes[0], rel=0.2)
    for row in rows:
        assert float(row["median ms"]) <= float(row["p95 ms"])
        assert float(row["images /s"]) > 0
    printed = capsys.readouterr().out
    assert [value for value in torch_row.values() if value not in printed] == [], printed  # nothing is cut


def test_a_format_that_does_not_run_is_named_and_the_others_go_on(
    checkpoint: Path, data: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    formats = [Format("PyTorch", checkpoint), Format("OpenVINO FP32", tmp_path / "gone.xml", "NPU")]
    monkeypatch.setattr(exports, "export_all", lambda *_: iter(formats))
    benchmark_export(checkpoint, data / "test", output=tmp_path, runs=2)
    assert "OpenVINO FP32 on NPU does not run: FileNotFoundError" in capsys.readouterr().out.replace("\n", " ")
    assert len((tmp_path / "formats.csv").read_text().splitlines()) == 2


def test_images_without_labels_have_no_accuracy(checkpoint: Path, data: Path) -> None:
    cost = cost_of(Format("PyTorch", checkpoint), find_images(data / "test/good").items[:2], runs=2, threads=None)
    assert np.isnan(cost.image_auroc)
    assert np.isnan(cost.pixel_ap)
    assert len(cost.scores) == 2


def test_a_folder_that_was_named_and_is_not_there_is_an_error(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        benchmark_export(checkpoint, data / "test", calibration=tmp_path / "nowhere", output=tmp_path, runs=2)


def test_too_few_runs_are_refused(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 2, got 1"):
        benchmark_export(checkpoint, data / "test", output=tmp_path, runs=1)


def test_memory_grows_by_what_is_held() -> None:
    before = memory_now()
    if np.isnan(before):
        pytest.skip("memory is read on Linux only")
    held = np.ones(50_000_000, dtype=np.uint8)
    del held
    assert 40 < memory_peak() - before < 120
