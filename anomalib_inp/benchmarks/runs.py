# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Runs a setting of the papers on a data set, several times, and reports it beside what was published."""

import csv
import inspect
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from importlib.resources import files
from pathlib import Path
from statistics import mean
from typing import Any, Literal, NamedTuple, TypeVar
from urllib.parse import quote

import anomalib.data
import torch
from anomalib.data import AnomalibDataModule
from anomalib.data.utils import ValSplitMode
from anomalib.engine import Engine
from lightning import Trainer, seed_everything
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.text import Text

import anomalib_inp
from anomalib_inp import InpFormer, InpFormerPlusPlus, MultiCategory
from anomalib_inp.checkpoints.own import read_checkpoint
from anomalib_inp.data import Source
from anomalib_inp.data.modules import categories_of
from anomalib_inp.data.subset import MEAN
from anomalib_inp.evaluation.metrics import COLUMNS
from anomalib_inp.evaluation.report import markdown, mean_of_seeds, metrics_table, with_mean
from anomalib_inp.files import file_digest, replacing
from anomalib_inp.pictures.extremes import ExtremeResults

T = TypeVar("T")
Setting = Literal["single_class", "multi_class", "super_multi_class", "few_shot", "zero_shot", "semi_supervised"]
MODELS = {"InpFormer": InpFormer, "InpFormerPlusPlus": InpFormerPlusPlus}
PROTOCOL = {"image_size": 448, "crop_size": 392}
"""The frame of all published numbers."""
PARTIAL = ("fast_dev_run", "limit_test_batches")
"""Arguments of the trainer that leave images out of the test."""
INDIFFERENT = {
    "model.feature_cache_dir",
    "data.num_workers",
    "data.eval_batch_size",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.log_every_n_steps",
    "trainer.logger",
}
"""Arguments that change no number: a run may go on with others."""
TRAINER: dict[str, Any] = {"devices": 1, "logger": False, "limit_val_batches": 0}
"""Metrics need no thresholds, so nothing is validated."""
REPAIRED = (
    "The published code, after its handling of masks was repaired, gives a lower pixel AP and F1-max than the paper "
    "says (one user measured 65.2 on MVTec AD, multi-class)."
)
LEFT_OUT = (
    "Here each category is tested by a model of the other categories of its data set; the published model was trained "
    "on another data set."
)
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
    model: dict[str, Any] = {}
    data: dict[str, Any] = {}


class Benchmark:
    """A setting, run with several seeds; finished runs are kept and not run again.

    Args:
        setting: The setting.
        data: Arguments of ``MultiCategory``.
        model: ``InpFormer`` or ``InpFormerPlusPlus``.
        output: Folder for the results of all benchmarks.
        model_args: Arguments of the model.
        trainer_args: Arguments of the trainer.
        shots: Normal images per category, in few-shot alone; ``None`` stands for 4.
        labelled_anomalies: Labelled anomalies per category, in semi-supervised alone; ``None`` stands for 5.

    Raises:
        ValueError: The setting makes no sense with the other arguments.
    """

    def __init__(
        self,
        setting: Setting,
        data: Mapping[str, Any],
        model: Literal["InpFormer", "InpFormerPlusPlus"],
        output: Path,
        model_args: Mapping[str, Any],
        trainer_args: Mapping[str, Any],
        shots: int | None = None,
        labelled_anomalies: int | None = None,
    ) -> None:
        counts = {"few_shot": ("shots", shots, 4), "semi_supervised": ("labelled_anomalies", labelled_anomalies, 5)}
        for owner, (name, given, _) in counts.items():
            if given is not None and setting != owner:
                msg = f"{name} is for {owner}, not for {setting}."
                raise ValueError(msg)
        if setting == "semi_supervised" and model == "InpFormer":
            msg = "semi_supervised needs a segmentation head to teach: --model InpFormerPlusPlus."
            raise ValueError(msg)
        if setting == "super_multi_class" and len(data.get("sources") or []) < 2:
            msg = "super_multi_class needs several data sets: --sources."
            raise ValueError(msg)
        # What makes the setting: arguments of the data and of the model.
        _, given, usual = counts.get(setting, ("", None, 0))
        count = usual if given is None else given
        own_data: dict[str, Any] = {"few_shot": {"shots": count}}.get(setting, {})
        settings: dict[str, dict[str, Any]] = {
            "zero_shot": {"map": "prototype_distance"},
            "semi_supervised": {"labelled_anomalies": count},
        }
        own_model = settings.get(setting, {})
        own = {**own_data, **own_model}
        if "seed" in data:
            msg = "Every run has a seed of its own: leave seed out of the arguments of the data, and give seeds."
            raise ValueError(msg)
        if data.get("val_split_mode") is not None:
            msg = "A benchmark tests on all images and validates on none: leave val_split_mode out."
            raise ValueError(msg)
        if taken := [name for name in own if name in model_args or data.get(name) is not None]:
            msg = f"{setting} says {', '.join(f'{name}={own[name]}' for name in taken)} itself: leave it out."
            raise ValueError(msg)
        for owner, (name, _, _) in counts.items():
            if setting != owner and (model_args.get(name) is not None or data.get(name) is not None):
                msg = f"{name} is for {owner}, not for {setting}."
                raise ValueError(msg)
        if taken := [name for name in ("evaluator", "visualizer") if name in model_args]:
            msg = f"A benchmark has its own {' and '.join(taken)}: leave it out of the arguments of the model."
            raise ValueError(msg)
        if "default_root_dir" in trainer_args:
            msg = "Every run has a folder of its own: leave default_root_dir out of the arguments of the trainer."
            raise ValueError(msg)
        if part := [name for name in PARTIAL if trainer_args.get(name)]:
            msg = f"A benchmark tests on all images: leave {', '.join(part)} out of the arguments of the trainer."
            raise ValueError(msg)
        if unknown := sorted(trainer_args.keys() - inspect.signature(Trainer.__init__).parameters.keys()):
            msg = f"The trainer has no arguments {', '.join(unknown)}."
            raise ValueError(msg)
        self.setting = setting
        self.model = model
        self.data = {**data, **own_data}
        self.model_args = {**PROTOCOL, **model_args, **own_model}
        self.trainer_args = dict(trainer_args)
        self._files = _with_content(self.model_args)
        self.title = f"{setting}_{count}" if setting in counts else str(setting)
        self.folder = output / f"{self.title}-{model}"
        modules = _data(self.data)
        self.trained, self.tested = list(modules.trained), list(modules.tested)
        self.leaves_one_out = setting == "zero_shot" and modules.trained == modules.tested
        if setting == "zero_shot":
            self._check_zero_shot(modules)
        if setting == "single_class" and modules.trained != modules.tested:
            msg = "single_class trains on each category that it tests on: leave out train_on."
            raise ValueError(msg)

    def _check_zero_shot(self, data: MultiCategory) -> None:
        """Refuse to test on what was trained on, whatever it is called."""
        trained = [_images_of(module) for module in data.trained.values()]
        both = [name for name, module in data.tested.items() if _images_of(module) in trained]
        twice = len(trained) - len(set(trained))
        fault = ""
        if self.leaves_one_out and twice:
            fault = f"but {twice} of them are there under two names."
        elif self.leaves_one_out and len(both) < 2:
            fault = f"so it needs two at least, got {self.tested}."
        elif both and not self.leaves_one_out:
            fault = f"but {', '.join(both)} would be both: give train_on and test_on, or neither."
        if fault:
            msg = f"zero_shot tests on categories that are not trained on, {fault}"
            raise ValueError(msg)

    def runs(self, seeds: Sequence[int]) -> Iterator[Run]:
        """List the trainings of each seed: one, or one per category (single-class, zero-shot).

        Raises:
            ValueError: No seed, or a negative one.
        """
        if not seeds or min(seeds) < 0:
            msg = f"seeds must be at least one number, none of them negative, got {list(seeds)}."
            raise ValueError(msg)
        names = self.tested
        for seed in seeds:
            chosen = {"labelled_seed": seed} if self.setting == "semi_supervised" else {}
            if self.setting == "single_class":
                for name in names:
                    yield Run(f"seed{seed}/{name}", seed, chosen, {"train_on": [name], "test_on": [name]})
            elif self.leaves_one_out:
                for name in names:
                    others = [other for other in names if other != name]
                    yield Run(f"seed{seed}/{name}", seed, chosen, {"train_on": others, "test_on": [name]})
            else:
                yield Run(f"seed{seed}", seed, chosen)

    def result(self, run: Run) -> Rows:
        """Do a run, or find it done; returns its metrics by category.

        Raises:
            ValueError: It was done with other arguments.
        """
        folder = self.folder / run.name
        said = json.loads(json.dumps(self._describe(run), default=str))
        told = folder / "run.json"
        begun = (folder / "metrics.json").is_file() or _checkpoints(folder)  # else nothing is lost
        if begun and (other := _differences(_read(told), said)):
            msg = (
                f"{folder} holds a run with other arguments: {'; '.join(other)}. Choose another output, or remove that "
                "folder."
            )
            raise ValueError(msg)
        if changed := _differences(self._files, _with_content(self.model_args)):
            msg = f"A file has changed since the benchmark began: {'; '.join(changed)}."
            raise ValueError(msg)
        if not (folder / "metrics.json").is_file():
            with tempfile.TemporaryDirectory() as elsewhere:
                # anomalib makes a folder in every process, and stops where two make the same at once.
                root = folder if rank_zero_only.rank == 0 else Path(elsewhere)
                model, data, engine = self._build(run, root)  # arguments that do not fit fail here, and leave nothing
                folder.mkdir(parents=True, exist_ok=True)
                if rank_zero_only.rank == 0:
                    with replacing(told) as temporary:
                        temporary.write_text(json.dumps(said, indent=1) + "\n")
                _train_and_test(model, data, engine, folder)
        rows = _read(folder / "metrics.json")
        return {name: _known(values) for name, values in rows.items() if name != MEAN}

    def _build(self, run: Run, root: Path) -> tuple[InpFormer | InpFormerPlusPlus, MultiCategory, Engine]:
        seed_everything(run.seed, workers=True, verbose=False)
        pictures = ExtremeResults(self.folder / run.name / "images")
        model = _made(MODELS[self.model], {**self.model_args, **run.model, "visualizer": pictures})
        data = _data({**self.data, **run.data, "seed": run.seed})
        return model, data, Engine(default_root_dir=root, **{**TRAINER, **self.trainer_args})

    def _describe(self, run: Run) -> dict[str, Any]:
        data = {**self.data, "train_on": self.trained, "test_on": self.tested, **run.data}
        data.pop("categories", None)  # those above say which they were when they were all
        if data.get("root") is not None:
            data["root"] = str(Path(data["root"]).absolute())
        data["sources"] = [
            {**asdict(source), "root": source.root and str(Path(source.root).absolute())}
            for source in data.get("sources") or []
        ]
        arguments = {"model": {**self._files, **run.model}, "data": data, "trainer": self.trainer_args}
        return {"setting": self.title, "class": self.model, "seed": run.seed, **arguments}

    def report(self, seeds: Mapping[int, Rows]) -> Rows:
        """Write ``report.md`` and ``report.csv``; returns the means over the seeds.

        Args:
            seeds: Metrics by category, by seed.
        """
        tables = [_with_means(rows) for rows in seeds.values()]
        means: Rows = {}
        lines = []
        for name in tables[0]:
            found = {key: [table[name][key] for table in tables if key in table[name]] for key in COLUMNS}
            means[name] = {key: mean(values) for key, values in found.items() if values}
            lines.append([name, *(mean_of_seeds(found[key]) for key in COLUMNS)])
        sources = []
        for name, values, source in self._published():
            lines.append([name, *("-" if value is None else f"{value:.1f}" for value in values)])
            sources.append(f"{name}: {source}.")
            if self.leaves_one_out and LEFT_OUT not in sources:
                sources.append(LEFT_OUT)
            if values[list(COLUMNS).index("pixel_AP")] is not None and REPAIRED not in sources:
                sources.append(REPAIRED)
        versions = (
            f"anomalib-inp {anomalib_inp.__version__}, anomalib {anomalib.__version__}, torch {torch.__version__}"
        )
        told = ", ".join(map(str, seeds))
        spread = f"mean of {len(seeds)} seeds ({told}), ± half the range" if len(seeds) > 1 else f"seed {told}"
        note = f"Per cent; {spread}. {versions}. {self._arguments()}"
        table = markdown(["category", *COLUMNS.values()], lines)
        page = [f"# {self.title}, {self.model}", table, note, *sources]
        drawn = (path for seed in seeds for path in (self.folder / f"seed{seed}").rglob("images/**/*.png"))
        pictures = sorted(path.relative_to(self.folder) for path in drawn)
        page += [f"![{path}]({quote(path.as_posix())})" for path in pictures]
        (self.folder / "report.md").write_text("\n\n".join(page) + "\n", encoding="utf-8")
        with (self.folder / "report.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["category", "seed", *COLUMNS])
            for seed, rows in zip(seeds, tables, strict=True):
                writer.writerows(
                    [name, seed, *(values.get(key, "") for key in COLUMNS)] for name, values in rows.items()
                )
        return means

    def _arguments(self) -> str:
        """Tell with what the numbers were made."""
        known = {"sources", "train_on", "test_on", *(field.name for field in fields(Source))}
        data = {name: value for name, value in self.data.items() if name not in known}
        parts = {"model": self.model_args, "data": data, "trainer": self.trainer_args}
        told = (
            f"{part}: {', '.join(f'{name}={value}' for name, value in given.items())}"
            for part, given in parts.items()
            if given
        )
        return f"Arguments of the {'; of the '.join(told)}."

    def _published(self) -> Iterator[tuple[str, list[float | None], str]]:
        """Find the published numbers of the data sets that were tested on, all categories of them.

        There are none to compare with where other categories were trained on, but in zero-shot.
        """
        if self.setting != "zero_shot" and set(self.trained) != set(self.tested):
            return
        text = files("anomalib_inp.benchmarks").joinpath("published.json").read_text(encoding="utf-8")
        of_model = json.loads(text).get(self.model, {})
        known = of_model.get(self.title, of_model.get(self.setting, {}))
        sources = {source.name or source.source: source.source for source in self.data.get("sources") or []}
        tested = [name.rpartition("/") for name in self.tested]
        for home in sorted({home for home, _, _ in tested}):
            source = sources.get(home, self.data.get("source", ""))
            if source in known and {name for own, _, name in tested if own == home} == set(
                categories_of(getattr(anomalib.data, source))
            ):
                yield f"{home or source}, published", known[source]["values"], known[source]["source"]


def benchmark(
    setting: Setting,
    data: Mapping[str, Any],
    model: Literal["InpFormer", "InpFormerPlusPlus"],
    seeds: Sequence[int],
    output: Path,
    model_args: Mapping[str, Any],
    trainer_args: Mapping[str, Any],
    shots: int | None,
    labelled_anomalies: int | None,
) -> None:
    """Run a benchmark and report it; see ``anomalib-inp benchmark --help`` and :class:`Benchmark`.

    Raises:
        ValueError: Arguments that do not fit, or results of other arguments in the output.
    """
    runs = Benchmark(setting, data, model, output, model_args, trainer_args, shots, labelled_anomalies)
    console = Console()
    results: dict[int, Rows] = {}
    for run in runs.runs(seeds):
        console.print(Text(str(runs.folder / run.name), "bold"))
        results.setdefault(run.seed, {}).update(runs.result(run))
    if rank_zero_only.rank != 0:  # of several processes, one reports
        return
    console.print(metrics_table(runs.report(results)))
    console.print(Text(f"Report: {runs.folder / 'report.md'}"))


def _data(arguments: Mapping[str, Any]) -> MultiCategory:
    """Build the data; what a data module would keep for validation stays among the images of training and test."""
    data = _made(MultiCategory, arguments)
    for module in data.modules.values():
        if module.val_split_mode in {ValSplitMode.FROM_TEST, ValSplitMode.FROM_TRAIN}:
            module.val_split_mode = ValSplitMode.NONE
    return data


def _images_of(module: AnomalibDataModule) -> tuple[Path, str]:
    """Tell where the images of a category are, whatever it is called."""
    return Path(module.root).resolve(), str(getattr(module, "category", ""))


def _made(kind: Callable[..., T], arguments: Mapping[str, Any]) -> T:
    try:
        return kind(**arguments)
    except TypeError as fault:
        msg = f"Arguments do not fit: {fault}"
        raise ValueError(msg) from fault


def _train_and_test(model: InpFormer | InpFormerPlusPlus, data: MultiCategory, engine: Engine, folder: Path) -> None:
    """Train, or go on where a training was stopped, and keep the metrics in the folder."""
    stopped = _checkpoints(folder)
    if stopped:
        _check_readable(stopped[-1])
    engine.fit(model, datamodule=data, ckpt_path=stopped[-1] if stopped else None)
    engine.test(model, datamodule=data)
    found = Path(engine.trainer.default_root_dir)
    if engine.trainer.is_global_zero:
        for suffix in ("csv", "md", "json"):  # the one that says that the run is done comes last
            shutil.copyfile(found / f"metrics.{suffix}", folder / f"metrics.{suffix}")
        for checkpoint in _checkpoints(folder):  # nothing will be resumed; finished.ckpt holds the weights
            checkpoint.unlink()
    engine.trainer.strategy.barrier()  # the other processes read them too


def _checkpoints(folder: Path) -> list[Path]:
    """List what a training can go on from, the newest last."""
    return sorted(folder.glob("*/*/v*/weights/lightning/model.ckpt"), key=lambda path: path.stat().st_mtime)


def _check_readable(checkpoint: Path) -> None:
    try:
        read_checkpoint(checkpoint, mmap=True)
    except ValueError as fault:
        msg = f"{fault} Without it the run begins anew: remove it."
        raise ValueError(msg) from fault


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError) as fault:
        msg = f"{path} of a run that was begun is missing or broken. Choose another output, or remove {path.parent}."
        raise ValueError(msg) from fault


def _differences(before: Any, now: Any, name: str = "") -> list[str]:
    """Name the arguments of two runs that differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        below = f"{name}." if name else ""
        return [fault for key in keys for fault in _differences(before.get(key), now.get(key), f"{below}{key}")]
    return [] if before == now or name in INDIFFERENT else [f"{name} was {before} and is {now}"]


def _with_content(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Tell files, such as the encoder's weights, by their content too; other ones may come to lie in their places."""
    paths = {name: Path(value) for name, value in arguments.items() if isinstance(value, str | Path)}
    told = {name: f"{path.absolute()}, {file_digest(path)}" for name, path in paths.items() if path.is_file()}
    return {**arguments, **told}


def _known(values: Mapping[str, float | None]) -> dict[str, float]:
    """Leave out what could not be measured: a metric over images of one class only has no value."""
    return {key: value for key, value in values.items() if value is not None}


def _with_means(rows: Rows) -> Rows:
    """Add the mean over all categories, and that of each data set where there are several."""
    means = {MEAN: with_mean(rows)[MEAN]}
    sources = sorted({name.partition("/")[0] for name in rows if "/" in name})
    for source in sources if len(sources) > 1 else ():
        own = {name: values for name, values in rows.items() if name.startswith(f"{source}/")}
        means[f"{source}, {MEAN}"] = with_mean(own)[MEAN]
    return {**rows, **means}
