# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Predicts the images of a folder as they come; what was said of each is the journal of what is done."""

import logging
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from threading import Event
from typing import NamedTuple

from anomalib_inp.images import read_pixels
from anomalib_inp.results import records
from anomalib_inp.results.image_statistics import ImageStatistics, measure_image
from anomalib_inp.results.records import Record, read_records
from anomalib_inp.results.writer import HEAT_MAPS, ResultFiles, mend_files, picture_path, write_heat_map
from anomalib_inp.runtime.folder import save_strip
from anomalib_inp.runtime.model import ExportedModel
from anomalib_inp.runtime.predict import fault_of, interpret, record_of
from anomalib_inp.thresholds.drift import DriftMonitor
from anomalib_inp.watching.arrivals import Arrival, Arrivals

logger = logging.getLogger(__name__)
TICK = 0.1
"""Seconds between two looks at what is waiting."""
RESCAN = 1.0
"""Seconds between two looks at the whole folder, at least: disks do not tell all that happens on them, nor folders that
were just made."""
RESCAN_SHARE = 0.05
"""Share of the time that these looks may take."""
PICTURES = "pictures"
ERRORS, UNKNOWN = "error", "unknown"
"""Folders of images that could not be predicted, and that have no verdict, beside those of the verdicts."""


class Looked(NamedTuple):
    """What became of an image.

    Attributes:
        path: The file.
        arrival: The file as it was before it was looked at.
        began: When that was, by the computer's clock.
        record: What is said of it.
        statistics: What the photograph is like; ``None`` where it cannot be read.
    """

    path: Path
    arrival: Arrival
    began: float
    record: Record
    statistics: ImageStatistics | None

    @property
    def broken(self) -> bool:
        """Whether it cannot be read."""
        return self.statistics is None


def check_places(folder: Path, output: Path, move: Path | None) -> None:
    """Refuse places from which what is written would come back as images.

    Args:
        folder: The folder that is watched.
        output: Folder for the journal, heat maps and pictures.
        move: Folder that images are moved into; ``None`` leaves them.

    Raises:
        ValueError: What is written, or moved, would lie below the folder; or a place is a file.
    """
    roots, written = [output], [output / HEAT_MAPS, output / PICTURES]
    if move is not None:
        roots.append(move)
        written += [move / verdict for verdict in ("normal", "anomalous", ERRORS, UNKNOWN)]
    real = folder.resolve()
    inside = [place for place in (*roots, *written) if place.resolve().is_relative_to(real)]
    around = [place for place in written if real.is_relative_to(place.resolve())]
    for place in (*inside, *around):
        msg = f"What is written to {place} would be images of {folder}: choose a place outside of it."
        raise ValueError(msg)
    for place in (*roots, *written):
        if place.exists() and not place.is_dir():
            msg = f"{place} is to be a folder, but it is a file."
            raise ValueError(msg)


class Watcher:
    """Predicts the images of a folder as they come, each once.

    Args:
        exported: The model.
        folder: The folder.
        output: Folder for the journal, heat maps and pictures (:func:`check_places`).
        settle: Seconds that a file stays as it is before it counts as written completely.
        patience: Seconds that a file which cannot be read stays as it is before that is said of it.
        pictures: Whether pictures are drawn.
        move: Folder that images are moved into, by verdict; ``None`` leaves them.
        threads: Images that are worked on at a time.
    """

    def __init__(
        self,
        exported: ExportedModel,
        folder: Path,
        output: Path,
        settle: float = 0.5,
        patience: float = 10.0,
        pictures: bool = False,
        move: Path | None = None,
        threads: int = 2,
    ) -> None:
        self.exported = exported
        self.digest = exported.digest
        self.output = output
        self.patience = patience
        self.pictures = pictures
        self.move = move
        self.threads = threads
        self.journal = output / records.FILE
        mend_files(output)
        # The last record of a name is the one that counts.
        done = {record["path"]: datetime.fromisoformat(record["time"]).timestamp() for record in self._said()}
        self.arrivals = Arrivals(folder.absolute(), done, settle)
        self.monitor = DriftMonitor(exported.metadata.reference)
        self._broken: dict[Path, Arrival] = {}

    def finish_moves(self) -> None:
        """Move what a kill has left where it was, after it was said what it is."""
        if self.move is None:
            return
        folder = self.arrivals.folder
        left = {record["path"]: record for record in self._said() if (folder / record["path"]).is_file()}
        for name, record in left.items():
            self.arrivals.notice([folder / name])
            if folder / name not in self.arrivals.waiting:
                self._move(folder / name, record)

    def run(self, changes: Callable[[], set[Path]], ending: Event, told: Callable[[Record], None]) -> None:
        """Predict until it is told to end; what is at work then is finished.

        Args:
            changes: Gives the files that have changed since it was called last, at once.
            ending: Set when it is to end.
            told: Called with each record that is written.
        """
        next_scan, running = 0.0, deque[Future[Looked]]()
        taken: set[Path] = set()
        with ResultFiles(self.output, append=self.journal.exists()) as files, ThreadPoolExecutor(self.threads) as pool:
            while not ending.is_set() or running:
                if (begin := time.monotonic()) >= next_scan:
                    self.arrivals.scan()
                    next_scan = time.monotonic() + max(RESCAN, (time.monotonic() - begin) / RESCAN_SHARE)
                self.arrivals.notice(changes())
                ready = [] if ending.is_set() else self.arrivals.ready()
                for path in ready:
                    if path not in taken and len(running) < 2 * self.threads and not self._waits(path):
                        taken.add(path)
                        running.append(pool.submit(self._look, path, self.arrivals.waiting[path]))
                if not running:
                    ending.wait(TICK)
                while running and (running[0].done() or len(running) >= 2 * self.threads or ending.is_set()):
                    looked = running.popleft().result()
                    taken.discard(looked.path)
                    self._conclude(looked, files, told)
                if running:
                    time.sleep(TICK / 20)

    def _conclude(self, looked: Looked, files: ResultFiles, told: Callable[[Record], None]) -> None:
        path = looked.path
        if looked.broken and not path.exists():
            self.arrivals.waiting.pop(path, None)  # taken away before it was read
            return
        if looked.broken and self.arrivals.unchanged(path) < self.patience:
            self._broken[path] = looked.arrival  # it may be on its way still
            return
        self._broken.pop(path, None)
        files.write(looked.record)
        self.arrivals.finish(path, looked.began)
        if self.move is not None and path not in self.arrivals.waiting:
            self._move(path, looked.record)
        told(looked.record)
        if looked.statistics is not None and looked.record["raw_score"] is not None:
            values = {"score": looked.record["raw_score"], **looked.statistics._asdict()}
            for sentence in self.monitor.add(values):
                logger.warning(sentence)

    def _waits(self, path: Path) -> bool:
        """Whether a file could not be read, and has not changed since, and may still be on its way."""
        before, now = self._broken.get(path), self.arrivals.waiting.get(path)
        return before is not None and before == now and self.arrivals.unchanged(path) < self.patience

    def _look(self, path: Path, arrival: Arrival) -> Looked:
        began, name, metadata = time.time(), self.arrivals.name(path), self.exported.metadata
        try:
            pixels = read_pixels(path)
            prediction = interpret(self.exported(pixels), metadata, (pixels.shape[1], pixels.shape[0]))
        except ValueError as error:
            return Looked(path, arrival, began, _at(began, fault_of(name, error, metadata, self.digest)), None)
        record = _at(began, record_of(name, prediction, metadata, self.digest))
        write_heat_map(self.output, name, prediction.shown_map)
        if self.pictures:
            save_strip(picture_path(self.output, PICTURES, name), pixels, prediction, metadata, name=name)
        return Looked(path, arrival, began, record, measure_image(pixels))

    def _move(self, path: Path, record: Record) -> None:
        verdict = ERRORS if record["error"] is not None else record["verdict"] or UNKNOWN
        target = Path(str(self.move)) / verdict / record["path"]
        target.parent.mkdir(parents=True, exist_ok=True)
        number = 0
        while target.exists():  # an image of that name was moved before
            number += 1
            target = target.with_name(f"{path.stem}-{number}{path.suffix}")
        if path.exists():
            shutil.move(path, target)

    def _said(self) -> Iterator[Record]:
        return read_records(self.journal) if self.journal.is_file() else iter(())


def _at(began: float, record: Record) -> Record:
    """Date a record by when its image was looked at, so that what is written later is another image."""
    return {**record, "time": datetime.fromtimestamp(began).astimezone().isoformat(timespec="milliseconds")}
