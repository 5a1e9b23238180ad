# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Ours against the numbers of the reference implementation; ``tests/golden/README.md`` says what each one is."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from anomalib_inp.checkpoints.published import RENAMED, network_from_reference
from anomalib_inp.data.few_shot import few_shot_views
from anomalib_inp.distances import prototype_distance
from anomalib_inp.encoder.frozen import default_target_layers
from anomalib_inp.losses.coherence import coherence_loss
from anomalib_inp.losses.objective import InpFormerObjective
from anomalib_inp.models.inp_former import INP_FORMER_MAPS
from anomalib_inp.networks.inp_former.network import InpFormerNetwork
from anomalib_inp.scoring.detector import Detector
from anomalib_inp.scoring.smoothing import Smoothing
from anomalib_inp.training.recipe import Recipe

INPUTS = {"image", "train.images", "few_shot.image"}
READING = {"reconstruction": "reconstruction", "zero_shot": "prototype_distance"}
CLIP = 0.1
# What the float64 file may leave out: a decision, and views that are compared in float32 only.
FLOAT32_ONLY = {"nearest index", "few-shot views"}


class Golden(NamedTuple):
    meta: dict[str, Any]
    state: dict[str, Tensor]
    inputs: dict[str, Tensor]
    expected: dict[str, Tensor]
    ours: dict[str, Tensor]


def absolute_error(ours: Tensor, expected: Tensor) -> float:
    return (ours - expected).abs().max().item()


def error_of_largest(ours: Tensor, expected: Tensor) -> float:
    return absolute_error(ours, expected) / expected.abs().max().item()


def relative_error(ours: Tensor, expected: Tensor) -> float:
    return ((ours - expected).abs() / expected.abs()).max().item()


def l2_error(ours: Tensor, expected: Tensor) -> float:
    return ((ours - expected).norm() / expected.norm()).item()


class Family(NamedTuple):
    """Keys that are compared alike; tolerances as asked for by the README, 0 is exact."""

    matches: Callable[[str], bool]
    error: Callable[[Tensor, Tensor], float]
    float32: float
    float64: float


def keys(*names: str) -> Callable[[str], bool]:
    return lambda key: key in names


def prefix(start: str) -> Callable[[str], bool]:
    return lambda key: key.startswith(start)


def suffix(*ends: str) -> Callable[[str], bool]:
    return lambda key: key.startswith(tuple(f"{reading}." for reading in READING)) and key.endswith(ends)


EMBEDDING_ERROR = 0 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 4e-6
"""The reference's processor had AVX512; the kernels of others add up patches of pixels in another order."""

FAMILIES = {
    "prepared tokens": Family(keys("encoder.prepared_tokens"), absolute_error, EMBEDDING_ERROR, 1e-12),
    "nearest index": Family(keys("nearest_inp_index"), absolute_error, 0, 0),
    "learning rates": Family(keys("train.lrs", "lr_schedule_1000_warmup100"), absolute_error, 0, 1e-12),
    "encoder groups": Family(prefix("encoder_group."), error_of_largest, 1e-5, 1e-9),
    "decoder groups": Family(prefix("decoder_group."), error_of_largest, 1e-4, 1e-9),
    "distances": Family(keys("distance_to_nearest_inp"), absolute_error, 1e-5, 1e-9),
    "maps": Family(suffix(".map_at_input", ".map_256_blurred"), absolute_error, 1e-5, 1e-9),
    "scores": Family(suffix(".image_score"), absolute_error, 1e-5, 1e-9),
    "few-shot views": Family(keys("few_shot.views_unshuffled"), absolute_error, 2e-5, 0),
    "losses": Family(keys("coherence_loss", "train.losses", "train.reconstruction_losses"), relative_error, 1e-5, 1e-9),
    "gradient norms": Family(keys("train.grad_norms"), relative_error, 1e-4, 1e-9),
    "first gradients": Family(prefix("step0_grad_before_clip."), l2_error, 5e-4, 1e-8),
    "trained parameters": Family(prefix("after_training."), l2_error, 1e-4, 1e-8),
}


def reference_name(ours: str) -> str:
    """The reference's name of a trained parameter."""
    old, new = max(((old, new) for old, new in RENAMED.items() if ours.startswith(new)), key=lambda pair: len(pair[1]))
    return old + ours.removeprefix(new)


def trained_parameters(network: InpFormerNetwork) -> Iterator[tuple[str, torch.nn.Parameter]]:
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            yield reference_name(name), parameter


def read_image(network: InpFormerNetwork, image: Tensor) -> dict[str, Tensor]:
    """What the network says about images, under the golden names."""
    ours = {"encoder.prepared_tokens": network.encoder.prepare_tokens(image)}
    reconstruction = network(image)
    features, prototypes = reconstruction.features, reconstruction.prototypes
    for name, groups in (("encoder", features.groups), ("decoder", reconstruction.groups)):
        for index, group in enumerate(groups):
            ours[f"{name}_group.{index}"] = group.transpose(1, 2).unflatten(2, features.grid)  # (B, D, h, w)
    similarity = F.normalize(features.fused, dim=-1) @ F.normalize(prototypes, dim=-1).transpose(1, 2)
    ours["nearest_inp_index"] = similarity.argmax(dim=-1)
    ours["distance_to_nearest_inp"] = prototype_distance(features.fused, prototypes)
    ours["coherence_loss"] = coherence_loss(features.fused, prototypes)
    at_input = Smoothing(None, kernel_size=1).to(image.device)
    for name, reading in READING.items():
        (read,) = INP_FORMER_MAPS[reading]
        prediction = Detector(network, INP_FORMER_MAPS, reading, map_size=(256, 256)).to(image.device)(image)
        ours[f"{name}.map_at_input"] = at_input(read(reconstruction), tuple(image.shape[-2:]))
        ours[f"{name}.map_256_blurred"] = prediction.anomaly_map
        ours[f"{name}.image_score"] = prediction.pred_score
    return ours


def train(network: InpFormerNetwork, batches: Tensor, total_steps: int, warmup_steps: int) -> dict[str, Tensor]:
    """Train by our recipe, and note what happens under the golden names."""
    network.train()
    parameters = dict(trained_parameters(network))
    configured: Any = Recipe(warmup_steps=warmup_steps).configure(parameters.values(), total_steps)
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    objective = InpFormerObjective()
    gradients: dict[str, Tensor] = {}
    history: dict[str, list[float]] = {"losses": [], "reconstruction_losses": [], "grad_norms": [], "lrs": []}
    for images in batches:
        terms = objective(network(images))
        optimizer.zero_grad()
        terms["loss"].backward()
        if not gradients:
            gradients = {name: parameter.grad.clone() for name, parameter in parameters.items()}
        history["losses"].append(terms["loss"].item())
        history["reconstruction_losses"].append(terms["mining"].item())
        history["grad_norms"].append(torch.nn.utils.clip_grad_norm_(parameters.values(), CLIP).item())
        history["lrs"].append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return {
        **{f"train.{name}": torch.tensor(values, dtype=torch.float64) for name, values in history.items()},
        **{f"step0_grad_before_clip.{name}": gradient for name, gradient in gradients.items()},
        **{f"after_training.{name}": parameter.detach() for name, parameter in parameters.items()},
    }


def schedule_alone(steps: int, warmup_steps: int) -> Tensor:
    """Learning rates of a whole training."""
    configured: Any = Recipe(warmup_steps=warmup_steps).configure([torch.nn.Parameter(torch.zeros(1))], steps)
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return torch.tensor(rates, dtype=torch.float64)


@pytest.fixture(scope="module", params=["float32", "float64"])
def precision(request: pytest.FixtureRequest) -> str:
    return request.param


def compute(folder: Path, precision: str, device: str = "cpu") -> Golden:
    """Read the golden numbers of a folder, and compute ours on a device."""
    dtype = getattr(torch, precision)
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    expected = load_file(folder / "expected.safetensors")
    inputs = {key: expected[key].to(device, dtype) for key in INPUTS}
    if dtype == torch.float64:
        expected = load_file(folder / "expected_float64.safetensors")
    # Cast before anything is built, so that nothing passes through float32.
    state = torch.load(folder / "model.pth", weights_only=True)
    state = {key: value.to(dtype) for key, value in state.items()}
    network = network_from_reference(state).eval().to(device)
    with torch.no_grad():
        ours = read_image(network, inputs["image"])
        ours["few_shot.views_unshuffled"] = few_shot_views(inputs["few_shot.image"])
    ours["lr_schedule_1000_warmup100"] = schedule_alone(1000, 100)
    ours |= train(network, inputs["train.images"], meta["schedule_total_iters"], meta["schedule_warmup_iters"])
    return Golden(meta, state, inputs, expected, {key: value.cpu() for key, value in ours.items()})


@pytest.fixture(scope="module")
def golden(golden_folder: Path, precision: str) -> Golden:
    """Golden numbers of one folder in one precision, and ours."""
    return compute(golden_folder, precision)


def compared(golden: Golden, family: Family) -> list[str]:
    return [key for key in golden.expected if family.matches(key)]


def without_key_bias(values: Tensor, key: str) -> Tensor:
    """Leave out the key bias of the aggregation: its true gradient is zero, so that rounding noise trains it."""
    return values[values.shape[0] // 2 :] if key == "after_training.aggregation.0.attn.kv.bias" else values


def error_of(golden: Golden, name: str, key: str, precision: str) -> float:
    """Error of one number or tensor of a family."""
    ours, expected = without_key_bias(golden.ours[key], key), without_key_bias(golden.expected[key], key)
    assert ours.shape == expected.shape, key
    if name == "learning rates" and precision == "float32":
        ours, expected = ours.float(), expected.float()  # both are Python floats, last bits of float64 included
    assert ours.dtype == expected.dtype, key
    return FAMILIES[name].error(ours, expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_numbers_of_the_reference(golden: Golden, precision: str, name: str) -> None:
    family = FAMILIES[name]
    tolerance = getattr(family, precision)
    names = compared(golden, family)
    if not names:
        assert precision == "float64"
        assert name in FLOAT32_ONLY
        pytest.skip(f"expected_float64.safetensors has no {name}")
    for key in names:
        error = error_of(golden, name, key, precision)
        assert error <= tolerance, f"{key}: {family.error.__name__} {error:.2e} is above {tolerance:.0e}"


def test_every_key_is_compared_once(golden: Golden, precision: str) -> None:
    """No number of the files is forgotten, and in float32 no number of ours is made in vain."""
    found = [key for family in FAMILIES.values() for key in compared(golden, family)]
    assert sorted(found) == sorted(set(golden.expected) - INPUTS)
    if precision == "float32":
        assert set(golden.ours) == set(found)
        assert set(golden.expected) >= INPUTS


def test_sizes(golden: Golden) -> None:
    """The network that the checkpoint's shapes lead to is the one that the folder describes."""
    meta, network = golden.meta, network_from_reference(golden.state)
    encoder = network.encoder
    assert default_target_layers(meta["depth"]) == meta["target_layers"]
    assert encoder.target_layers == meta["target_layers"]
    half = len(meta["target_layers"]) // 2
    assert meta["encoder_groups"] == [list(range(half)), list(range(half, 2 * half))]
    assert (encoder.embed_dim, encoder.num_heads) == (meta["embed_dim"], meta["num_heads"])
    assert encoder.patch_size == meta["patch_size"]
    assert encoder.backbone.num_prefix_tokens == 1 + meta["register_tokens"]
    assert network.extractor.queries.shape == (meta["num_prototypes"], meta["embed_dim"])
    assert golden.inputs["image"].shape == (meta["batch"], 3, meta["image_size"], meta["image_size"])
    assert len(golden.inputs["train.images"]) == meta["train_steps"]
    assert golden.state["encoder.pos_embed"].shape[1] == 1 + meta["position_grid"] ** 2
