# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What the commands print, run as a user runs them: errors at the end, no noise, the same for the same seed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from part import pixels, write

from anomalib_inp.errors import own_message

CONFIGS = Path(__file__).parents[2] / "configs"
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def folder(tiny_encoder_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("command")
    for index in range(10):
        write(folder / f"parts/good/{index:03}.png", pixels(index))
    write(folder / "broken/good/000.png").write_text("no image")
    (folder / "encoder.safetensors").symlink_to(tiny_encoder_file)
    return folder


def run(folder: Path, command: str, *arguments: str, **environment: str) -> tuple[int, list[str]]:
    """Run a training by one of the commands: its exit code and the lines that it prints."""
    model = "--model InpFormer --model.encoder test_vit --model.encoder_weights encoder.safetensors"
    data = f"--config {CONFIGS}/data/folder.yaml --data.root parts --data.num_workers 0"
    common = f"{data} {model} --model.image_size 64 --trainer.accelerator cpu --trainer.max_epochs 3"
    done = subprocess.run(
        [str(BIN / command), "train", *common.split(), *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout.splitlines()


SIZE = (
    "anomalib-inp: image_size must be a multiple of the encoder's patch size 16 in height and width, got (65, 65). The"
)
FAULTS = {
    "size": (["--model.image_size", "65"], SIZE),
    "folder": (["--data.root", "nothing"], "anomalib-inp: There is no folder nothing/good. Check root"),
    "image": (["--data.root", "broken"], "anomalib-inp: Files are no images that can be used: "),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_anomalib_ends_with_our_message(folder: Path, fault: str) -> None:
    arguments, message = FAULTS[fault]
    code, lines = run(folder, "anomalib", *arguments)
    assert code == 1
    assert lines[-1].startswith(message)
    assert len(lines) < 30
    assert "Traceback" not in "".join(lines)


def test_our_command_says_nothing_else(folder: Path) -> None:
    arguments, message = FAULTS["size"]
    code, lines = run(folder, "anomalib-inp", *arguments)
    assert (code, len(lines)) == (1, 1)
    assert lines[0].startswith(message)
    code, lines = run(folder, "anomalib-inp", *arguments, ANOMALIB_INP_TRACEBACK="1")
    assert code == 1
    assert "Traceback" in "".join(lines)


def test_a_training_is_a_line_for_an_epoch_and_the_same_for_a_seed(folder: Path) -> None:
    runs = []
    for number, seed in enumerate((["--seed_everything", "7"], ["--seed_everything=7"], ["--seed_everything", "8"])):
        code, lines = run(folder, "anomalib-inp", *seed, "--default_root_dir", str(folder / str(number)))
        assert code == 0
        assert len(lines) <= 30
        assert sum(line.startswith("Epoch ") for line in lines) == 3
        assert "Images: 9 train, 1 validate, 0 test." in lines
        assert "Epoch 3 of 3, loss" in "".join(lines)
        (checkpoint,) = (folder / str(number)).rglob("finished.ckpt")
        runs.append(torch.load(checkpoint)["state_dict"])
    same, other = ([torch.equal(runs[0][name], runs[number][name]) for name in runs[0]] for number in (1, 2))
    assert all(same)
    assert not all(other)


def test_an_error_of_the_parser_is_found_in_what_it_quotes() -> None:
    quoted = (
        "Does not validate against any of the Union subtypes\nSubtypes: [<class 'NoneType'>]\nErrors:\n"
        "  - Expected a <class 'NoneType'>. Got value: Namespace(x=1)\n  - recipe must be\n one of a, b.\n"
        "Given value type: <class 'str'>"
    )
    assert own_message(ValueError(quoted)) == "recipe must be one of a, b."


def test_errors_of_others_are_not_ours() -> None:
    for error in (ValueError("something"), KeyError("name"), OSError(2, "No such file")):
        assert own_message(error) is None
