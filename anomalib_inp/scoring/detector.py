# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The detector: what runs at inference and what is exported."""

from anomalib.data import InferenceBatch
from torch import Tensor, nn

from anomalib_inp.network.inp_former import InpFormerNetwork
from anomalib_inp.outputs import Reconstruction
from anomalib_inp.scoring.anomaly_map import READINGS, Smoothing
from anomalib_inp.scoring.image_score import image_score


class InpDetector(nn.Module):
    """Network, anomaly map and image score.

    Args:
        network: The network whose reconstruction is read.
        reading: Name of the anomaly map, a key of ``READINGS``: ``reconstruction`` (trained on the inspected kind of
            images) or ``prototype_distance`` (zero-shot).
        map_size: Height and width of the map in pixels; ``None`` gives the size of the input.

    Raises:
        ValueError: Unknown reading.
    """

    def __init__(
        self,
        network: InpFormerNetwork,
        reading: str = "reconstruction",
        map_size: tuple[int, int] | None = (256, 256),
    ) -> None:
        super().__init__()
        if reading not in READINGS:
            msg = f"The anomaly map must be one of {', '.join(READINGS)}, got {reading!r}."
            raise ValueError(msg)
        self.network = network
        self.reading = reading
        self.smoothing = Smoothing(map_size)

    def forward(self, images: Tensor) -> InferenceBatch:
        """Detect anomalies in normalised images ``(B, 3, H, W)``: maps ``(B, 1, h, w)`` and scores ``(B,)``."""
        return self.read(self.network(images))

    def read(self, reconstruction: Reconstruction) -> InferenceBatch:
        """Read maps and scores off a reconstruction."""
        grid, patch = reconstruction.features.grid, self.network.encoder.patch_size
        distances = READINGS[self.reading](reconstruction)
        anomaly_map = self.smoothing(distances, grid, (grid[0] * patch, grid[1] * patch))
        return InferenceBatch(pred_score=image_score(anomaly_map), anomaly_map=anomaly_map)
