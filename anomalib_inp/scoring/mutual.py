# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""How unlike the other images of a folder a token is: for images of which none is known to be normal."""

from collections.abc import Sequence

import torch
from torch import Tensor

SHARE = 0.3
"""Share of the other images that are most like a token, whose distances count: what repeats in as many is normal."""


def mutual_distance(tokens: Tensor, others: Sequence[Tensor], share: float = SHARE) -> Tensor:
    """Mean distance of each token to the nearest token of those other images that have the most similar ones.

    Args:
        tokens: Unit vectors of an image ``(N, D)``.
        others: Unit vectors of each other image ``(N, D)``, at least one, in any precision.
        share: Share of the other images whose distances count, rounded to at least one.

    Returns:
        Cosine distances ``(N,)`` in [0, 2].
    """
    # Image by image: a product with all of them at once would take hundreds of megabytes.
    nearest = torch.stack([(tokens @ other.to(tokens.dtype).T).amax(dim=-1) for other in others])  # (images, N)
    count = max(1, round(share * len(others)))
    return 1 - nearest.topk(count, dim=0).values.mean(dim=0)
