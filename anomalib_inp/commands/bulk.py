# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What ``anomalib-inp predict --ray`` does."""

import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from anomalib_inp.bulk.job import ROWS, Output, connect, predict_images
from anomalib_inp.commands import UNREADABLE


def predict_by_ray(images: str, model: Path, output: str, address: str, resume: bool, **settings: Any) -> None:
    """Predict by a cluster of Ray, and count what was said; the exit code is 3 where an image could not be read.

    Args:
        images: An image or a folder, here or at a URL.
        model: An exported model.
        output: Folder for the results, here or at a URL.
        address: Of the cluster; ``local`` begins one of this machine alone.
        resume: Whether to go on where an earlier run has ended.
        **settings: As :func:`predict_images` takes them.
    """
    console, place = Console(), Output(output)
    connect(address)
    counted = predict_images(images, model, place, resume, **settings)
    said = ", ".join(
        f"{counted[name]} {name}" for name in ("normal", "anomalous", "no verdict", "error") if counted[name]
    )
    console.print(f"Images:  {said}\nRecords: {place.place}/{ROWS}", markup=False, soft_wrap=True)
    if counted["error"]:
        sys.exit(UNREADABLE)
