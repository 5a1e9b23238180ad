# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""A computer that has OpenVINO or ONNX Runtime, but neither PyTorch nor anomalib: exports run and thresholds move."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_inp import InpFormer
from anomalib_inp.cli import COMMANDS
from anomalib_inp.results.records import FILE, read_records
from anomalib_inp.runtime.model import ExportedModel

Make = Callable[..., Any]
WRITTEN = Path(__file__).parents[1] / "golden" / "written_before"
MISSING = (
    *("torch", "torchvision", "torchmetrics", "anomalib", "lightning", "timm", "kornia", "safetensors"),
    *("matplotlib", "pandas", "scipy", "skimage", "sklearn", "onnx", "onnxscript", "nncf"),
)
NEEDS_MORE = "pip install 'anomalib-inp[train]'"

# Runs commands one after the other, and says how each ended and what it printed.
SCRIPT = """
import contextlib, io, json, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

missing, commands = json.loads(sys.argv[1])
sys.meta_path.insert(0, Missing())

import numpy as np
from anomalib_inp import ExportedModel, plugin
from anomalib_inp.cli import main

plugin.register()
endings = []
for command in commands:
    printed, code = io.StringIO(), None
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        if command[0] == "score":
            score, = ExportedModel(command[1])(np.zeros((1, 3, 40, 60), np.float32)).pred_score
            print(repr(float(score)))
        else:
            sys.argv = ["anomalib-inp", *command]
            try:
                main()
            except SystemExit as ended:
                code = ended.code
    endings.append((code, printed.getvalue()))
loaded = sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "anomalib", "openvino", "onnxruntime"})
print(json.dumps([endings, loaded]))
"""


def run(commands: list[list[str]], missing: tuple[str, ...]) -> tuple[list[tuple[str | int | None, str]], list[str]]:
    """Run commands in a process in which modules cannot be imported."""
    arguments = [sys.executable, "-c", SCRIPT, json.dumps([missing, commands])]
    environment = {**os.environ, "COLUMNS": "200"}
    ended = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    endings, loaded = json.loads(ended.stdout.splitlines()[-1])
    return endings, loaded


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two exports, and images that the layout of their folder tells labels of."""
    for name in ("model.xml", "model.bin", "model.onnx"):
        shutil.copy(WRITTEN / name, tmp_path)
    rng = np.random.default_rng(0)
    for name in ("good/000.png", "good/001.jpg", "dent/000.png"):
        path = tmp_path / "part/test" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (50, 60, 3), dtype=np.uint8)).save(path)
    return tmp_path


@pytest.mark.parametrize(("kind", "other"), [("model.xml", "onnxruntime"), ("model.onnx", "openvino")])
def test_exports_run(kind: str, other: str, folder: Path) -> None:
    model, test, results = str(folder / kind), str(folder / "part/test"), folder / "results"
    commands = [
        ["score", model],
        ["predict", model, f"{test}/dent/000.png", "--output", str(results / "one")],
        ["predict", model, test, "--output", str(results / "all")],
        ["threshold", model],
    ]
    endings, loaded = run(commands, (*MISSING, other))
    assert [code for code, _ in endings] == [None] * 4, endings
    assert loaded == [{"openvino": "onnxruntime", "onnxruntime": "openvino"}[other]]
    (_, score), (_, one), (_, several), (_, threshold) = endings
    assert float(score) == ExportedModel(model)(np.zeros((1, 3, 40, 60), np.float32)).pred_score[0]
    assert "Pictures" in one
    assert NEEDS_MORE not in one, "metrics are not missed where there are no labels"
    assert f"No metrics: they need {NEEDS_MORE}" in several
    assert "Image threshold: 0.834874" in threshold
    pictures = {path.relative_to(results / "all").as_posix() for path in (results / "all").rglob("*.png")}
    heat_maps = {name for name in pictures if name.startswith("heat_maps/")}
    assert heat_maps == {f"heat_maps/{name}.png" for name in ("good/000.png", "good/001.jpg", "dent/000.png")}
    pictures -= heat_maps
    assert pictures == {"good/000.png", "good/001.png", "dent/000.png", "gallery.png"}
    scores = [(results / name / "scores.csv").read_text().splitlines() for name in ("one", "all")]
    assert [len(rows) for rows in scores] == [2, 4]
    assert scores[0][1] + "dent" == scores[1][1].removeprefix("dent/")  # its kind, which the folder tells
    assert "No false alarms counted: that needs pip install 'anomalib-inp[serve]'" in several


@pytest.mark.parametrize("kind", ["model.xml", "model.onnx"])
def test_thresholds_move(kind: str, folder: Path) -> None:
    missing = tuple(name for name in MISSING if kind == "model.xml" or name != "onnx")
    (moved, shown), _ = run(
        [["threshold", str(folder / kind), "--image", "0.5"], ["threshold", str(folder / kind)]], missing
    )
    assert moved[0] is shown[0] is None
    assert moved[1] == shown[1]
    assert "Image threshold: 0.5\n" in shown[1]


@pytest.mark.parametrize("kind", ["openvino", "onnx"])
def test_a_mask_is_put_in_and_a_run_reported(kind: str, folder: Path, tiny_model: Make, tmp_path: Path) -> None:
    """Regions are listed where the mask is white, down to the smallest area, and the page is written."""
    torch.manual_seed(0)
    model = tiny_model(InpFormer, spread=8, target_layers=[1, 2], map_size=48, image_size=64, evaluator=False).eval()
    image = torch.from_numpy(np.asarray(Image.open(folder / "part/test/good/000.png"))).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        found = model.model(model.pre_processor.transform(image))
    model.post_processor.set_thresholds(float(found.pred_score), float(found.anomaly_map.quantile(0.7)))
    path, size = str(getattr(model, f"to_{kind}")(tmp_path)), image.shape[:1:-1]
    pixels = np.zeros((40, 60), np.uint8)
    pixels[:, :30] = 255
    Image.fromarray(pixels).save(tmp_path / "roi.png")
    predict = ["predict", path, str(folder / "part/test"), "--output"]
    commands = [
        [*predict, str(tmp_path / "everything")],
        ["inspect", path, "--mask", str(tmp_path / "roi.png"), "--smallest_area", "30"],
        ["inspect", path],
        [*predict, str(tmp_path / "left")],
        ["report", str(tmp_path / "left")],
        ["inspect", path, "--mask=", "--smallest_area", "0"],
        ["inspect", str(folder / "model.xml"), "--mask", str(tmp_path / "roi.png")],
    ]
    endings, _ = run(commands, tuple(name for name in MISSING if kind == "openvino" or name != "onnx"))
    *fine, (refused, _) = endings
    assert [code for code, _ in fine] == [None] * 6, endings
    _, (_, changed), (_, shown), _, (_, reported), (_, whole) = fine
    assert "Inspected: 50.0% of the image" in changed
    assert "choose them anew" in changed
    assert changed.startswith(shown)
    assert "3 images" in reported
    assert "Inspected: everything\nSmallest area: 0 pixels" in whole
    assert "an export of an earlier version" in refused
    everything, left = (
        [region for record in read_records(tmp_path / name / FILE) for region in record["regions"]]
        for name in ("everything", "left")
    )
    assert max(region["box"][2] for region in everything) > size[0] / 2 + 1
    assert max(region["box"][2] for region in left) <= size[0] / 2 + 1
    assert min(region["area"] for region in left) >= 30 > min(region["area"] for region in everything)


def test_a_threshold_is_chosen_by_false_alarms(folder: Path) -> None:
    command = ["threshold", str(folder / "model.xml"), "--false_alarms", "0.5", "--images", str(folder / "part/test")]
    ((message, _),), _ = run([command], MISSING)
    assert message.startswith("anomalib-inp: threshold needs pip install 'anomalib-inp[serve]'")
    ((code, said),), loaded = run([command], tuple(name for name in MISSING if name != "scipy"))
    assert code is None
    assert loaded == ["openvino"]
    assert f"Of 2 normal images in {folder / 'part/test'}, 1 are above it." in said


def test_help_needs_nothing_and_other_commands_say_what_they_need(folder: Path) -> None:
    helps = [["--help"], *([command, "--help"] for command in COMMANDS)]
    heavy = [
        ["benchmark", "multi_class"],
        ["benchmark-export", "a.ckpt", str(folder / "part/test")],
        ["sample-data", str(folder / "sample")],
        ["convert", "model.pth", "inp.ckpt"],
        ["map", "inp.ckpt"],
        ["threshold", "inp.ckpt"],
    ]
    endings, loaded = run([*helps, *heavy], (*MISSING, "openvino", "onnxruntime"))
    assert loaded == []
    assert [code for code, _ in endings[: len(helps)]] == [0] * len(helps)
    for command in COMMANDS:
        assert command in endings[0][1]
    for command, (message, _) in zip(heavy, endings[len(helps) :], strict=True):
        assert message.startswith(f"anomalib-inp: {command[0]} needs {NEEDS_MORE}"), message
        assert "\n" not in message


@pytest.mark.parametrize(("kind", "extra"), [("model.xml", "openvino"), ("model.onnx", "onnx")])
def test_a_missing_runtime_is_named(kind: str, extra: str, folder: Path) -> None:
    image = str(folder / "part/test/dent/000.png")
    commands = [["predict", str(folder / kind), image, "--output", str(folder / "results")]]
    commands.append(["threshold", str(folder / kind), "--image", "0.5"])
    endings, _ = run(commands, (*MISSING, "openvino", "onnxruntime"))
    assert [message for message, _ in endings] == [
        f"anomalib-inp: {kind} needs pip install 'anomalib-inp[{extra}]'." for _ in commands
    ]
