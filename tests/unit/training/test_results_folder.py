# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""``latest`` points to the newest run that came to something."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from lightning import Callback, Trainer

from anomalib_inp.data.file_checks import DataError
from anomalib_inp.models.encoder_model import EncoderModel


class Cut(Callback):
    """Ends a training in its second epoch, and looks where ``latest`` points then."""

    def __init__(self, at: int = 1) -> None:
        self.at = at
        self.found = ""

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.current_epoch == self.at:
            self.found = link(Path(trainer.default_root_dir).parent)
            raise RuntimeError("cut")  # noqa: EM101


def link(home: Path) -> str:
    latest = home / "latest"
    return str(latest.readlink()) if latest.is_symlink() else ""


@pytest.fixture
def fit(
    tiny_model: Callable[..., EncoderModel], quiet_engine: Callable[..., Engine], tmp_path: Path
) -> Callable[..., Engine]:
    def run(root: Path, **arguments: Any) -> Engine:
        data = MVTecAD(root, "brick", 4, num_workers=0, val_split_mode="same_as_test")
        engine = quiet_engine(tmp_path / "results", **arguments)
        engine.fit(tiny_model(), datamodule=data)
        return engine

    return run


def test_latest_is_the_newest_run_with_something_in_it(
    fit: Callable[..., Engine], write_small_sample: Callable[..., Path], tmp_path: Path
) -> None:
    good = write_small_sample(tmp_path)
    bad = write_small_sample(tmp_path / "bad")
    next(bad.glob("brick/ground_truth/*/*.png")).unlink()
    home = tmp_path / "results/InpFormer/MVTecAD/brick"
    with pytest.raises(DataError, match="mask"):
        fit(bad)
    assert list(home.iterdir()) == []  # no empty run, no link to it
    fit(good)
    assert link(home) == "v0"
    with pytest.raises(DataError, match="mask"):
        fit(bad)
    assert sorted(path.name for path in home.iterdir()) == ["latest", "v0"]
    assert link(home) == "v0"
    moved = tmp_path / "moved"
    (tmp_path / "results").rename(moved)
    assert next(moved.glob("*/*/*/latest/weights/lightning/finished.ckpt")).is_file()


def test_latest_moves_with_the_first_checkpoint(
    fit: Callable[..., Engine], write_small_sample: Callable[..., Path], tmp_path: Path
) -> None:
    good = write_small_sample(tmp_path)
    home = tmp_path / "results/InpFormer/MVTecAD/brick"
    fit(good)
    early, late = Cut(at=0), Cut(at=1)
    with pytest.raises(RuntimeError, match="cut"):
        fit(good, max_epochs=2, callbacks=[early])
    assert early.found == "v0"
    with pytest.raises(RuntimeError, match="cut"):
        fit(good, max_epochs=2, callbacks=[late])
    assert late.found == link(home) == "v1"
    assert (home / "latest/weights/lightning/model.ckpt").is_file()
    (home / "v10").mkdir()
    fit(good)
    assert link(home) == "v11"


def test_a_test_before_any_training_is_in_the_way_of_none(
    fit: Callable[..., Engine],
    tiny_model: Callable[..., EncoderModel],
    quiet_engine: Callable[..., Engine],
    write_small_sample: Callable[..., Path],
    tmp_path: Path,
) -> None:
    good = write_small_sample(tmp_path)
    home = tmp_path / "results/InpFormer/MVTecAD/brick"
    data = MVTecAD(good, "brick", num_workers=0, val_split_mode="same_as_test")
    quiet_engine(tmp_path / "results").test(tiny_model(), datamodule=data)
    assert link(home) == "v0"
    assert (home / "latest/metrics.json").is_file()
    fit(good)
    assert link(home) == "v1"
    assert sorted(path.name for path in home.iterdir()) == ["latest", "v0", "v1"]
    quiet_engine(tmp_path / "results").test(tiny_model(), datamodule=data)
    assert sorted(path.name for path in home.iterdir()) == ["latest", "v0", "v1"]
