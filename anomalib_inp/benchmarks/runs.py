# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The runs of a benchmark: described, compared with earlier ones, trained and tested, or gone on with."""

import inspect
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from anomalib.engine import Engine
from anomalib.models.components import AnomalibModule
from lightning import Trainer, seed_everything
from lightning.pytorch.utilities import rank_zero_only

from anomalib_inp.benchmarks.settings import SettingName, choose_setting
from anomalib_inp.checkpoints.own import read_checkpoint
from anomalib_inp.data import MultiCategory
from anomalib_inp.data.subset import MEAN
from anomalib_inp.files import file_digest, replacing
from anomalib_inp.models.registry import model_class
from anomalib_inp.pictures.extremes import ExtremeResults

PROTOCOL = {"image_size": 448, "crop_size": 392}
"""The frame of all published numbers."""
INDIFFERENT = {"model.feature_cache_dir", "data.num_workers", "data.eval_batch_size", "trainer.logger"}
INDIFFERENT |= {f"trainer.{name}" for name in ("enable_progress_bar", "enable_model_summary", "log_every_n_steps")}
"""Arguments that change no number: a run may go on with others."""
RESERVED = {
    "seed": "Every run has a seed of its own: leave seed out of the data's arguments, and give seeds.",
    "val_split_mode": "A benchmark tests on all images and validates on none: leave val_split_mode out.",
    "evaluator": "A benchmark has its own evaluator: leave it out of the model's arguments.",
    "visualizer": "A benchmark has its own visualizer: leave it out of the model's arguments.",
    "default_root_dir": "Every run has a folder of its own: leave default_root_dir out of the trainer's arguments.",
    "fast_dev_run": "A benchmark tests on all images: leave fast_dev_run out of the trainer's arguments.",
    "limit_test_batches": "A benchmark tests on all images: leave limit_test_batches out of the trainer's arguments.",
}
"""Arguments of the data, the model and the trainer that a benchmark sets itself, and what to say of them."""
TRAINER: dict[str, Any] = {"devices": 1, "logger": False, "limit_val_batches": 0}
"""Metrics need no thresholds, so nothing is validated."""
Rows = dict[str, dict[str, float]]


class Run(NamedTuple):
    """One training and its test.

    Attributes:
        name: Folder of its results, below that of the benchmark.
        seed: Seed of the training and of all draws.
        model: Arguments of the model beside those of all runs.
        data: Arguments of ``MultiCategory`` beside those of all runs.
    """

    name: str
    seed: int
    model: dict[str, Any]
    data: dict[str, Any]


class Benchmark:
    """A setting, run with several seeds; finished runs are kept and not run again.

    Args:
        setting: Name of the setting.
        data: Arguments of ``MultiCategory``.
        model: Name of the model.
        output: Folder for the results of all benchmarks.
        model_args: Arguments of the model.
        trainer_args: Arguments of the trainer.
        shots: Normal images per category, for few-shot alone; ``None`` stands for 4.
        labelled_anomalies: Labelled anomalies per category, for semi-supervised alone; ``None`` stands for 5.

    Attributes:
        setting: The setting, with its number of images.
        folder: Folder of the results.
        trained: Names of the categories that are trained on.
        tested: Names of those that are tested on.
        tests_what_it_trains: Whether they are the same, over all runs.

    Raises:
        ValueError: The setting makes no sense with the other arguments.
    """

    def __init__(
        self,
        setting: SettingName,
        data: Mapping[str, Any],
        model: str,
        output: Path,
        model_args: Mapping[str, Any],
        trainer_args: Mapping[str, Any],
        shots: int | None = None,
        labelled_anomalies: int | None = None,
    ) -> None:
        counts = {"shots": shots, "labelled_anomalies": labelled_anomalies}
        self.setting = choose_setting(setting, model, counts, data, model_args)
        for name, message in RESERVED.items():
            if any(name in given for given in (data, model_args, trainer_args)):
                raise ValueError(message)
        if unknown := sorted(trainer_args.keys() - inspect.signature(Trainer.__init__).parameters.keys()):
            msg = f"The trainer has no arguments {', '.join(unknown)}."
            raise ValueError(msg)
        self.model = model
        self.data = {**data, **self.setting.data}
        self.model_args = {**PROTOCOL, **self.setting.usual, **model_args, **self.setting.model}
        self.trainer_args = dict(trainer_args)
        self.folder = output / f"{self.setting.title}-{model}"
        modules = build_data(self.data)
        self.trained, self.tested = list(modules.trained), list(modules.tested)
        self.tests_what_it_trains = modules.trained == modules.tested
        self._trainings = self.setting.trainings(modules)
        self._files = with_digests(self.model_args)

    def runs(self, seeds: Sequence[int]) -> Iterator[Run]:
        """List the runs, all of the first seed first.

        Raises:
            ValueError: No seed, or a negative one.
        """
        if not seeds or min(seeds) < 0:
            msg = f"seeds must be at least one number, none of them negative, got {list(seeds)}."
            raise ValueError(msg)
        for seed in seeds:
            model = {self.setting.seeded: seed} if self.setting.seeded else {}
            for name, data in self._trainings.items():
                yield Run(f"seed{seed}/{name}" if name else f"seed{seed}", seed, model, data)

    def result(self, run: Run) -> Rows:
        """Do a run, or find it done.

        Returns:
            Its metrics by category, without those that have no value: of images of one class only there is no AUROC.

        Raises:
            ValueError: It was done with other arguments, or it cannot go on.
        """
        folder = self.folder / run.name
        note, metrics = folder / "run.json", folder / "metrics.json"
        description = self.describe(run)
        begun = metrics.is_file() or find_checkpoints(folder)  # else nothing is lost
        if begun and (others := list_differences(_read(note), description)):
            msg = (
                f"{folder} holds a run with other arguments: {'; '.join(others)}. Choose another output, or remove "
                "that folder."
            )
            raise ValueError(msg)
        if changed := list_differences(self._files, with_digests(self.model_args)):
            msg = f"A file has changed since the benchmark began: {'; '.join(changed)}."
            raise ValueError(msg)
        if not metrics.is_file():
            with tempfile.TemporaryDirectory() as elsewhere:
                # anomalib makes a folder in every process, and stops where two make the same at once.
                root = folder if rank_zero_only.rank == 0 else Path(elsewhere)
                parts = self._build(run, root)  # arguments that do not fit fail here, and leave nothing
                folder.mkdir(parents=True, exist_ok=True)
                if rank_zero_only.rank == 0:
                    with replacing(note) as temporary:
                        temporary.write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
                train_and_test(*parts, folder)
        rows = _read(metrics)
        rows.pop(MEAN, None)
        return {
            name: {key: value for key, value in values.items() if value is not None} for name, values in rows.items()
        }

    def describe(self, run: Run) -> dict[str, Any]:
        """Describe a run as ``run.json`` does: with all that its numbers depend on."""
        data = {**self.data, "train_on": self.trained, "test_on": self.tested, **run.data}
        data.pop("categories", None)  # those above say which they were when they were all
        if data.get("root") is not None:
            data["root"] = str(Path(data["root"]).absolute())
        data["sources"] = [
            {**asdict(source), "root": source.root and str(Path(source.root).absolute())}
            for source in data.get("sources") or []
        ]
        arguments = {"model": {**self._files, **run.model}, "data": data, "trainer": self.trainer_args}
        description = {"setting": self.setting.title, "class": self.model, "seed": run.seed, **arguments}
        return json.loads(json.dumps(description, default=str))

    def _build(self, run: Run, root: Path) -> tuple[AnomalibModule, MultiCategory, Engine]:
        seed_everything(run.seed, workers=True, verbose=False)
        pictures = ExtremeResults(self.folder / run.name / "images")
        model = _call(model_class(self.model), {**self.model_args, **run.model, "visualizer": pictures})
        data = build_data({**self.data, **run.data, "seed": run.seed})
        return model, data, Engine(default_root_dir=root, **{**TRAINER, **self.trainer_args})


def build_data(arguments: Mapping[str, Any]) -> MultiCategory:
    """Build the data; what a data module would keep for validation stays among the images of training and test."""
    return _call(MultiCategory, arguments).without_validation()


def train_and_test(model: AnomalibModule, data: MultiCategory, engine: Engine, folder: Path) -> None:
    """Train, or go on where a training was stopped, and keep the metrics in the folder.

    Raises:
        ValueError: The checkpoint of the stopped training is broken.
    """
    stopped = find_checkpoints(folder)
    if stopped:
        try:
            read_checkpoint(stopped[-1], mmap=True)
        except ValueError as fault:
            msg = f"{fault} Remove it to begin the run again."
            raise ValueError(msg) from fault
    engine.fit(model, datamodule=data, ckpt_path=stopped[-1] if stopped else None)
    engine.test(model, datamodule=data)
    results = Path(engine.trainer.default_root_dir)
    if engine.trainer.is_global_zero:
        # the one that says that the run is done comes last
        for name in ("scores.csv", "metrics.csv", "metrics.md", "metrics.json"):
            shutil.copyfile(results / name, folder / name)
        for checkpoint in find_checkpoints(folder):  # nothing will be resumed; finished.ckpt holds the weights
            checkpoint.unlink()
    engine.trainer.strategy.barrier()  # the other processes read them too


def find_checkpoints(folder: Path) -> list[Path]:
    """List what a training can go on from, the newest last."""
    return sorted(folder.glob("*/*/v*/weights/lightning/model.ckpt"), key=lambda path: path.stat().st_mtime)


def list_differences(before: Any, now: Any, name: str = "") -> list[str]:
    """Name the arguments of two runs that differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        below = f"{name}." if name else ""
        return [fault for key in keys for fault in list_differences(before.get(key), now.get(key), f"{below}{key}")]
    return [] if before == now or name in INDIFFERENT else [f"{name} was {before} and is {now}"]


def with_digests(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Name files, such as the encoder's weights, by their content too; others may come to lie in their places."""
    paths = {name: Path(value) for name, value in arguments.items() if isinstance(value, str | Path)}
    contents = {name: f"{path.absolute()}, {file_digest(path)}" for name, path in paths.items() if path.is_file()}
    return {**arguments, **contents}


def _call(build: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    try:
        return build(**arguments)
    except TypeError as fault:
        msg = f"Arguments do not fit: {fault}"
        raise ValueError(msg) from fault


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError) as fault:
        msg = f"{path} of a run that was begun is missing or broken. Choose another output, or remove {path.parent}."
        raise ValueError(msg) from fault
