# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Which images of a folder are there, complete, and not yet done."""

import os
import stat
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from anomalib_inp.files import image_files, is_image_name


class Arrival(NamedTuple):
    """A file as it was looked at.

    Attributes:
        state: What changes when it is written to.
        since: When it was first seen so, by a clock that only goes forward.
        written: When it was last written or put there, by the computer's clock.
    """

    state: tuple[int, int, int]
    since: float
    written: float


class Arrivals:
    """Keeps account of the images of a folder.

    Args:
        folder: The folder; images below it in any depth.
        done: When each image that is done was looked at, by its name: later files of that name are other images.
        settle: Seconds that a file stays as it is before it counts as written completely.
    """

    def __init__(self, folder: Path, done: dict[str, float], settle: float) -> None:
        self.folder = folder
        self.done = done
        self.settle = settle
        self.waiting: dict[Path, Arrival] = {}

    def scan(self) -> None:
        """Look at the whole folder."""
        self.notice(image_files(self.folder))

    def notice(self, paths: Iterable[Path]) -> None:
        """Look at files that are new, or were changed, or are gone."""
        for path in paths:
            if not path.is_relative_to(self.folder) or not is_image_name(path.name):
                continue
            if any(part.startswith(".") for part in path.relative_to(self.folder).parts):
                continue
            if (arrival := self._look(path)) is None:
                self.waiting.pop(path, None)
            elif path not in self.waiting and not self._is_done(path, arrival):
                self.waiting[path] = arrival

    def ready(self) -> list[Path]:
        """List the files that have not changed for long enough, in the order in which they were written."""
        complete = []
        for path, before in list(self.waiting.items()):
            now = self._look(path)
            if now is None:
                del self.waiting[path]
            elif now.state != before.state:
                self.waiting[path] = now
            elif now.since - before.since >= self.settle:
                complete.append((before.written, path))
        return [path for _, path in sorted(complete)]

    def unchanged(self, path: Path) -> float:
        """Seconds that a file has stayed as it is."""
        arrival = self.waiting.get(path)
        return 0.0 if arrival is None else time.monotonic() - arrival.since

    def finish(self, path: Path, looked: float) -> None:
        """Note that an image is done, as it was at this time."""
        self.waiting.pop(path, None)
        self.done[self.name(path)] = looked
        self.notice([path])  # what was written meanwhile is another one

    def name(self, path: Path) -> str:
        """Name an image by its path below the folder."""
        return path.relative_to(self.folder).as_posix()

    def _is_done(self, path: Path, arrival: Arrival) -> bool:
        # What was looked at had not changed for a while; half of that allows for clocks that tick coarsely.
        looked = self.done.get(self.name(path))
        return looked is not None and arrival.written <= looked - self.settle / 2

    @staticmethod
    def _look(path: Path) -> Arrival | None:
        try:
            found = os.stat(path)  # noqa: PTH116 - called for every file again and again
        except OSError:
            return None
        if not stat.S_ISREG(found.st_mode):  # a folder may be called as an image is, and a pipe be never at its end
            return None
        written = max(found.st_mtime, found.st_ctime)  # a copy may keep the time of its content
        return Arrival((found.st_size, found.st_mtime_ns, found.st_ino), time.monotonic(), written)
