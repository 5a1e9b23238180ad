# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import importlib.metadata
import inspect
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from PIL import Image

from anomalib_inp import InpFormer, cli
from anomalib_inp.checkpoints import edit
from anomalib_inp.data.sample import CATEGORIES, write_sample_data
from anomalib_inp.frame import WHOLE_IMAGE
from anomalib_inp.runtime import metadata
from anomalib_inp.runtime.job import Job
from anomalib_inp.runtime.metadata import Metadata
from anomalib_inp.thresholds.scale import NO_SCALE, Scale, Thresholds

GOLDEN = Path(__file__).parents[1] / "golden" / "inp_former_tiny" / "model.pth"
COMMANDS = {name: cli.find_command(name) for name in cli.COMMANDS}

Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command with arguments and returns what it printed."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr("sys.argv", ["anomalib-inp", *map(str, arguments)])
        capsys.readouterr()
        cli.main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command with arguments that end it with an error and returns the message."""

    def fail(*arguments: object) -> str:
        monkeypatch.setattr("sys.argv", ["anomalib-inp", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert caught.value.code not in {None, 0}
        return str(caught.value.code) if isinstance(caught.value.code, str) else capsys.readouterr().err

    return fail


@pytest.fixture(scope="module")
def exported(tiny_model: Callable[..., InpFormer], tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = tiny_model(target_layers=[1, 2], map_size=32)  # a graph of two blocks exports fast
    model.post_processor.set_thresholds(image=1.0, pixel=0.9)
    return model.to_openvino(tmp_path_factory.mktemp("export"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("test/good/000.png", "test/dent/000.png", "ground_truth/dent/000_mask.png"):
        path = tmp_path / "part" / name
        path.parent.mkdir(parents=True)
        pixels = np.zeros((40, 50), dtype=np.uint8)
        pixels[10:30, 10:30] = 255
        Image.fromarray(pixels if "mask" in name else rng.integers(0, 256, (40, 50), dtype=np.uint8)).save(path)
    return tmp_path / "part/test"


# --- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_a_command_does(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("sys.argv", ["anomalib-inp", command, "--help"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    documentation = COMMANDS[command].__doc__
    summary, arguments = documentation.split("Raises:")[0].split("Args:")
    assert " ".join(summary.split("\n\n")[0].split()) in printed
    named = re.findall(r"^ +(\w+): (.+)$", arguments, re.MULTILINE)
    assert len(named) >= len(inspect.signature(COMMANDS[command]).parameters) > 0
    for name, text in named:
        assert name in printed
        assert text.rstrip(".") in printed


def test_help_lists_the_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["anomalib-inp", "--help"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    for command in COMMANDS:
        assert command in printed


def test_the_command_is_installed() -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="anomalib-inp")
    assert script.load() is cli.main


# --- sample-data ------------------------------------------------------------------------------------------------------


def test_sample_data(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict] = []

    def write(folder: Path, **kwargs: object) -> Path:
        asked.append(kwargs)
        return write_sample_data(folder, categories=["brick"], **kwargs)

    monkeypatch.setattr("anomalib_inp.data.sample.write_sample_data", write)
    printed = run("sample-data", tmp_path / "data", "--seed", 3)
    assert asked == [{"seed": 3}]
    assert len(list((tmp_path / "data/brick/train/good").glob("*.png"))) == 40
    for text in (*CATEGORIES, str(tmp_path / "data")):
        assert text in printed


def test_sample_data_overwrite_nothing(fail: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    message = fail("sample-data", tmp_path)
    assert message.startswith("anomalib-inp: Expected no folder, an empty one or sample data")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# --- convert ----------------------------------------------------------------------------------------------------------


def test_convert_and_set_thresholds(run: Run, tmp_path: Path) -> None:
    checkpoint = tmp_path / "inp.ckpt"
    printed = run("convert", GOLDEN, checkpoint)
    encoder = tmp_path / "inp.encoder.safetensors"
    assert f"Checkpoint: {checkpoint}" in printed
    assert f"Its encoder: {encoder} (keep it beside the checkpoint)" in printed
    assert sorted(tmp_path.iterdir()) == [checkpoint, encoder]

    assert run("threshold", checkpoint).splitlines() == [
        "Image threshold: nan",
        "Pixel threshold: nan",
        "Scores: normalised",
    ]
    printed = run("threshold", checkpoint, "--image", 0.25, "--pixel", 0.5, "--normalized", "false")
    expected = Thresholds(0.25, 0.5, normalized=False, categories=[])
    assert printed.splitlines() == ["Image threshold: 0.25", "Pixel threshold: 0.5", "Scores: raw"]
    assert edit.set_thresholds(checkpoint) == expected
    content = torch.load(checkpoint, weights_only=True)
    content["anomalib_post_processor_config"]["ranges"] = {name: [[0.3, 0.1, 0.5]] * 2 for name in ("bolt", "nut")}
    torch.save(content, tmp_path / "two.ckpt")
    assert run("threshold", tmp_path / "two.ckpt").splitlines()[-1] == "With --category, those of: bolt, nut"
    assert "With" not in run("threshold", tmp_path / "two.ckpt", "--category", "nut")
    post = InpFormer.load_from_checkpoint(checkpoint).post_processor
    assert (post.image_threshold, post.pixel_threshold) == (torch.tensor(0.25), torch.tensor(0.5))
    assert not post.enable_normalization


def test_convert_says_what_is_wrong(fail: Run, tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "model.pth")
    message = fail("convert", tmp_path / "model.pth", tmp_path / "inp.ckpt")
    assert message.startswith("anomalib-inp: Expected a checkpoint of the INP-Former reference code")
    message = fail("convert", tmp_path / "missing.pth", tmp_path / "inp.ckpt")
    assert message.startswith(f"anomalib-inp: There is no file {tmp_path / 'missing.pth'}")


# --- threshold --------------------------------------------------------------------------------------------------------


def test_thresholds_of_an_exported_model(run: Run, fail: Run, exported: Path) -> None:
    before = metadata.read_metadata(exported)
    assert f"Image threshold: {before.image.threshold:.6g}" in run("threshold", exported)
    printed = run("threshold", exported, "--image", 0.75)
    after = metadata.read_metadata(exported)
    # as text, in which an unknown number equals another
    assert after.to_json() == before._replace(image=Scale(0.75, math.nan, math.nan)).to_json()
    assert "Image threshold: 0.75" in printed
    assert "set it there and export again" in fail("threshold", exported, "--normalized", "false")
    assert "must be a finite raw score" in fail("threshold", exported, "--pixel", ".inf")
    assert metadata.read_metadata(exported).to_json() == after.to_json()


def test_thresholds_of_no_model(fail: Run, tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    assert "is no checkpoint with a post-processor of anomalib-inp" in fail("threshold", tmp_path / "other.ckpt")
    assert "missing.ckpt" in fail("threshold", tmp_path / "missing.ckpt")


# --- predict ----------------------------------------------------------------------------------------------------------


def test_predict(run: Run, exported: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    printed = run("predict", exported, images)
    found = {path.relative_to("predictions").as_posix() for path in Path("predictions").rglob("*") if path.is_file()}
    heat_maps = {f"heat_maps/{name}/000.png.png" for name in ("dent", "good")}
    files = {"scores.csv", "predictions.jsonl", "confusion.csv", "run.json"}
    assert found == {"dent/000.png", "good/000.png", "gallery.png", *files, *heat_maps}
    assert len(Path("predictions/scores.csv").read_text().splitlines()) == 3
    for text in ("AUROC", "AUPRO", "part", "predictions/scores.csv", "predictions/gallery.png"):
        assert text in printed


def test_predict_passes_its_options_on(run: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple] = []
    monkeypatch.chdir(tmp_path)  # results go where the command is run

    class Exported:
        digest = "of nothing"
        metadata = Metadata(False, NO_SCALE, NO_SCALE, WHOLE_IMAGE)

        def __init__(self, *given: object, category: str | None) -> None:
            calls.append((*given, category))

    def predict_folder(_: Exported, job: Job, strict: bool, observe: object) -> Iterator[None]:
        assert not strict
        calls.append((job.root, job.output, bool(job.pictures)))
        job.note_down()
        job.table.touch()
        return iter(())

    monkeypatch.setattr("anomalib_inp.runtime.model.ExportedModel", Exported)
    monkeypatch.setattr("anomalib_inp.runtime.folder.predict_folder", predict_folder)
    model, normal = tmp_path / "model.xml", images / "good"
    run("predict", model, normal / "000.png")
    Image.new("RGB", (8, 8)).save(normal / "001.png")
    options = (
        "--output",
        "there",
        "--device",
        "GPU",
        "--precision",
        "null",
        "--category",
        "nut",
        "--pictures",
        "false",
        "--threads",
        "3",
    )
    run("predict", model, normal, *options)
    assert calls == [
        (model, "CPU", "f32", "latency", None, None),
        (normal, Path("predictions"), True),
        (model, "GPU", None, "throughput", 3, "nut"),
        (normal, Path("there"), False),
    ]


def test_predict_says_what_is_wrong(fail: Run, exported: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    message = fail("predict", exported, tmp_path / "empty", "--output", tmp_path / "results")
    assert message.startswith("anomalib-inp: Expected an image or a folder of images")
    assert str(tmp_path / "empty") in message

    message = fail("predict", tmp_path / "missing.xml", images, "--output", tmp_path / "results")
    assert message.startswith("anomalib-inp: Expected the .xml of an exported OpenVINO model or an .onnx file")

    broken = images / "dent/000.png"
    broken.write_bytes(broken.read_bytes()[:100])
    message = fail("predict", exported, images, "--output", tmp_path / "results", "--strict", "true")
    assert message.startswith(f"anomalib-inp: {broken} is no readable image: ")


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (KeyboardInterrupt, 130, ""),
        (SIGTERMException, 143, "ended by SIGTERM"),  # Lightning's, which would end the command with 0
    ],
)
def test_whoever_stops_a_command_sees_no_traceback(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    raised: type[BaseException],
    code: int,
    said: str,
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr("anomalib_inp.data.sample.write_sample_data", stop)
    with pytest.raises(SystemExit) as stopped:
        run("sample-data", tmp_path / "sample")
    assert stopped.value.code == code
    assert said in capsys.readouterr().err


def test_an_unknown_command(fail: Run) -> None:
    assert "sample-data" in fail("trian")


def test_configs_are_written_and_none_is_replaced(run: Run, tmp_path: Path) -> None:
    source = Path(__file__).parents[2] / "configs"
    expected = {path.relative_to(source): path.read_bytes() for path in source.rglob("*.yaml")}
    own = tmp_path / "configs/data/folder.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("mine", encoding="utf-8")
    assert f"{own} is there already" in run("configs", tmp_path / "configs")
    found = {
        path.relative_to(tmp_path / "configs"): path.read_bytes() for path in (tmp_path / "configs").rglob("*.yaml")
    }
    assert found.pop(Path("data/folder.yaml")) == b"mine"
    del expected[Path("data/folder.yaml")]
    assert found == expected != {}


def test_the_wheel_holds_every_configuration() -> None:
    """As the build is told; the wheel itself is built where it is published."""
    root = Path(__file__).parents[2]
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    section = text.split("[tool.hatch.build.targets.wheel.force-include]")[1].split("[")[0]
    for folder in {path.parent.relative_to(root).as_posix() for path in (root / "configs").rglob("*.yaml")}:
        assert f'"{folder}" = "anomalib_inp/{folder}"' in section


def test_the_version(fail: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["anomalib-inp", "--version"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip() == f"anomalib-inp {importlib.metadata.version('anomalib-inp')}"


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_shells_can_complete_the_commands(shell: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["anomalib-inp", "--print_shtab", shell])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert all(command in printed for command in ("sample-data", "predict", "--resume"))
