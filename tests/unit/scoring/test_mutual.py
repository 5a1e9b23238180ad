# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from anomalib_inp.scoring.mutual import mutual_distance


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_by_hand(share: float) -> None:
    torch.manual_seed(0)
    tokens, others = F.normalize(torch.randn(5, 6), dim=-1), [F.normalize(torch.randn(7, 6), dim=-1) for _ in range(8)]
    found = mutual_distance(tokens, others, share)
    count = max(1, round(share * 8))
    for place in range(5):
        nearest = [min(1 - float(tokens[place] @ each) for each in other) for other in others]
        assert found[place].item() == pytest.approx(np.mean(sorted(nearest)[:count]), abs=1e-6)


def test_what_is_in_a_third_of_the_images_is_normal_and_what_is_in_one_is_not() -> None:
    common, rare, alone = torch.eye(8)[:3]
    plain = torch.eye(8)[3:5]
    others = [torch.stack([*plain, common]) for _ in range(4)] + [torch.stack([*plain, rare])] + [plain] * 7
    found = mutual_distance(torch.stack([common, rare, alone, plain[0]]), others)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.75, 1.0, 0.0]))


def test_others_may_be_in_16_bits_and_of_another_number_of_tokens() -> None:
    torch.manual_seed(0)
    tokens, other = F.normalize(torch.randn(5, 6), dim=-1), F.normalize(torch.randn(9, 6), dim=-1)
    torch.testing.assert_close(
        mutual_distance(tokens, [other.half()]), mutual_distance(tokens, [other]), rtol=0, atol=1e-3
    )
