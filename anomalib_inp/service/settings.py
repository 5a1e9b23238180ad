# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What a service is started with."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

VARIABLE = "ANOMALIB_INP_SERVICE"
"""Environment variable that hands the settings to worker processes."""
TOKEN = "ANOMALIB_INP_TOKEN"  # noqa: S105 - the name of a variable
MEGABYTE = 2**20


@dataclass(frozen=True)
class Settings:
    """What a service is started with.

    Attributes:
        model: The ``.xml`` of an OpenVINO model, or an ``.onnx`` file.
        device: OpenVINO device.
        precision: OpenVINO's inference precision; ``None`` leaves it to the device.
        category: Of a model of several categories: the one whose thresholds hold.
        threads: Images that are worked on at a time.
        queue: Images that may wait or be worked on; of more, requests are refused.
        timeout: Seconds that a request may take, its upload included.
        max_upload: Bytes of a request.
        max_pixels: Pixels of an image.
        token: What changes need; without one, they come from this computer alone.
        feedback: Folder for the images that somebody has marked.
        station: Whether the station is at ``/``.
    """

    model: str
    device: str = "CPU"
    precision: str | None = "f32"
    category: str | None = None
    threads: int = max(2, os.cpu_count() or 1)
    queue: int = 64
    timeout: float = 60.0
    max_upload: int = 64 * MEGABYTE
    max_pixels: int = 50_000_000
    token: str = ""
    feedback: str = "feedback"
    station: bool = True

    @property
    def path(self) -> Path:
        """The file of the model."""
        return Path(self.model)

    def to_environment(self) -> None:
        """Hand the settings to processes that are started from here."""
        os.environ[VARIABLE] = json.dumps(asdict(self))

    @classmethod
    def from_environment(cls) -> "Settings":
        """Take over what the process was started with."""
        return cls(**json.loads(os.environ[VARIABLE]))
