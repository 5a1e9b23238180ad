# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import numpy as np
import openvino
import pytest
import torch
from openvino import opset11
from torch.nn.functional import interpolate

from anomalib_inp.runtime.resize import resize

SIZES = [(90, 70), (40, 40), (56, 200), (30, 20), (12, 300), (57, 56), (1, 1), (56, 48)]


def images(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).random((2, 3, *size), dtype=np.float32)


@pytest.mark.parametrize("size", SIZES)
def test_images_are_resized_as_by_pytorch(size: tuple[int, int]) -> None:
    theirs = interpolate(torch.from_numpy(images(size)), (56, 48), mode="bilinear", antialias=True)
    np.testing.assert_allclose(resize(images(size), (56, 48)), theirs.numpy(), atol=2e-5, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_images_are_resized_as_by_openvino(size: tuple[int, int]) -> None:
    """Far closer than PyTorch and OpenVINO are to each other; on most processors every number is the same."""
    given = opset11.parameter([-1, 3, -1, -1], np.float32)
    node = opset11.interpolate(
        given,
        np.array([56, 48]),
        "bilinear_pillow",
        "sizes",
        coordinate_transformation_mode="pytorch_half_pixel",
        axes=np.array([2, 3]),
    )
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(openvino.Model([node], [given]), "CPU", settings)
    theirs = model(images(size))[0]
    np.testing.assert_allclose(resize(images(size), (56, 48)), theirs, atol=3e-7, rtol=0)
