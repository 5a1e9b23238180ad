# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Who imports whom: data flows one way, without circles, and the runtime needs no PyTorch."""

import ast
import inspect
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import anomalib_inp

PACKAGE = Path(anomalib_inp.__file__).parent

ALLOWED: dict[str, set[str]] = {
    "files": set(),
    "results": {"files", "frame", "images"},
    "frame": set(),
    "tiles": {"frame"},
    "maps": set(),
    "images": set(),
    "errors": set(),
    "outputs": set(),
    "distances": set(),
    "preprocessing": {"frame", "images", "outputs"},
    "encoder": {"outputs"},
    "networks": {"encoder", "outputs", "distances"},
    "losses": {"outputs", "distances"},
    "scoring": {"outputs", "distances", "maps", "tiles"},
    "data": {"errors", "files", "frame", "images", "preprocessing", "results", "tiles"},
    "evaluation": {"data"},
    "thresholds": {"data", "evaluation", "files", "images", "results"},
    "training": {"data", "encoder", "files", "frame", "images", "preprocessing", "outputs", "scoring", "tiles"},
    "pictures": {"data", "frame", "images", "preprocessing", "scoring", "training"},
    "checkpoints": {"encoder", "networks", "files", "results", "thresholds"},
    "runtime": {"files", "frame", "images", "maps", "thresholds", "pictures", "results", "tiles"},
    "reports": {"files", "images", "pictures", "results"},
    "watching": {"files", "images", "results", "runtime", "thresholds"},
    "service": {"images", "pictures", "results", "runtime", "thresholds"},
    "bulk": {"files", "images", "results", "runtime"},
    "exporting": {"runtime", "scoring", "files", "preprocessing", "thresholds", "evaluation"},
    "models": {
        *("encoder", "networks", "losses", "scoring", "data", "evaluation", "thresholds", "training", "pictures"),
        *("checkpoints", "exporting", "runtime", "preprocessing", "outputs", "files", "frame", "images", "errors"),
        "results",
        "tiles",
    },
    "benchmarks": {
        *("models", "data", "evaluation", "pictures", "checkpoints", "exporting", "runtime", "files"),
    },
}
"""Which rooms a room imports, besides itself. Command line, plugin and the package's own names may import all."""

LIGHT = (
    *(
        "files",
        "frame",
        "images",
        "errors",
        "tiles",
        "thresholds.scale",
        "pictures.strip",
        "pictures.gallery",
        "results",
    ),
    *("runtime", "reports", "service", "watching", "bulk", "pictures.histogram"),
)
"""What runs on a computer without PyTorch."""
HEAVY = {
    *("torch", "torchvision", "torchmetrics", "anomalib", "lightning", "timm", "kornia", "safetensors", "nncf"),
    *("pandas", "matplotlib", "scipy", "skimage", "sklearn"),
}


def modules() -> dict[str, ast.Module]:
    """Every module of the package by its name below ``anomalib_inp``, which is itself the empty name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


MODULES = modules()
HOMES = {
    name: inspect.getmodule(getattr(anomalib_inp, name)).__name__.removeprefix("anomalib_inp.")
    for name in anomalib_inp.__all__
}
"""Where the public names of the package live, which it imports when they are asked for."""


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """All that is run: not what only a type checker sees."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            for other in child.orelse:
                yield from statements(other)
            continue
        yield child
        yield from statements(child)


def imports(name: str) -> Iterator[str]:
    """Full names of what a module imports, wherever in it."""
    for node in statements(MODULES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def ours(name: str) -> set[str]:
    """Modules of the package that a module imports."""
    found = set()
    for full in imports(name):
        parts = full.split(".")
        if parts[0] == "anomalib_inp":
            below = [".".join(parts[1:end]) for end in range(len(parts), 0, -1)]
            home = HOMES.get(parts[-1]) if len(parts) == len(("package", "name")) else None  # a lazy public name
            found.add(home or next(module for module in below if module in MODULES))
    return found - {name}


def room(name: str) -> str:
    return name.partition(".")[0]


def test_every_room_is_known() -> None:
    everything_above = {"", "cli", "commands", "front", "plugin"}
    assert {room(name) for name in MODULES} == ALLOWED.keys() | everything_above


@pytest.mark.parametrize("name", sorted(name for name in MODULES if room(name) in ALLOWED))
def test_imports_go_one_way(name: str) -> None:
    above = {other for other in ours(name) if room(other) not in {room(name), *ALLOWED[room(name)]}}
    # the package's own name holds the version, and imports nothing before it is asked to
    assert above - {""} == set()


def test_a_room_imports_all_that_it_may() -> None:
    """What is allowed and not needed is a door that somebody walks through one day."""
    used: dict[str, set[str]] = {name: set() for name in ALLOWED}
    for name in MODULES:
        if room(name) in ALLOWED:
            used[room(name)] |= {room(other) for other in ours(name)} - {room(name), ""}
    assert used == ALLOWED


def test_the_page_says_the_same() -> None:
    """A row of the table for each room, those that it imports above it."""
    page = (PACKAGE.parent / "docs/architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \| .*? \|(.*)\|$", page, re.MULTILINE)
    said: dict[str, set[str]] = {}
    for names, imported in rows:
        above = set(re.findall(r"`(\w+)`", imported))
        assert above <= said.keys(), names
        said |= dict.fromkeys(re.findall(r"`(\w+)/?`", names), above)
    assert {name: said[name] for name in ALLOWED} == ALLOWED


def test_there_is_no_circle() -> None:
    graph = {name: ours(name) - {""} for name in MODULES if name}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_rooms_make_no_circle_either() -> None:
    TopologicalSorter(ALLOWED).prepare()


@pytest.mark.parametrize("start", sorted(name for name in MODULES if name.startswith(LIGHT)))
def test_the_runtime_needs_no_pytorch(start: str) -> None:
    reached, waiting = set(), {start}
    while waiting:
        name = waiting.pop()
        reached.add(name)
        waiting |= ours(name) - reached - {""}  # of the package itself, its version
    refused = (
        HEAVY - {"scipy"} if start.startswith(("service", "watching")) else HEAVY
    )  # scipy is in the extra that serves
    heavy = {f"{name}: {full}" for name in reached for full in imports(name) if full.partition(".")[0] in refused}
    assert heavy == set()


def test_text_files_have_an_encoding() -> None:
    """Without one, a file that one computer writes cannot be read by another of another language."""
    faults = []
    for name, tree in MODULES.items():
        for call in ast.walk(tree):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                continue
            modes = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
            binary = call.func.attr == "open" and (not modes or "b" in str(modes[0]))  # of an image, without a mode
            given = {keyword.arg for keyword in call.keywords}  # None for a mapping that is unpacked
            if call.func.attr in {"open", "read_text", "write_text"} and not binary and not given & {"encoding", None}:
                faults.append(f"{name}:{call.lineno}")
    assert not faults
