# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Which places of a map count."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

Size = tuple[int, int]


class Everywhere:
    """Every place of a map counts."""

    def at(self, maps: Tensor) -> Tensor | None:
        """Tell which places of maps ``(..., H, W)`` count, bool ``(H, W)``; ``None`` for all."""
        del maps
        return None

    def hide(self, maps: Tensor) -> Tensor:
        """Leave maps ``(..., H, W)`` as they are."""
        return maps

    def values(self, maps: Tensor) -> Tensor:
        """Leave maps ``(B, 1, H, W)`` as they are."""
        return maps


class Inspected(Everywhere):
    """Some places of a map count; the others look like its lowest value, and take part in no score.

    Args:
        places: Tells for a height and width of maps which places count, bool ``(H, W)``; ``None`` for all.
    """

    def __init__(self, places: Callable[[Size], np.ndarray | None]) -> None:
        self.places = places
        self._last: tuple[tuple[Any, ...], Tensor | None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the tensor behind, which may be on another device."""
        return {**self.__dict__, "_last": None}

    def at(self, maps: Tensor) -> Tensor | None:
        """Tell which places of maps ``(..., H, W)`` count, bool ``(H, W)``; ``None`` for all."""
        size = (int(maps.shape[-2]), int(maps.shape[-1]))
        if self._last is None or self._last[0] != (size, maps.device):
            found = self.places(size)
            self._last = (size, maps.device), None if found is None else torch.from_numpy(found).to(maps.device)
        return self._last[1]

    def hide(self, maps: Tensor) -> Tensor:
        """Give places of maps ``(..., H, W)`` that do not count the lowest value of their map."""
        places = self.at(maps)
        return maps if places is None else torch.where(places, maps, maps.amin(dim=(-2, -1), keepdim=True))

    def values(self, maps: Tensor) -> Tensor:
        """List the values of maps ``(B, 1, H, W)`` that count ``(B, N)``."""
        places = self.at(maps)
        return maps if places is None else maps[:, 0, places]
