# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import pytest
import torch
from torch import Tensor
from torchmetrics.segmentation import DiceScore

from anomalib_inp.losses.segmentation import dice_loss


def masks(*rows: list[float]) -> Tensor:
    """Images of one row, ``(B, 1, W)``."""
    return torch.tensor(rows).unsqueeze(1)


def test_by_hand() -> None:
    # overlap 1/2 + 1, areas 2 and 2: (2 * 1.5 + 1) / (2 + 2 + 1)
    torch.testing.assert_close(dice_loss(masks([0.5, 1.0, 0.5]), masks([1.0, 1.0, 0.0])), torch.tensor(1 / 5))


def test_a_batch_is_one_image() -> None:
    """A wrong pixel weighs the same in an image with an anomaly and in one without."""
    truth = torch.cat([masks([1.0] * 6 + [0.0] * 4), masks([0.0] * 10)])
    losses = []
    for image in range(2):
        predicted = truth.clone()
        predicted[image, 0, 9] = 1
        losses.append(dice_loss(predicted, truth))
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(losses[0], torch.tensor(1 - (2 * 6 + 1) / (7 + 6 + 1)))
    # finding nothing is no way out
    assert dice_loss(torch.zeros_like(truth), truth) > 0.8


def test_is_dice_by_another_library_where_masks_are_large() -> None:
    generator = torch.Generator().manual_seed(0)
    truth, predicted = (torch.rand(3, 500, 500, generator=generator) > 0.5 for _ in range(2))
    pairs = (predicted.long().view(1, 1, -1), truth.long().view(1, 1, -1))
    theirs = DiceScore(num_classes=1, input_format="one-hot")(*pairs)
    torch.testing.assert_close(dice_loss(predicted.float(), truth.float()), 1 - theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("predicted", [0.0, 0.5])
def test_empty_masks_give_no_nan_and_ask_for_nothing(predicted: float) -> None:
    probabilities = torch.full((2, 4, 4), predicted, requires_grad=True)
    loss = dice_loss(probabilities, torch.zeros(2, 4, 4))
    loss.backward()
    torch.testing.assert_close(loss, torch.tensor(1 - 1 / (32 * predicted + 1)))
    assert probabilities.grad.isfinite().all()
    assert (probabilities.grad > 0).all()
