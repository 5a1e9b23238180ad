# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The models that are timed, with random weights: time does not depend on them."""

from pathlib import Path
from typing import Any

import timm
import torch
from anomalib.models.components import AnomalibModule
from bench.rival import builtin_inp_former
from gpu.harness import TINY, free
from safetensors.torch import save_file

from anomalib_inp import InpFormer

DRY_SIZE = 56


def ours(encoder: str, size: int, folder: Path, **kwargs: Any) -> InpFormer:
    """Build our model."""
    weights = folder / f"{encoder}.safetensors"
    if not weights.exists():
        save_file(timm.create_model(encoder, pretrained=False, num_classes=0).state_dict(), weights)
    torch.manual_seed(0)
    return InpFormer(encoder, str(weights), image_size=size, visualizer=False, **kwargs)


def anomalibs(encoder: str, size: int) -> AnomalibModule:
    """Build anomalib's model; it knows encoders by their names, and that of a dry run is not among them."""
    if encoder == TINY[0]:
        encoder, size = "vit_small_patch14_reg4_dinov2", DRY_SIZE
    torch.manual_seed(0)
    model = builtin_inp_former(encoder, visualizer=False)
    model.pre_processor = model.configure_pre_processor(image_size=(size, size), crop_size=size)
    return model


_KEPT: dict[tuple[Any, ...], AnomalibModule] = {}


def kept(kind: str, encoder: str, size: int, folder: Path, device: str, compile: bool = False) -> AnomalibModule:  # noqa: A002
    """Build a model once, because that takes longer than timing it; no other that was built is on the device then."""
    key = (kind, encoder, size, folder, compile)
    for other, model in _KEPT.items():
        if other != key:
            model.cpu()
    if key not in _KEPT:
        _KEPT[key] = anomalibs(encoder, size) if kind == "anomalib" else ours(encoder, size, folder, compile=compile)
    free()
    return _KEPT[key].to(device)


def size_for(kind: str, encoder: str, size: int) -> int:
    """Size of the images of a model; a dry run has anomalib's smallest encoder see four patches in each direction."""
    return DRY_SIZE if kind == "anomalib" and encoder == TINY[0] else size
