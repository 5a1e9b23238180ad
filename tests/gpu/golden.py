# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The golden numbers on the GPU, and how far TF32 and bfloat16 are from float32."""

from typing import Any

import torch
from conftest import golden_folders
from gpu.harness import Check, autocast, float32
from parity.test_golden import FAMILIES, compared, compute, error_of

from anomalib_inp.checkpoints.published import network_from_reference
from anomalib_inp.models.inp_former import INP_FORMER_MAPS
from anomalib_inp.scoring.detector import Detector

LOOSER = 10
"""A GPU adds in another order and has other exponentials than the CPU that the numbers come from, and than the CPU that
the tolerances of float32 were chosen on: it is given ten times as much. In float64 that order shows in digits that the
tolerances do not reach, so they stay as they are: what is wrong, and not only rounded, shows there."""
EXACT = {"prepared tokens": 1e-5}
"""What is equal to the last bit on the CPU, whose convolution adds in the same order as the reference's."""


def section(check: Check) -> None:
    """Compare both precisions with the reference, and what is faster with float32."""
    for folder in golden_folders():
        for precision in ("float32", "float64"):
            check.part(
                f"golden/{folder.name}/{precision}",
                lambda folder=folder, precision=precision: compare(folder, precision, check.device),
                needs=10,
            )
        check.part(f"golden/{folder.name}/distances", lambda folder=folder: distances(folder, check.device), needs=10)


def compare(folder: Any, precision: str, device: str) -> dict[str, Any]:
    """Largest error of each family, and its tolerance."""
    with float32(matmul=False, convolution=False):
        golden = compute(folder, precision, device)
    limits = {}
    for name, family in FAMILIES.items():
        if errors := [error_of(golden, name, key, precision) for key in compared(golden, family)]:
            limits[name] = (max(errors), tolerance(name, precision))
    return {"limits": limits}


def tolerance(name: str, precision: str) -> float:
    """What a family may be off by on a GPU."""
    family = FAMILIES[name]
    return family.float64 if precision == "float64" else family.float32 * LOOSER or EXACT.get(name, 0)


def distances(folder: Any, device: str) -> dict[str, Any]:
    """Largest difference of maps and scores from float32 without TF32, by what is allowed instead."""
    golden = compute(folder, "float32", "cpu")
    detector = Detector(network_from_reference(golden.state), INP_FORMER_MAPS).eval().to(device)
    image = golden.inputs["image"].to(device)

    def read(mixed: bool, matmul: bool, convolution: bool) -> Any:
        with torch.no_grad(), float32(matmul, convolution):
            with autocast(device, mixed):
                reconstruction = detector.network(image)
            return detector.read(reconstruction.full_precision())

    plain = read(mixed=False, matmul=False, convolution=False)
    found = {}
    for name, allowed in {
        "TF32 convolutions, torch's default": (False, False, True),
        "TF32 convolutions and products": (False, True, True),
        "bfloat16 autocast": (True, False, True),
    }.items():
        other = read(*allowed)
        found[name] = {
            "map": (other.anomaly_map - plain.anomaly_map).abs().max().item(),
            "score": (other.pred_score - plain.pred_score).abs().max().item(),
        }
    return {"largest map value": plain.anomaly_map.max().item(), **found}
