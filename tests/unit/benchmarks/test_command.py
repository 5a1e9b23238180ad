# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The command, from the words to the report."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from anomalib_inp import cli
from anomalib_inp.benchmarks import runs as benchmark_runs


def test_a_benchmark_runs_once(
    root: Path,
    tiny_encoder_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["benchmark", "single_class", "--root", str(root), "--output", str(tmp_path / "out"), "--seeds", "[1]"]
    monkeypatch.chdir(tmp_path)
    encoder = Path(shutil.copy(tiny_encoder_file, "encoder.safetensors"))
    words += ["--model_args", json.dumps({"encoder": "test_vit", "encoder_weights": str(encoder)})]
    words += ["--model_args.image_size", "64", "--model_args.crop_size", "null"]
    words += ["--data_args", json.dumps({"num_workers": 0, "train_batch_size": 4})]
    words += ["--trainer_args", json.dumps({"max_steps": 2, "accelerator": "cpu", "enable_progress_bar": False})]

    def run(*more: str) -> str:
        monkeypatch.setattr(sys, "argv", ["anomalib-inp", *words, *more])
        cli.main()
        return capsys.readouterr().out

    shown = run()
    folder = tmp_path / "out" / "single_class-InpFormer"
    assert "brick" in shown
    for category in ("brick", "grass"):
        assert list(json.loads((folder / "seed1" / category / "metrics.json").read_text())) == [category]
        with Image.open(folder / "seed1" / category / "images" / f"{category}.png") as sheet:
            assert sheet.height > 4 * 192  # two of the best and the worst, anomalous and normal
        kept = sorted(path.name for path in (folder / "seed1" / category).rglob("*.ckpt"))
        assert kept == ["finished.ckpt"]  # what was to resume from is large
    report = (folder / "report.md").read_text()
    assert "model: image_size=64, crop_size=None, encoder=test_vit, encoder_weights=" in report
    assert "of the data: num_workers=0, train_batch_size=4; of the trainer: max_steps=2, accel" in report
    monkeypatch.setattr(benchmark_runs, "train_and_test", lambda *_: pytest.fail("this run is done"))
    assert run().splitlines()[-5:] == shown.splitlines()[-5:]
    with pytest.raises(SystemExit, match=r"with other arguments: model\.num_prototypes was None and is 3. Choose"):
        run("--model_args.num_prototypes", "3")
    with pytest.raises(SystemExit, match="shots is for few_shot, not for single_class"):
        run("--shots", "2")
    encoder.write_bytes(encoder.read_bytes()[:-1] + b"\0")
    with pytest.raises(SystemExit, match=r"other arguments: model\.encoder_weights was /.*/encoder\.safetensors, \d+-"):
        run()
