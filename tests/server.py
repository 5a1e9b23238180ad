# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""A service in a process of its own, on a free port of this computer."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


class Server:
    """A running service."""

    def __init__(self, process: subprocess.Popen, port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.log = log
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, timeout=60)

    def stop(self) -> int:
        """Ask it to end, and wait; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextmanager
def serving(model: Path, folder: Path, *arguments: str) -> Iterator[Server]:
    """Serve a model; what the service writes goes into a folder."""
    port, log = free_port(), folder / "serve.log"
    command = [sys.executable, "-m", "anomalib_inp.cli", "serve", str(model), "--port", str(port), *arguments]
    with log.open("w") as written:
        process = subprocess.Popen(command, cwd=folder, stdout=written, stderr=subprocess.STDOUT)
    server = Server(process, port, log)
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()
            try:
                if server.client.get("/ready").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        else:
            raise AssertionError(log.read_text())
        yield server
    finally:
        server.client.close()
        process.kill()
        process.wait()
