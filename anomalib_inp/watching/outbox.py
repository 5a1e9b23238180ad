# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Tells others what was said of images: records go out in order, and none is forgotten by a kill."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from anomalib_inp.files import replacing

logger = logging.getLogger(__name__)
PAUSES = (0.5, 1, 2, 5, 10, 30)
"""Seconds between attempts, the longer the more of them have failed."""
POLL = 0.2


class Outbox:
    """Sends the lines of a journal, each until it has arrived, in a thread of its own.

    How far it has come stands in a file beside the journal. A kill between sending and noting sends a line once more.

    Args:
        journal: The journal, to which lines are appended.
        name: What the receiver is called, in messages and in the name of that file.
        send: Sends a line, without its end; whatever it raises, it is called again later.
    """

    def __init__(self, journal: Path, name: str, send: Callable[[bytes], None]) -> None:
        self.journal = journal
        self.name = name
        self.send = send
        self._place = journal.with_name(f".{name}.sent")
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"outbox {name}", daemon=True)

    @property
    def sent(self) -> int:
        """Bytes of the journal that have arrived."""
        try:
            return int(self._place.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return 0

    def start(self, from_now: bool) -> None:
        """Begin to send.

        Args:
            from_now: Whether a receiver that has not been told anything yet is not told what was before.
        """
        if from_now and not self._place.exists():
            self._note(self.journal.stat().st_size if self.journal.exists() else 0)
        self._thread.start()

    def end(self, seconds: float) -> int:
        """Send what is left, for so long at most; bytes that are left."""
        self._ending.set()
        self._thread.join(seconds)
        return max(0, self.journal.stat().st_size - self.sent) if self.journal.exists() else 0

    def _run(self) -> None:
        place, failed = self.sent, 0
        while True:
            line = self._next(place)
            if line is None:
                if self._ending.is_set():
                    return
                self._ending.wait(POLL)
                continue
            try:
                self.send(line.rstrip(b"\n"))
            except Exception as error:  # whatever a network does
                pause = PAUSES[min(failed, len(PAUSES) - 1)]
                if not failed:
                    logger.warning("%s is not reached: %s. It is tried again.", self.name, error)
                failed += 1
                if self._ending.wait(pause) and failed > 1:
                    return
                continue
            if failed:
                logger.warning("%s is reached again.", self.name)
            place, failed = place + len(line), 0
            self._note(place)

    def _next(self, place: int) -> bytes | None:
        """Read the next whole line."""
        if not self.journal.exists():
            return None
        with self.journal.open("rb") as file:
            file.seek(place)
            line = file.readline()
        return line if line.endswith(b"\n") else None

    def _note(self, place: int) -> None:
        with replacing(self._place) as temporary:
            temporary.write_text(str(place), encoding="ascii")
