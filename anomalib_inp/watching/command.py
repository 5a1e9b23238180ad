# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The command ``anomalib-inp watch``."""

import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anomalib_inp.results.records import Record

logger = logging.getLogger(__name__)
LOCK = ".watch.lock"
LAST = 30
"""Seconds that receivers are told what is left for, when the command ends."""


def watch(
    folder: Path,
    model: Path,
    output: Path = Path("watched"),
    move: Path | None = None,
    webhook: str | None = None,
    mqtt: str | None = None,
    pictures: bool = True,
    device: str = "CPU",
    precision: str | None = "f32",
    category: str | None = None,
    settle: float = 0.5,
    patience: float = 10.0,
    polling: bool = False,
) -> None:
    """Predict the images of a folder as they come, each once, until Ctrl-C or SIGTERM.

    predictions.jsonl is the journal: after a kill, the command goes on where it was. A half-written image waits; one
    that stays unreadable gets a record that says so.

    Args:
        folder: The folder; images below it in any depth.
        model: The .xml of an OpenVINO model, or an .onnx file.
        output: Folder for predictions.jsonl, scores.csv, heat maps and pictures; not below the folder.
        move: Folder that images are moved into, by verdict: normal, anomalous, error.
        webhook: Address that each record is posted to, as JSON.
        mqtt: Broker and topic that each record is published to, such as mqtt://user:password@host:1883/line7; mqtts
            with TLS.
        pictures: Whether pictures are drawn.
        device: OpenVINO device, such as CPU, GPU or NPU.
        precision: OpenVINO's inference precision; null leaves it to the device, which may compute in bfloat16.
        category: Of a model of several categories: the one whose thresholds hold; by default the common ones.
        settle: Seconds that a file stays as it is before it counts as written completely.
        patience: Seconds that a file which cannot be read stays as it is before that is said of it.
        polling: Look for changes again and again, for network drives that tell of none.
    """
    from filelock import FileLock, Timeout

    from anomalib_inp.runtime.model import ExportedModel
    from anomalib_inp.watching.outbox import Outbox
    from anomalib_inp.watching.receivers import MqttReceiver
    from anomalib_inp.watching.receivers import webhook as post_to
    from anomalib_inp.watching.watcher import Watcher, check_places

    if not folder.is_dir():
        sys.exit(f"anomalib-inp: there is no folder {folder}.")
    folder = folder.absolute()
    if min(settle, patience) < 0:
        sys.exit(f"anomalib-inp: --settle and --patience are seconds, got {settle} and {patience}.")
    check_places(folder, output, move)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    posting = None if webhook is None else post_to(webhook)
    exported = ExportedModel(model, device, precision, "throughput", category=category)
    output.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        sys.exit(f"anomalib-inp: another watch writes to {output}; choose another --output.")
    threads = max(2, os.cpu_count() or 1)
    watcher = Watcher(exported, folder, output, settle, patience, pictures, move, threads)
    broker = None if mqtt is None else MqttReceiver(mqtt)
    outboxes = [
        Outbox(watcher.journal, name, send)
        for name, send in (("webhook", posting), ("mqtt", broker and broker.send))
        if send
    ]
    ending = Event()
    for ended in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ended, lambda *_: ending.set())
    for outbox in outboxes:
        outbox.start(from_now=True)
    watcher.finish_moves()
    print(f"Watching {folder}; {len(watcher.arrivals.done)} images are done. Ctrl-C ends it.", flush=True)
    try:
        watcher.run(_changes_of(folder, ending, polling), ending, _say)
    finally:
        ending.set()
        left = {outbox.name: outbox.end(LAST) for outbox in outboxes}
        if broker is not None:
            broker.close()
        lock.release()
        for name, size in left.items():
            if size:
                print(f"{name} has not been told everything; it will be when this is started again.")


def _changes_of(folder: Path, ending: Event, polling: bool) -> Callable[[], set[Path]]:
    """Collect what happens in a folder, in a thread beside."""
    from watchfiles import watch as files_of

    changed: SimpleQueue[Path] = SimpleQueue()
    how: dict[str, Any] = {"stop_event": ending, "step": 50, "debounce": 200, "force_polling": polling or None}

    def collect() -> None:
        said = False
        while not ending.is_set():
            try:
                for changes in files_of(folder, **how):
                    for _, path in changes:
                        changed.put(Path(path))
            except Exception as error:  # of a name that is no text, for one; the whole folder is looked at anyway
                if not said:
                    logger.warning(
                        "What happens in %s is not told: %s. It is looked at again and again.", folder, error
                    )
                said = True
                ending.wait(1)

    Thread(target=collect, name="changes", daemon=True).start()

    def take() -> set[Path]:
        paths = set()
        while True:
            try:
                paths.add(changed.get_nowait())
            except Empty:
                return paths

    return take


def _say(record: "Record") -> None:
    said = record["error"] or f"{record['verdict'] or 'no verdict'} {record['score']:.3f}"
    print(f"{record['path']}: {said}", flush=True)
