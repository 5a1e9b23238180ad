# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Settings as stacked files: every sensible combination runs one step, the others say why not."""

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from anomalib.cli.cli import AnomalibCLI

CONFIGS = Path(__file__).parents[2] / "configs"
MODELS = ("inp_former", "inp_former_plus_plus")
DATA = ("mvtec_ad", "visa", "real_iad")
SETTINGS = tuple(sorted(path.stem for path in (CONFIGS / "setting").glob("*.yaml")))


@pytest.fixture(scope="module")
def sample(write_small_sample: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_sample(tmp_path_factory.mktemp("settings"), categories=("brick", "grass"))


def run(command: list[str], monkeypatch: pytest.MonkeyPatch) -> AnomalibCLI:
    monkeypatch.setattr(sys, "argv", ["anomalib", *command])
    return AnomalibCLI()


NAMES_ITS_DATA = ("super_multi_class", "zero_shot")


def stacked(model: str, data: str | None, setting: str) -> list[str]:
    files = (f"model/{model}", *([f"data/{data}"] if data else []), f"setting/{setting}")
    return ["train", *(word for name in files for word in ("--config", str(CONFIGS / f"{name}.yaml")))]


def sensible(model: str, setting: str) -> bool:
    return setting != "semi_supervised" or model == "inp_former_plus_plus"


COMBINATIONS = [
    (model, data, setting)
    for model, data, setting in itertools.product(MODELS, DATA, SETTINGS)
    if sensible(model, setting)
] + [(model, None, setting) for model, setting in itertools.product(MODELS, NAMES_ITS_DATA)]


def test_every_combination_parses(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for model, data, setting in COMBINATIONS:
        with pytest.raises(SystemExit) as ended:
            run([*stacked(model, data, setting), "--print_config"], monkeypatch)
        assert not ended.value.code, (model, data, setting)
        printed = yaml.safe_load(capsys.readouterr().out)
        assert printed["data"]["class_path"].endswith("MultiCategory")
        written = yaml.safe_load((CONFIGS / "setting" / f"{setting}.yaml").read_text())
        assert written
        for part, values in written.items():
            assert values["init_args"]
            for name, value in values["init_args"].items():
                got = printed[part]["init_args"][name]
                if name == "sources":
                    got = [{key: entry[key] for key in source} for source, entry in zip(value, got, strict=True)]
                assert got == value, (setting, name)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("model", MODELS)
def test_every_setting_runs(
    model: str, setting: str, sample: Path, tiny_encoder_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not sensible(model, setting):
        pytest.skip("makes no sense; see below")
    monkeypatch.chdir(tmp_path)
    one, other = ({"source": "MVTecAD", "root": str(sample), "categories": [name]} for name in ("brick", "grass"))
    several = json.dumps([{**one, "name": "Visa"}, {**other, "name": "MVTecAD"}])
    here = {
        "single_class": ["--data.categories", "[brick]"],
        "super_multi_class": ["--data.sources", several],
        "zero_shot": ["--data.sources", several],
        "few_shot": ["--data.shots", "1"],
        "semi_supervised": ["--model.labelled_anomalies", "1"],
        "paper_protocol": ["--model.image_size", "72", "--model.crop_size", "64"],
        "small_defects": ["--model.tiles", "{size: 64, second_scale: true, scored_area: 40}"],
    }.get(setting, [])
    size = [] if setting in {"paper_protocol", "small_defects"} else ["--model.image_size", "64"]
    small = ["--model.encoder", "test_vit", "--model.encoder_weights", str(tiny_encoder_file), *size]
    small += ["--model.visualizer", "false"]
    short = ["--trainer.max_steps", "1", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    data = ["--data.root", str(sample), "--data.num_workers", "0", "--data.train_batch_size", "4"]
    run([*stacked(model, "mvtec_ad", setting), *small, *short, *data, *here], monkeypatch)

    name = {"inp_former": "InpFormer", "inp_former_plus_plus": "InpFormerPlusPlus"}[model]
    metrics = json.loads((tmp_path / f"results/{name}/MultiCategory/latest/metrics.json").read_text())
    expected = {
        "single_class": ["brick"],
        "super_multi_class": ["MVTecAD/grass", "Visa/brick", "mean"],
        "zero_shot": ["MVTecAD/grass"],
    }
    assert list(metrics) == expected.get(setting, ["brick", "grass", "mean"])
    assert all(len(values) == 7 for values in metrics.values())


def test_arguments_of_one_data_set_do_not_stay_for_another(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for data in ("mvtec_ad", "visa"):
        later = ["--config", str(CONFIGS / f"data/{data}.yaml")]
        with pytest.raises(SystemExit):
            run([*stacked("inp_former", "real_iad", "multi_class"), *later, "--print_config"], monkeypatch)
        assert yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]["arguments"] == {}


def test_sources_replace_those_of_an_earlier_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # As many sources as in the file, whose third has arguments; and a file over a file.
    mine = [{"source": "Visa", "root": "a"}, {"source": "BTech", "root": "b"}, {"source": "MPDD", "root": "c"}]
    later = tmp_path / "later.yaml"
    later.write_text(json.dumps({"data": {"init_args": {"sources": mine}}}))
    for given in (["--data.sources", json.dumps(mine)], ["--config", str(later)]):
        with pytest.raises(SystemExit) as ended:
            run([*stacked("inp_former", None, "super_multi_class"), *given, "--print_config"], monkeypatch)
        assert not ended.value.code
        got = yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]["sources"]
        assert got == [{**source, "categories": "all", "arguments": {}, "name": ""} for source in mine]


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (stacked("inp_former", "mvtec_ad", "semi_supervised"), "labelled_anomalies"),
        (stacked("inp_former", "folder", "few_shot"), "shots"),
        (stacked("inp_former", "folder", "single_class"), "categories"),
        (stacked("inp_former", "folder", "multi_class"), "categories"),
    ],
)
def test_combinations_that_make_no_sense_are_refused(
    command: list[str], reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(command, monkeypatch)
    assert ended.value.code
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "setting"), [("folder", "super_multi_class"), ("folder", "zero_shot"), ("real_iad", "zero_shot")]
)
def test_data_that_a_setting_does_not_use_are_refused(
    data: str, setting: str, tiny_encoder_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ["--model.encoder", "test_vit", "--model.encoder_weights", str(tiny_encoder_file)]
    with pytest.raises(ValueError, match=r"in root=.* is none of the sources, .*: give only sources"):
        run([*stacked("inp_former", data, setting), *small], monkeypatch)
