# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The command ``anomalib-inp serve``."""

import logging
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path

from anomalib_inp.service.settings import MEGABYTE, TOKEN, Settings


def serve(
    model: Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str = "CPU",
    precision: str | None = "f32",
    category: str | None = None,
    workers: int = 1,
    threads: int | None = None,
    queue: int = 64,
    timeout: float = 60.0,
    max_upload: int = 64,
    max_pixels: int = 50_000_000,
    token: str | None = None,
    feedback: Path = Path("feedback"),
    station: bool = True,
) -> None:
    """Serve an exported model: images in, records out, and a station in the browser at /.

    /docs describes all requests. SIGTERM and Ctrl-C end it after what is running.

    Args:
        model: The .xml of an OpenVINO model, or an .onnx file; or a checkpoint (.ckpt), which needs PyTorch, and whose
            prototypes the station shows.
        host: Address to listen at; 0.0.0.0 for all of this computer's.
        port: Port to listen at.
        device: OpenVINO device, such as CPU, GPU or NPU.
        precision: OpenVINO's inference precision; null leaves it to the device, which may compute in bfloat16.
        category: Of a model of several categories: the one whose thresholds hold; by default the common ones.
        workers: Processes; the station needs a single one.
        threads: Images that a process works on at a time; by default the number of cores.
        queue: Images that may wait or be worked on; of more, requests are refused with 429.
        timeout: Seconds that a request may take, its upload included.
        max_upload: Megabytes of a request.
        max_pixels: Pixels of an image.
        token: What changes need, of thresholds and of the mask, and feedback; better in the environment, as
            ANOMALIB_INP_TOKEN. Without one, they are made on this computer alone.
        feedback: Folder for the images that somebody has marked.
        station: Whether the station is at /.
    """
    import uvicorn

    from anomalib_inp.runtime.metadata import read_metadata
    from anomalib_inp.service.inspector import CHECKPOINT
    from anomalib_inp.service.limits import LOCAL

    if model.suffix != CHECKPOINT:  # what is wrong is said now, not by a worker
        metadata = read_metadata(model)
        if category is not None:
            metadata.of_category(category)
    given = {"threads": threads, "queue": queue, "timeout": timeout, "max_upload": max_upload, "max_pixels": max_pixels}
    for name, value in {**given, "workers": workers}.items():
        if value is not None and not value > 0:
            sys.exit(f"anomalib-inp: --{name} must be a positive number, got {value}.")
    _check_address(host, port)
    if station and workers > 1:
        print(f"No station: it needs a single process, and there are {workers}.")
        station = False
    settings = Settings(
        str(model.resolve()),
        device,
        precision,
        category,
        threads or Settings.threads,
        queue,
        timeout,
        max_upload * MEGABYTE,
        max_pixels,
        token or os.environ.get(TOKEN, ""),
        str(feedback),
        station,
    )
    if host not in LOCAL and not settings.token:
        print("Without --token, thresholds, mask and feedback are changed on this computer alone.")
    settings.to_environment()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn calls it when what was running is done
    with tempfile.TemporaryDirectory() as counts:
        if workers > 1:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = counts  # before anything counts
        print(
            f"{'Station' if station else 'Service'}: http://{f'[{host}]' if ':' in host else host}:{port}", flush=True
        )
        uvicorn.run(
            "anomalib_inp.service.app:create_app",
            factory=True,
            host=host,
            port=port,
            workers=workers,
            log_level="warning",
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=max(1, round(timeout)),
        )


def _check_address(host: str, port: int) -> None:
    """Refuse an address that cannot be listened at, before the model is loaded."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        sys.exit(f"anomalib-inp: {host}:{port} cannot be listened at: {reason}. Choose another --port or --host.")
