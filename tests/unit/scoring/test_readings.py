# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import torch
from torch import Tensor

from anomalib_inp.outputs import PatchFeatures, Reconstruction
from anomalib_inp.scoring.readings import cosine_and_length_error, nearest_prototype_distance, reconstruction_error

RIGHT, UP, LEFT = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([-1.0, 0.0])


def tokens(*vectors: Tensor) -> Tensor:
    """One image ``(1, N, 2)``."""
    return torch.stack(vectors).unsqueeze(0)


def reconstruction(encoded: list[Tensor], rebuilt: list[Tensor], prototypes: Tensor) -> Reconstruction:
    return Reconstruction(PatchFeatures(encoded, (1, encoded[0].shape[1])), prototypes, rebuilt)


def test_reconstruction_error_by_hand() -> None:
    encoded = [tokens(RIGHT, RIGHT), tokens(RIGHT, 5 * UP)]
    rebuilt = [tokens(3 * RIGHT, UP), tokens(LEFT, UP)]
    # groups: (0, 1) and (2, 0)
    distances = reconstruction_error(reconstruction(encoded, rebuilt, tokens(UP)))
    torch.testing.assert_close(distances, torch.tensor([[[1.0, 0.5]]]))


def test_prototype_distance_by_hand() -> None:
    # fused: (0, 1), (0.5, 0.5), (1, 0)
    encoded = [tokens(UP, RIGHT, 3 * RIGHT), tokens(UP, UP, LEFT)]
    distances = nearest_prototype_distance(reconstruction(encoded, encoded, tokens(UP, LEFT)))
    torch.testing.assert_close(distances, torch.tensor([[[0.0, 1 - 2**-0.5, 1.0]]]))


def test_cosine_and_length_error_by_hand() -> None:
    encoded = [tokens(RIGHT, 2 * RIGHT), tokens(RIGHT, 5 * UP)]
    rebuilt = [tokens(3 * RIGHT, 2 * UP), tokens(LEFT, 5 * UP)]
    # cosine distances (0, 1) and (2, 0); lengths of the difference over the token's (2, sqrt(2)) and (2, 0)
    errors = cosine_and_length_error(reconstruction(encoded, rebuilt, tokens(UP)))
    torch.testing.assert_close(errors, torch.tensor([[[(0 + 2 + 2 + 2) / 4, (1 + 2**0.5 + 0 + 0) / 4]]]))


def test_readings_differ_in_what_they_read() -> None:
    encoded, other = [tokens(UP, RIGHT)] * 2, [tokens(RIGHT, RIGHT)] * 2
    first, second = reconstruction(encoded, encoded, tokens(LEFT)), reconstruction(encoded, other, tokens(LEFT))
    assert not torch.equal(reconstruction_error(first), reconstruction_error(second))
    assert torch.equal(nearest_prototype_distance(first), nearest_prototype_distance(second))
    third = first._replace(prototypes=tokens(UP))
    assert torch.equal(reconstruction_error(first), reconstruction_error(third))
    assert not torch.equal(nearest_prototype_distance(first), nearest_prototype_distance(third))
