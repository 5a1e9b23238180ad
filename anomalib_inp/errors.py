# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Errors of ours end a command with their message alone: a traceback says nothing to whoever can mend the cause."""

import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

TRACEBACK = "ANOMALIB_INP_TRACEBACK"
"""Environment variable that, set to 1, asks for the traceback."""
PACKAGE = Path(__file__).parent


def own_message(error: BaseException) -> str | None:
    """Find the message of ours in an error, in what led to it or in what it quotes; ``None`` if there is none."""
    for cause in _causes(error):
        frames = traceback.extract_tb(cause.__traceback__)
        meant = isinstance(cause, ValueError | OSError | RuntimeError | ImportError)
        if meant and frames and Path(frames[-1].filename).is_relative_to(PACKAGE):
            return str(cause)
    return _of_the_parser(str(error))


def end_with_messages() -> None:
    """Let errors of ours end anomalib's command with their message; all others go on to whatever shows them.

    In other programs nothing is changed. anomalib's command has had rich show tracebacks by the time that it makes a
    model or a data module, so these are the ones who ask for this.
    """
    before = sys.excepthook
    if Path(sys.argv[0]).stem != "anomalib" or before.__module__ == __name__:
        return

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        message = None if os.environ.get(TRACEBACK) == "1" else own_message(error)
        if message is None:
            before(kind, error, trace)
        else:
            print(f"anomalib-inp: {message}", file=sys.stderr)

    sys.excepthook = show


def _of_the_parser(message: str) -> str | None:
    """Find what a class said when jsonargparse made it: of an optional one, it reports all that it tried."""
    tried, _, _ = message.partition("\nGiven value type:")
    _, found, errors = tried.partition("Union subtypes")
    said = [entry for entry in errors.split("\n  - ")[1:] if not entry.startswith("Expected a <class")]
    return " ".join(said[-1].split()) if found and said else None


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
