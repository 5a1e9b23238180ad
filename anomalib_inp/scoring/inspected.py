# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Which places of a map count."""

import torch
from torch import Tensor, nn


class Everywhere(nn.Module):
    """Every place of a map counts.

    Attributes:
        places: Which ones count, bool ``(H, W)``; ``None`` for all.
    """

    places: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("places", None, persistent=False)

    def hide(self, maps: Tensor) -> Tensor:
        """Leave maps ``(..., H, W)`` as they are."""
        return maps

    def values(self, maps: Tensor) -> Tensor:
        """Leave maps ``(B, 1, H, W)`` as they are."""
        return maps


class Inspected(Everywhere):
    """Some places of a map count; the others look like its lowest value, and take part in no score.

    Args:
        places: Which ones, bool ``(H, W)``; at least one.
    """

    def __init__(self, places: Tensor) -> None:
        super().__init__()
        self.places = places
        self.register_buffer("indices", places.flatten().nonzero().flatten(), persistent=False)

    def hide(self, maps: Tensor) -> Tensor:
        """Give places of maps ``(..., H, W)`` that do not count the lowest value of their map."""
        return torch.where(self.places, maps, maps.amin(dim=(-2, -1), keepdim=True))

    def values(self, maps: Tensor) -> Tensor:
        """List the values of maps ``(B, 1, H, W)`` that count ``(B, N)``."""
        return maps.flatten(1)[:, self.indices]
