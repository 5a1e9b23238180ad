# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The detector: what runs at inference and what is exported."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from anomalib.data import InferenceBatch
from torch import Tensor, nn

from anomalib_inp.outputs import Reconstruction, full_precision
from anomalib_inp.scoring.image_score import TOP_FRACTION, image_score
from anomalib_inp.scoring.inspected import Everywhere
from anomalib_inp.scoring.readings import Reading
from anomalib_inp.scoring.smoothing import Smoothing
from anomalib_inp.scoring.views import View, WholeImage

Head = TypeVar("Head", bound=nn.Module)


class Detector(nn.Module):
    """Network, anomaly map and image score.

    Args:
        network: From images to the reconstruction that is read; its ``encoder`` is the frozen one.
        maps: Anomaly maps by name, each the mean of its readings of a reconstruction; a reading that learns is a
            module, and a part of the detector whichever map is shown.
        map: Name of the anomaly map that is shown, by default the first; it may be changed at any time.
        map_size: Height and width of the map in pixels; ``None`` gives the size of the input.
        shares: Share of the highest pixels that an image is scored by, from 1 on their number; of maps for which it is
            not the published one.

    Attributes:
        inspected: Which places of the maps count.
        view: What the network sees at a time.

    Raises:
        ValueError: Unknown map.
    """

    def __init__(
        self,
        network: nn.Module,
        maps: Mapping[str, Sequence[Reading]],
        map: str | None = None,  # noqa: A002
        map_size: tuple[int, int] | None = (256, 256),
        shares: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.maps = dict(maps)
        self.shares = dict.fromkeys(maps, TOP_FRACTION) | dict(shares or {})
        heads = [reading for readings in maps.values() for reading in readings if isinstance(reading, nn.Module)]
        self.heads = nn.ModuleList(dict.fromkeys(heads))
        self.map = next(iter(maps)) if map is None else map
        self.smoothing = Smoothing(map_size)
        self.inspected = Everywhere()
        self.view: View = WholeImage()

    @property
    def map(self) -> str:
        """Name of the anomaly map that is shown."""
        return self._map

    @map.setter  # noqa: A003
    def map(self, name: str) -> None:
        if name not in self.maps:
            msg = f"The anomaly map must be one of {', '.join(self.maps)}, got {name!r}."
            raise ValueError(msg)
        self._map = name

    def head_of(self, kind: type[Head]) -> Head | None:
        """Find the reading of a kind that learns or remembers, whichever map is shown."""
        return next((head for head in self.heads if isinstance(head, kind)), None)

    def forward(self, images: Tensor) -> InferenceBatch:
        """Detect anomalies in normalised images ``(B, 3, H, W)``: maps ``(B, 1, h, w)`` and scores ``(B,)``."""
        parts = [self.readings_of(part) for part in self.view.cut(images)]
        with full_precision(images):
            return self._score(parts, (int(images.shape[-2]), int(images.shape[-1])))

    def readings_of(self, images: Tensor) -> list[Tensor]:
        """Read off what the network says of what it sees at a time: each reading ``(1 or 2, B, h, w)``."""
        reconstruction = self.network(images)
        with full_precision(images):
            return self._readings(reconstruction.full_precision())

    def read(self, reconstruction: Reconstruction) -> InferenceBatch:
        """Read maps and scores off a reconstruction of whole images."""
        grid, patch = reconstruction.features.grid, self.network.encoder.patch_size
        return self._score([self._readings(reconstruction)], (grid[0] * patch, grid[1] * patch))

    def _readings(self, reconstruction: Reconstruction) -> list[Tensor]:
        readings = [reading(reconstruction) for reading in self.maps[self.map]]
        return [reading if reading.ndim == 4 else reading.unsqueeze(0) for reading in readings]

    def _score(self, parts: Sequence[Sequence[Tensor]], image_size: tuple[int, int]) -> InferenceBatch:
        """Make maps and scores of all that was read off the parts of images."""
        readings = [torch.cat(of_all, dim=1) if len(of_all) > 1 else of_all[0] for of_all in zip(*parts, strict=True)]
        maps = [
            torch.stack([self.view.join(one, image_size, self.smoothing) for one in reading]) for reading in readings
        ]
        shown = torch.stack(maps).mean(dim=0)  # (1 or 2, B, 1, h, w)
        score = image_score(self.inspected.values(shown[-1]), self.shares[self.map])
        return InferenceBatch(pred_score=score, anomaly_map=self.inspected.hide(shown[0]))
