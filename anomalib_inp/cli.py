# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The command ``anomalib-inp``: what anomalib's own command has no place for."""

import json
import os
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

from anomalib_inp import __version__, front
from anomalib_inp.commands import INTERRUPTED, TERMINATED
from anomalib_inp.commands.missing import what_is_missing
from anomalib_inp.errors import TRACEBACK

COMMANDS = {
    "benchmark": "anomalib_inp.benchmarks.command:benchmark",
    "benchmark-export": "anomalib_inp.benchmarks.exports:benchmark_export",
    "sample-data": "anomalib_inp.commands.written:sample_data",
    "compare": "anomalib_inp.commands.prediction:compare",
    "configs": "anomalib_inp.commands.written:configs",
    "convert": "anomalib_inp.commands.written:convert",
    "explain": "anomalib_inp.commands.mistakes:explain",
    "feedback": "anomalib_inp.commands.mistakes:feedback",
    "inspect": "anomalib_inp.commands.model_settings:inspect",
    "learn": "anomalib_inp.commands.mistakes:learn",
    "map": "anomalib_inp.commands.model_settings:choose_map",
    "predict": "anomalib_inp.commands.prediction:predict",
    "report": "anomalib_inp.commands.prediction:report",
    "retrain": "anomalib_inp.commands.mistakes:retrain",
    "screen": "anomalib_inp.commands.prediction:screen",
    "serve": "anomalib_inp.service.command:serve",
    "threshold": "anomalib_inp.commands.model_settings:threshold",
    "watch": "anomalib_inp.watching.command:watch",
}
"""Where each command is: a function with its signature and its help, in a module that imports no PyTorch by itself."""


DESCRIPTION = f"""What anomalib's own command has no place for; and a front of it: {", ".join(front.FORWARDED)} take the
same arguments as there, say in one message what is wrong, and print a line for an epoch."""
LISTS = {"learn": ("--images", "--exports"), "feedback": ("--false_alarms", "--missed", "--drop")}
"""Options of commands that take several files; the first is meant where none is named."""
ALONE = {("predict", "--ray"): "local"}
"""What an option of a command means that stands alone."""


def main() -> None:
    """Run the command line."""
    from jsonargparse import auto_cli

    warnings.simplefilter("ignore", FutureWarning)  # of libraries among themselves, which nobody here can act on
    try:
        if set(sys.argv[1:2]) & set(front.FORWARDED):
            front.run(sys.argv[1:])
        else:
            sys.argv[1:] = with_lists(with_values(sys.argv[1:]))
            commands: Any = {name: find_command(name) for name in COMMANDS}
            auto_cli(commands, prog="anomalib-inp", description=DESCRIPTION, version=__version__)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except SystemExit as ended:
        if type(ended).__name__ == "SIGTERMException":  # Lightning's, which would end with 0 as if all were done
            print("anomalib-inp: ended by SIGTERM; what was at work is not finished.", file=sys.stderr)
            sys.exit(TERMINATED)
        raise
    except ModuleNotFoundError as error:
        sys.exit(f"anomalib-inp: {what_is_missing(f'{sys.argv[1]} needs', error)}")
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get(TRACEBACK) == "1":
            raise
        sys.exit(f"anomalib-inp: {error}")


def with_values(arguments: list[str]) -> list[str]:
    """Give options that stand alone their value, which the parser asks for."""
    written = []
    for argument, after in zip(arguments, (*arguments[1:], "-"), strict=True):
        value = ALONE.get((arguments[0], argument))
        written += [argument, value] if value and after.startswith("-") else [argument]
    return written


def with_lists(arguments: list[str]) -> list[str]:
    """Write files after one another as lists, which the parser takes: ``learn CHECKPOINT IMAGE... --exports FILE...``.

    Args:
        arguments: Arguments of the command; those of other commands stay as they are.
    """
    if not arguments or arguments[0] not in LISTS or len(arguments) < 2:
        return arguments
    first, *others = LISTS[arguments[0]]
    written, name = arguments[:2], first
    values: dict[str, list[str]] = {option: [] for option in (first, *others)}
    for argument in arguments[2:]:
        option, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
        name = option or name
        if name not in values:
            written.append(argument)
            name = name if option and not equals else first  # an option that is no list has one value
        elif value or equals:
            values[name] += _listed(value)
    return written + [part for name, files in values.items() if files for part in (name, json.dumps(files))]


def _listed(value: str) -> list[str]:
    """Read a list, ``["a.png", "b.png"]``; all else is the name of a file, such as ``[1].png``."""
    try:
        return [str(file) for file in json.loads(value)] if value.startswith("[") else [value]
    except ValueError:
        return [value]


def find_command(name: str) -> Callable[..., None]:
    """Import the function of a command."""
    module, _, function = COMMANDS[name].partition(":")
    return getattr(import_module(module), function)


if __name__ == "__main__":
    main()
