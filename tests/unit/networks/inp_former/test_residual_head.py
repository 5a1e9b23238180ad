# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import pytest
import timm
import torch
from torch import Tensor

from anomalib_inp.encoder.frozen import FrozenEncoder
from anomalib_inp.losses.segmentation import dice_loss
from anomalib_inp.networks.inp_former.network import InpFormerNetwork
from anomalib_inp.networks.inp_former.residual_head import SegmentationHead, residual
from anomalib_inp.outputs import PatchFeatures, Reconstruction


def tokens(*vectors: list[float]) -> Tensor:
    """One image ``(1, N, 2)``."""
    return torch.tensor(vectors).unsqueeze(0)


def test_residual_by_hand() -> None:
    encoded = [tokens([1.0, 0.0], [2.0, 0.0]), tokens([1.0, 0.0], [0.0, 1.0])]
    rebuilt = [tokens([0.0, 3.0], [4.0, 0.0]), tokens([-1.0, 0.0], [0.0, 1.0])]
    # distances: 1 and 0, 2 and 0; differences: (1, 3) and (2, 0), (2, 0) and (0, 0)
    expected = torch.tensor([[[[(1 * 1 + 2 * 2) / 2, 0.0]], [[(1 * 3 + 0) / 2, 0.0]]]])  # (1, D, 1, 2)
    ours = residual(Reconstruction(PatchFeatures(encoded, (1, 2)), tokens([1.0, 0.0]), rebuilt))
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("grid", [(3, 5), (4, 4)])
def test_segments_at_the_size_of_the_input(grid: tuple[int, int]) -> None:
    groups = [torch.randn(2, grid[0] * grid[1], 16) for _ in range(2)]
    features = PatchFeatures([group + 1 for group in groups], grid)
    mask = SegmentationHead(16, patch_size=14)(Reconstruction(features, groups[0], groups))
    assert mask.shape == (2, 14 * grid[0], 14 * grid[1])
    assert ((mask > 0) & (mask < 1)).all()


def test_layers_are_those_that_the_documentation_names() -> None:
    shapes = [tuple(weight.shape) for name, weight in SegmentationHead(384, 14).named_parameters() if "weight" in name]
    assert shapes == [(384, 256, 4, 4), (256, 64, 4, 4), (1, 64, 3, 3)]


def test_a_place_of_the_residual_moves_its_own_place_in_the_mask() -> None:
    head = SegmentationHead(2, patch_size=4)
    encoded = torch.ones(1, 64, 2)

    def segment(changed: list[int]) -> Tensor:
        rebuilt = encoded.clone()
        rebuilt[0, changed] = torch.tensor([-5.0, 1.0])
        features = PatchFeatures([encoded, encoded], (8, 8))
        return head(Reconstruction(features, encoded, [rebuilt, rebuilt]))[0]

    difference = (segment([8 * 2 + 6]) - segment([])).abs()
    assert (difference[4 * 2 : 4 * 3, 4 * 6 : 4 * 7] > 0).any()
    assert (difference[4 * 5 :] == 0).all()  # rows far below
    assert (difference[:, : 4 * 3] == 0).all()  # columns far to the left


def test_no_gradient_of_the_head_reaches_the_reconstruction() -> None:
    encoder = FrozenEncoder(timm.create_model("test_vit", num_classes=0))
    network = InpFormerNetwork(encoder)
    head = SegmentationHead(encoder.embed_dim, encoder.patch_size)
    images, masks = torch.rand(2, 3, 64, 64), torch.zeros(2, 64, 64)
    masks[:, 10:30, 10:30] = 1
    for parameter in network.parameters():  # all-zero, not just missing: the encoder's too
        parameter.requires_grad_(True)
        parameter.grad = torch.zeros_like(parameter)
    dice_loss(head(network(images)), masks).backward()
    assert all((parameter.grad == 0).all() for parameter in network.parameters())
    assert all(parameter.grad.abs().max() > 0 for parameter in head.parameters())
