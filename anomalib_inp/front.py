# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""A front of anomalib's command: the same arguments, one message for an error, and no noise that nobody can act on."""

import logging
import os
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

from anomalib_inp.errors import PACKAGE, TRACEBACK, own_message

FORWARDED = ("train", "fit", "validate", "test", "export")
"""Commands of anomalib; its predict shares the name with ours, which runs exports."""
INTERRUPTED = 130


def run(arguments: list[str]) -> None:
    """Run anomalib's command in this process.

    Args:
        arguments: Its arguments, the command first. A number after ``--seed_everything`` is heeded, which anomalib by
            itself does not do.

    Raises:
        SystemExit: With a message for an error of ours or of the system.
    """
    with_what_is_worth_saying()
    from anomalib.cli.cli import AnomalibCLI
    from lightning import seed_everything

    if arguments[0] != "export" and not sys.stdout.isatty():
        for option in ("--trainer.enable_progress_bar", "--trainer.enable_model_summary"):
            arguments += [] if _value_of(option, arguments) else [option, "false"]
    seed = _value_of("--seed_everything", arguments)
    if seed is not None and seed.isdecimal():
        seed_everything(int(seed), workers=True, verbose=False)
    sys.argv = ["anomalib", *arguments]
    try:
        AnomalibCLI()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        message = own_message(error) or (f"{type(error).__name__}: {error}" if isinstance(error, OSError) else None)
        if message is None or os.environ.get(TRACEBACK) == "1":
            raise
        sys.exit(f"anomalib-inp: {message}")


def with_what_is_worth_saying() -> None:
    """Import anomalib, and let it, Lightning and others say no more than somebody can act on."""
    # First what must be there before anything is imported.
    warnings.showwarning = _show_warning
    for category in (FutureWarning, DeprecationWarning):
        warnings.simplefilter("ignore", category)
    import_module("anomalib.cli.cli")
    from lightning.fabric.utilities.warnings import PossibleUserWarning

    warnings.simplefilter("ignore", PossibleUserWarning)
    warnings.filterwarnings("ignore", "Total length of .* is zero")  # how many images there are is said before
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    names = [name for name in logging.root.manager.loggerDict if name.startswith("lightning")]
    for logger in (logging.root, *map(logging.getLogger, names)):
        for handler in logger.handlers:
            handler.addFilter(_is_worth_saying)


def _value_of(option: str, arguments: list[str]) -> str | None:
    """Find the value of an option, given after a space or an equals sign."""
    for argument, after in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        if name == option:
            return value if equals else after
    return None


def _is_worth_saying(record: logging.LogRecord) -> bool:
    """Whether a message is a warning, says where anomalib has exported to, or is one of ours by Lightning's loggers."""
    ours = Path(record.pathname).is_relative_to(PACKAGE)
    return ours or record.levelno >= logging.WARNING or record.getMessage().startswith("Exported")


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning without the line of code that it came from."""
    print(f"Warning: {message}", file=sys.stderr)
