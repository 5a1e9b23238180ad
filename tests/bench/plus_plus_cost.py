# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What INP-Former++ costs beside INP-Former: inference in alternation, training memory in processes of their own.

``make bench-plus-plus`` runs it. ViT-S/14 with random weights at 392 px: neither depends on the weights.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pages
import torch
from anomalib.data import ImageBatch
from rival import random_weights
from torch import Tensor

from anomalib_inp import InpFormer, InpFormerPlusPlus
from anomalib_inp.benchmarks.exports import memory_now, memory_peak
from anomalib_inp.outputs import PatchFeatures

ENCODER = "vit_small_patch14_dinov2"
SIZE, BATCH = 392, 8
RESULTS = pages.DOCS / "benchmarks" / "plus_plus_cost.json"
MODELS = {"InpFormer": InpFormer, "InpFormerPlusPlus": InpFormerPlusPlus}


def build(name: str, folder: Path) -> InpFormer | InpFormerPlusPlus:
    """Build a model with random weights."""
    weights = random_weights(ENCODER, folder)
    return MODELS[name](ENCODER, weights, image_size=SIZE, evaluator=False, visualizer=False)


def ratios(runs: dict[str, Callable[[], object]], rounds: int) -> list[float]:
    """Time the models in turn: INP-Former++ over INP-Former."""
    return pages.ratios(pages.alternate(runs, rounds), "InpFormerPlusPlus", "InpFormer")


def inference(folder: Path) -> list[float]:
    """Time one image through both models."""
    detectors = {name: build(name, folder).model.eval().requires_grad_(False) for name in MODELS}
    image = torch.rand(1, 3, SIZE, SIZE)
    return ratios({name: partial(detector, image) for name, detector in detectors.items()}, rounds=9)


def step(folder: Path, cached: bool) -> list[float]:
    """Time a training step of both models, forward and backward."""
    models = {name: build(name, folder) for name in MODELS}
    images = torch.rand(BATCH, 3, SIZE, SIZE)
    source = models["InpFormer"].model.network.encoder(images) if cached else images
    steps = {name: partial(forward_and_backward, model, images, source) for name, model in models.items()}
    return ratios(steps, rounds=5)


def forward_and_backward(model: InpFormer | InpFormerPlusPlus, images: Tensor, source: Tensor | PatchFeatures) -> None:
    """Compute the gradients of a step; ``source`` is what the reconstruction learns from."""
    loss = model.reconstruction_terms(source)["loss"]
    if isinstance(model, InpFormerPlusPlus):
        masks = torch.zeros(BATCH, SIZE, SIZE, dtype=torch.bool)
        loss = loss + model.pseudo_terms(ImageBatch(image=images, gt_mask=masks))["loss"]
    model.zero_grad()
    loss.backward()


def training_memory(name: str, folder: Path) -> float:
    """Measure by how much this process grows in two training steps, weights and optimiser included, in MB."""
    before = memory_now()
    model = build(name, folder)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = model.recipe.configure(parameters, 1000)["optimizer"]
    for _ in range(2):
        images = torch.rand(BATCH, 3, SIZE, SIZE)
        forward_and_backward(model, images, images)
        optimizer.step()
    return memory_peak() - before


def measure() -> dict[str, list[float] | float]:
    """Measure all."""
    with tempfile.TemporaryDirectory() as folder:
        result: dict[str, list[float] | float] = {
            "inference": inference(Path(folder)),
            "step": step(Path(folder), cached=False),
            "cached step": step(Path(folder), cached=True),
        }
        for name in MODELS:
            result[f"training memory, {name}"] = pages.in_fresh_process(__file__, "--memory-of", name)
    return result


def table(result: dict) -> str:
    """Write the result as Markdown."""
    theirs, ours = (result[f"training memory, {name}"] for name in MODELS)
    memory = f"{ours / theirs:.2f} ({ours:.0f} of {theirs:.0f} MB)"
    rows = [
        ["inference, batch 1", "at most 1.15", pages.spread(result["inference"])],
        ["training step, no feature cache", "", pages.spread(result["step"])],
        ["training step, feature cache", "", pages.spread(result["cached step"])],
        [f"peak memory of training, batch {BATCH}", "at most 1.6", memory],
    ]
    text = pages.table(["of InpFormer's", "goal", "ViT-S/14"], rows)
    return f"{text}\n\n{pages.machine()}; {SIZE} px, float32, PyTorch."


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory-of", choices=tuple(MODELS), required=True)
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(training_memory(parser.parse_args().memory_of, Path(name))))
