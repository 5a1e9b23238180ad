# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Which prototype explains which patch."""

import torch
from torch.nn import functional as F

from anomalib_inp.outputs import PatchFeatures, Reconstruction
from anomalib_inp.scoring.prototypes import count_in_use, explain
from anomalib_inp.scoring.readings import nearest_prototype_distance


def test_by_hand() -> None:
    """Directions count, not lengths: two patches lie by the first prototype, one by the third, one between."""
    tokens = torch.tensor([[[5.0, 0, 0], [1, 0.1, 0], [0, 0, 2], [1, 1, 0]]])
    prototypes = torch.tensor([[[1.0, 0, 0], [0, 0.5, 0], [0, 0, 9]]])
    found = explain(Reconstruction(PatchFeatures([tokens], (2, 2)), prototypes))
    assert found.nearest.tolist()[0] in ([[0, 0], [2, 0]], [[0, 0], [2, 1]])
    torch.testing.assert_close(found.left[0, 0, 0], torch.tensor(0.0))
    torch.testing.assert_close(found.left[0, 1, 1], torch.tensor(1 - 0.5**0.5))
    assert found.shares[0, 2] == 0.25
    assert found.shares.sum() == 1
    assert count_in_use(torch.tensor([0.99, 0.01, 0.009])) == 2


def test_what_is_left_is_the_map_of_the_paper() -> None:
    torch.manual_seed(0)
    reconstruction = Reconstruction(
        PatchFeatures([torch.randn(2, 12, 8), torch.randn(2, 12, 8)], (3, 4)), torch.randn(2, 5, 8)
    )
    found = explain(reconstruction)
    torch.testing.assert_close(found.left, nearest_prototype_distance(reconstruction))
    cosines = F.cosine_similarity(reconstruction.features.fused[:, :, None], reconstruction.prototypes[:, None], dim=-1)
    assert torch.equal(found.nearest.flatten(1), cosines.argmax(-1))
