# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import torch
from torch import Tensor

from anomalib_inp.losses.ring import ring_loss
from anomalib_inp.outputs import PatchFeatures, Reconstruction


def reconstruction(target: Tensor, rebuilt: Tensor) -> Reconstruction:
    """One group of tokens ``(B, h, w, D)``."""
    features = PatchFeatures([target.flatten(1, 2)], (target.shape[1], target.shape[2]))
    return Reconstruction(features, None, [rebuilt.flatten(1, 2)])


def test_counts_the_two_tokens_around_what_was_changed() -> None:
    """By hand: a grid of 9 x 9 tokens of 2 x 2 pixels, one pixel changed in the middle: 24 tokens around it."""
    masks = torch.zeros(1, 18, 18)
    masks[0, 9, 9] = 1
    around = torch.zeros(9, 9, dtype=torch.bool)
    around[2:7, 2:7] = True
    around[4, 4] = False
    target = torch.tensor([1.0, 0.0]).expand(1, 9, 9, 2)
    for wrong, expected in ((around, 1.0), (~around, 0.0)):
        rebuilt = torch.where(wrong.unsqueeze(-1), torch.tensor([0.0, 1.0]), torch.tensor([2.0, 0.0])).unsqueeze(0)
        torch.testing.assert_close(ring_loss(reconstruction(target, rebuilt), masks), torch.tensor(expected))
    rebuilt = target.clone()
    rebuilt[0, 2, 2] = torch.tensor([0.0, 1.0])  # one of them
    torch.testing.assert_close(ring_loss(reconstruction(target, rebuilt), masks), torch.tensor(1 / 24))


def test_normal_images_have_no_ring_and_no_gradient_that_is_no_number() -> None:
    rebuilt = torch.rand(2, 4, 4, 3, requires_grad=True)
    loss = ring_loss(reconstruction(torch.rand(2, 4, 4, 3), rebuilt), torch.zeros(2, 8, 8))
    loss.backward()
    assert loss == 0
    assert not rebuilt.grad.any()
