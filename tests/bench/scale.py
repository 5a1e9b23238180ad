# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Memory and time per image of training from a cache on disk, from 1,000 to 100,000 images: ``make bench-scale``.

The features are random and small (a 7x7 grid), so that 100,000 images fit a disk; each number of images is measured in
a process of its own. Results are kept in ``docs/benchmarks/scale.json``; what is there is not measured again.
"""

import argparse
import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import pages
import torch
from matplotlib import pyplot
from torch.utils.data import DataLoader

from anomalib_inp.losses.objective import InpFormerObjective
from anomalib_inp.networks.inp_former.bottleneck import bottleneck
from anomalib_inp.networks.inp_former.decoder import InpGuidedDecoder
from anomalib_inp.networks.inp_former.extractor import InpExtractor
from anomalib_inp.outputs import Reconstruction
from anomalib_inp.training.feature_cache import CachedFeatures
from anomalib_inp.training.feature_file import write_features
from anomalib_inp.training.recipe import Recipe
from anomalib_inp.training.training_data import DerivedDataset

NUMBERS = (1_000, 3_000, 10_000, 30_000, 100_000)
GRID, DIM, HEADS = (7, 7), 384, 6
BATCH, STEPS, WARM_UP = 16, 60, 10


def train(number: int, path: Path) -> dict[str, float]:
    """Train for some steps on random batches of the cache, in this process."""
    torch.manual_seed(0)
    parts = torch.nn.ModuleList([InpExtractor(DIM, HEADS), bottleneck(DIM), InpGuidedDecoder(DIM, HEADS)])
    extractor, latent, decoder = parts
    objective, configured = InpFormerObjective(), Recipe().configure(parts.parameters(), 1000)
    optimizer = configured["optimizer"]
    dataset = DerivedDataset(range(number), CachedFeatures(path, GRID))
    loader = DataLoader(dataset, BATCH, shuffle=True, collate_fn=dataset.collate_fn)
    times, start = [], time.perf_counter()
    for step, batch in enumerate(loader):
        features = batch.source.full_precision()
        prototypes = extractor(features.fused)
        loss = objective(Reconstruction(features, prototypes, decoder(latent(features.fused), prototypes)))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step >= WARM_UP:
            times.append((time.perf_counter() - start) / BATCH)
        start = time.perf_counter()
        if step == STEPS:
            break
    lines = Path("/proc/self/status").read_text().splitlines()
    memory = next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024
    return {"ms": 1000 * statistics.median(times), "memory": memory, "disk": path.stat().st_size / 1e9}


def measure(number: int) -> dict[str, float]:
    """Write a cache and train on it in a fresh process."""
    shape = (number, 2, GRID[0] * GRID[1], DIM)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.safetensors"
        pieces = (torch.randn(min(1000, number), *shape[1:]) for _ in range(0, number, 1000))
        write_features(path, pieces, shape, "bfloat16", {})
        return pages.in_fresh_process(__file__, "--number", number, "--cache", path)


def main() -> None:
    """Measure what is missing, write the page and draw the figure."""
    parser = pages.parser(__doc__, "performance.md")
    parser.add_argument("--number", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cache:
        print(json.dumps(train(arguments.number, arguments.cache)))
        return
    results = pages.Results(pages.DOCS / "benchmarks" / "scale.json")
    values = [results.get(str(number), partial(measure, number)) for number in NUMBERS]
    rows = [
        [f"{number:,}", f"{value['disk']:.2f}", f"{value['ms']:.1f}", f"{value['memory']:.0f}"]
        for number, value in zip(NUMBERS, values, strict=True)
    ]
    text = pages.table(["training images", "cache, GB", "ms an image", "memory of the process, MB"], rows, "rrrr")
    pages.replace(arguments.out, "scale", f"{text}\n\n{pages.machine()}.")

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3), layout="constrained")
    for axis, name, label in zip(axes, ("ms", "memory"), ("ms an image", "memory, MB"), strict=True):
        heights = [value[name] for value in values]
        axis.plot(NUMBERS, heights, "o-")
        axis.set(xscale="log", ylim=(0, 1.2 * max(heights)), xlabel="training images", ylabel=label)
        axis.grid(alpha=0.3)
    figure.savefig(pages.DOCS / "images" / "scale.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
