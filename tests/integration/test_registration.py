# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The short name ``InpFormer``: who has it depends on the order of imports, so most checks run in fresh processes."""

import importlib.util
import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from anomalib_inp import plugin

SWITCHES = ("ANOMALIB_INP_REGISTER", "TORCH_DEVICE_BACKEND_AUTOLOAD")
OURS = "anomalib_inp.models.inp_former"
THEIRS = "anomalib.models.image.inp_former.lightning_model"

# What holds once anomalib has been imported, by whatever route.
CHECK_NAMES = f"""
import pickle, sys
import anomalib.models
from anomalib.models import AnomalibModule, get_model, list_models

names = [model.__name__ for model in AnomalibModule.__subclasses__()]
assert names.count("InpFormer") == names.count("BuiltinInpFormer") == 1, names
assert names.count("InpFormerPlusPlus") == 1, names
assert {{"inp_former", "inp_former_plus_plus", "builtin_inp_former"}} <= list_models(), list_models()
assert {{"InpFormer", "BuiltinInpFormer"}} <= list_models("pascal"), list_models("pascal")

import anomalib_inp
ours, theirs = anomalib_inp.InpFormer, anomalib.models.InpFormer
assert (ours.__module__, ours.__qualname__) == ("{OURS}", "InpFormer"), ours
assert (theirs.__module__, theirs.__qualname__) == ("{THEIRS}", "BuiltinInpFormer"), theirs
for model in (ours, theirs):
    assert AnomalibModule.__subclasses__().count(model) == 1, model
    assert pickle.loads(pickle.dumps(model)) is model, model
for name in ("anomalib.models", "anomalib.models.image", "anomalib.models.image.inp_former", "{THEIRS}"):
    assert sys.modules[name].InpFormer is sys.modules[name].BuiltinInpFormer is theirs, name

class Called(Exception):
    pass

def call(self, *_, **__):
    raise Called(type(self))

plus_plus = anomalib_inp.InpFormerPlusPlus
ours.__init__ = theirs.__init__ = plus_plus.__init__ = call  # Building an encoder would need its weights.
called = [("inp_former", ours), ("InpFormer", ours), ("builtin_inp_former", theirs)]
for name, model in [*called, ("inp_former_plus_plus", plus_plus), ("InpFormerPlusPlus", plus_plus)]:
    try:
        get_model(name)
        raise AssertionError(name)
    except Called as called:
        assert called.args == (model,), name

image = sys.modules["anomalib.models.image"]
assert type(image.__loader__) is type(anomalib.models.__loader__), image.__loader__
assert image.__spec__.loader is image.__loader__, image.__spec__
assert not [finder for finder in sys.meta_path if type(finder).__module__ == "anomalib_inp.plugin"], sys.meta_path
"""

# Runs the installed command as often as needed in one process: importing anomalib takes longer than the command does.
COMMAND = f"""
import contextlib, inspect, io, runpy, sys
import yaml

def command(*arguments):
    sys.argv = ["anomalib", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            runpy.run_path({str(Path(sysconfig.get_path("scripts"), "anomalib"))!r}, run_name="__main__")
        except SystemExit as ended:
            assert not ended.code, (arguments, ended.code)
    return printed.getvalue()

def model_of(*arguments):
    return yaml.safe_load(command("train", *arguments, "--print_config"))["model"]
"""


@cache
def run(code: str, switch: str = "") -> str:
    """Run code in a fresh process, optionally with one of the switches set to 0, and return what it printed."""
    environment = {name: value for name, value in os.environ.items() if name not in SWITCHES}
    environment |= {"COLUMNS": "200"} | ({switch: "0"} if switch else {})
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def run_imports(first: str) -> str:
    """Import something first, check the names, and return the modules of ours that this has imported."""
    return run(f"{first}\n{CHECK_NAMES}\nprint(*(name for name in sys.modules if name.startswith('anomalib_inp.')))")


@pytest.mark.parametrize(
    "first",
    [
        "import torch",
        "import anomalib.models",
        "import anomalib, anomalib_inp",  # Neither imports torch.
        "from anomalib_inp import InpFormer",
        "import anomalib_inp.models.inp_former_plus_plus",
        "import anomalib.models.image.inp_former",
        "import anomalib.engine",
    ],
)
def test_the_name_is_ours_in_every_order_of_imports(first: str) -> None:
    run_imports(first)


def test_modules_of_the_model_do_not_import_anomalib_models() -> None:
    """If one did, importing it first would import our model, which needs that module: a cycle."""
    modules = run_imports("from anomalib_inp import InpFormer").split()
    others = [name for name in modules if not name.startswith("anomalib_inp.models")]
    assert len(others) > 10
    run(
        "import importlib, sys\n"
        f"for name in {others}:\n"
        "    importlib.import_module(name)\n"
        "    assert 'anomalib.models' not in sys.modules, name\n"
    )


def test_command_finds_our_model(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("model:\n  class_path: InpFormer\n  init_args:\n    num_prototypes: 4\n")
    run(f"""{COMMAND}
text = command("train", "--model.help", "InpFormer")
assert "Help for --model.help=anomalib_inp.InpFormer" in text, text
from anomalib_inp import InpFormer, InpFormerPlusPlus
def arguments(model):  # its own, and those of the classes that it passes the rest on to
    ours = [one for one in model.__mro__ if one.__module__.startswith("anomalib_inp.") and "__init__" in vars(one)]
    return {{name for one in ours for name in inspect.signature(one).parameters}} - {{"kwargs"}}
assert len(arguments(InpFormer)) > 20
for name in arguments(InpFormer):
    assert f"--model.{{name}} " in text, (name, text)
assert "Intrinsic normal prototypes per image. (type: int, default: 6)" in text, text
assert command("train", "--model.help", "anomalib_inp.InpFormer") == text

text = command("train", "--model.help", "InpFormerPlusPlus")
assert "Help for --model.help=anomalib_inp.InpFormerPlusPlus" in text, text
assert len(arguments(InpFormerPlusPlus)) > len(arguments(InpFormer))
for name in arguments(InpFormerPlusPlus):
    assert f"--model.{{name}} " in text, (name, text)
model = model_of("--model", "InpFormerPlusPlus", "--model.num_prototypes", "5", "--model.labelled_anomalies", "3")
assert model["init_args"]["num_prototypes"] == 5 and model["init_args"]["labelled_anomalies"] == 3, model

model = model_of("--model", "InpFormer", "--model.num_prototypes", "5")
assert model["class_path"] == "anomalib_inp.InpFormer", model
assert model["init_args"]["num_prototypes"] == 5, model
assert model_of("--model", "anomalib_inp.InpFormer", "--model.num_prototypes", "5") == model
assert model_of("--config", {str(config)!r}, "--model.num_prototypes", "5") == model
assert model_of("--config", {str(config)!r})["init_args"]["num_prototypes"] == 4

few = ("--data", "MultiCategory", "--data.source", "Visa", "--data.categories", "[candle, pcb1]", "--data.shots", "2")
data = yaml.safe_load(command("train", "--model", "InpFormer", *few, "--print_config"))["data"]
assert data["class_path"] == "anomalib_inp.MultiCategory", data
assert data["init_args"]["categories"] == ["candle", "pcb1"] and data["init_args"]["shots"] == 2, data
assert yaml.safe_load(command("train", *few[:2], "--print_config"))["data"]["init_args"]["categories"] == "all"

assert model_of("--model", "BuiltinInpFormer")["class_path"] == "anomalib.models.BuiltinInpFormer"
assert "inp_num" in model_of("--model", "anomalib.models.InpFormer")["init_args"]  # Only anomalib's has this argument.
""")


@pytest.mark.parametrize(
    ("switch", "imported"),
    [
        (
            "ANOMALIB_INP_REGISTER",
            {"anomalib_inp", "anomalib_inp.plugin", "anomalib_inp.models", "anomalib_inp.models.registry"},
        ),
        ("TORCH_DEVICE_BACKEND_AUTOLOAD", set()),
    ],
)
def test_switched_off_anomalib_is_as_it_was(switch: str, imported: set[str]) -> None:
    run(
        f"""{COMMAND}
import anomalib.models
assert {{name for name in sys.modules if name.split(".")[0] == "anomalib_inp"}} == {imported or "set()"}
names = [model.__name__ for model in anomalib.models.AnomalibModule.__subclasses__()]
assert names.count("InpFormer") == 1 and "BuiltinInpFormer" not in names, names
assert anomalib.models.InpFormer.__qualname__ == "InpFormer"
assert not hasattr(anomalib.models, "BuiltinInpFormer")

assert model_of("--model", "InpFormer")["class_path"] == "anomalib.models.InpFormer"
assert model_of("--model", "anomalib_inp.InpFormer")["class_path"] == "anomalib_inp.InpFormer"
""",
        switch,
    )


def test_when_ours_cannot_be_imported_anomalib_keeps_its_name_and_says_why() -> None:
    run(f"""
import sys, warnings
sys.modules["anomalib_inp.networks.inp_former.network"] = None  # Importing it raises ModuleNotFoundError.
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import anomalib.models
about = [str(warning.message) for warning in caught if warning.category is RuntimeWarning]
assert len(about) == 1 and about[0].startswith("`InpFormer` stays") and "anomalib_inp.network" in about[0], about
names = [model.__name__ for model in anomalib.models.AnomalibModule.__subclasses__()]
assert names.count("InpFormer") == 1 and "BuiltinInpFormer" not in names, names
assert anomalib.models.InpFormer.__qualname__ == "InpFormer"

try:
    from anomalib_inp import InpFormer
    raise AssertionError("imported")
except ModuleNotFoundError as error:
    assert "anomalib_inp.networks.inp_former.network" in str(error), error

del sys.modules["anomalib_inp.networks.inp_former.network"]
from anomalib_inp.plugin import register
register()
{CHECK_NAMES}""")


def fastest(code: str, before: str = "") -> float:
    """Milliseconds that code takes in a fresh process: the best of five."""
    timed = f"{before}\nimport time\nstart = time.perf_counter()\n{code}\nprint(1e3 * (time.perf_counter() - start))"
    return min(float(run.__wrapped__(timed)) for _ in range(5))


LIGHT = "import sys; assert not {'torch', 'anomalib', 'wrapt'} & set(sys.modules), sys.modules"


def test_registering_costs_import_torch_nothing() -> None:
    code = "import anomalib_inp.plugin\nanomalib_inp.plugin.register()"
    run(f"{code}\n{LIGHT}")
    # torch has imported typing long before it calls us. Milliseconds are other ones on every machine: Python's own
    # logging, which torch imports too, takes twice as long.
    assert fastest(code, before="import typing") < fastest("import logging", before="import typing")


def test_importing_the_package_costs_nothing() -> None:
    code = "import anomalib_inp"
    run(f"{code}\nassert dir(anomalib_inp) == sorted(anomalib_inp.__all__), dir(anomalib_inp)\n{LIGHT}")
    assert fastest(code) < 30


def test_unknown_attribute_of_the_package() -> None:
    import anomalib_inp

    with pytest.raises(AttributeError, match="module 'anomalib_inp' has no attribute 'InpFormers'"):
        _ = anomalib_inp.InpFormers


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package whose module ``awaited.image`` stands for anomalib's; ``calls`` in it says what happened when."""
    (tmp_path / "awaited").mkdir()
    (tmp_path / "awaited/__init__.py").write_text("")
    (tmp_path / "awaited/image.py").write_text("import sys\nsys.calls.append('imported')\n")
    monkeypatch.setattr(sys, "calls", [], raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    # Another test may have imported torch, and with it the real one.
    others = [finder for finder in sys.meta_path if not isinstance(finder, plugin._Watch)]
    monkeypatch.setattr(sys, "meta_path", others)
    monkeypatch.setattr(plugin, "_AWAITED", "awaited.image")
    monkeypatch.setattr(plugin, "_take_the_name", lambda: sys.calls.append("taken"))
    monkeypatch.delenv("ANOMALIB_INP_REGISTER", raising=False)
    yield tmp_path / "awaited"
    for name in ("awaited", "awaited.image"):
        sys.modules.pop(name, None)


class TestRegister:
    def finders(self) -> list[object]:
        return [finder for finder in sys.meta_path if isinstance(finder, plugin._Watch)]

    def test_takes_the_name_after_the_import_and_is_gone(self, package: Path) -> None:
        plugin.register()
        plugin.register()
        assert len(self.finders()) == 1
        module = importlib.import_module("awaited.image")
        assert sys.calls == ["imported", "taken"]
        assert not self.finders()
        assert module.__loader__ is module.__spec__.loader
        assert not isinstance(module.__loader__, plugin._Loader)

    def test_already_imported(self, package: Path) -> None:
        importlib.import_module("awaited.image")
        plugin.register()
        assert sys.calls == ["imported", "taken"]
        assert not self.finders()

    def test_looking_without_importing(self, package: Path) -> None:
        plugin.register()
        spec = importlib.util.find_spec("awaited.image")
        assert spec.loader.get_source("awaited.image") == (package / "image.py").read_text()
        importlib.import_module("awaited.image")
        assert sys.calls == ["imported", "taken"]

    def test_import_that_failed_is_tried_again(self, package: Path) -> None:
        source = (package / "image.py").read_text()
        (package / "image.py").write_text(f"{source}\nraise OSError('a library is missing')")
        plugin.register()
        with pytest.raises(OSError, match="a library is missing"):
            importlib.import_module("awaited.image")
        (package / "image.py").write_text(source)
        importlib.invalidate_caches()
        importlib.import_module("awaited.image")
        assert sys.calls == ["imported", "imported", "taken"]

    def test_module_that_does_not_exist(self, package: Path) -> None:
        (package / "image.py").unlink()
        plugin.register()
        with pytest.raises(ModuleNotFoundError, match=r"awaited\.image"):
            importlib.import_module("awaited.image")
        assert sys.calls == []

    def test_module_in_a_zip_file(self, package: Path) -> None:
        archive = package.parent / "archive.zip"
        with zipfile.ZipFile(archive, "w") as file:
            for name in ("awaited/__init__.py", "awaited/image.py"):
                file.write(package.parent / name, name)
        sys.path[0] = str(archive)
        plugin.register()
        module = importlib.import_module("awaited.image")
        assert str(archive) in module.__file__
        assert sys.calls == ["imported", "taken"]

    @pytest.mark.parametrize("module", [None, object()])
    def test_never_raises(self, monkeypatch: pytest.MonkeyPatch, module: object) -> None:
        """Neither a module that cannot be imported nor one that is not what we expect."""
        monkeypatch.setitem(sys.modules, OURS, None)
        monkeypatch.setitem(sys.modules, "anomalib.models.image", module)
        with pytest.warns(RuntimeWarning, match="stays the name of anomalib's own model"):
            plugin.register()
