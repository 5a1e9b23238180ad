# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Registers our models with anomalib.

``import torch`` calls :func:`register` (entry point ``torch.backends``) in every program that uses torch. So it imports
nothing heavy and does nothing but ask to be called when anomalib's models are imported, by whatever route.
"""

import os
import sys
from importlib.machinery import ModuleSpec
from typing import Any

# Not `anomalib.models`: that one can be half imported when torch arrives.
_AWAITED = "anomalib.models.image"


def register() -> None:
    """Take the short name ``InpFormer`` as soon as anomalib's image models have been imported.

    ``ANOMALIB_INP_REGISTER=0`` in the environment turns this off.
    """
    if os.environ.get("ANOMALIB_INP_REGISTER", "1") == "0":
        return
    if _AWAITED in sys.modules:
        _take_the_name()
    elif not any(isinstance(finder, _Watch) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watch())


class _Watch:
    """Leaves it to the other finders to find the awaited module, and calls us once it has been imported.

    The package wrapt offers this too, but importing it would slow down every ``import torch`` by tens of milliseconds.
    """

    def __init__(self) -> None:
        self._asking_others = False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:  # noqa: ARG002
        """Find the awaited module as the others do; nothing else."""
        if name != _AWAITED or self._asking_others:
            return None
        from importlib.util import find_spec

        self._asking_others = True
        try:
            spec = find_spec(name)
        finally:
            self._asking_others = False
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(spec.loader, self)  # type: ignore[assignment]
        return spec


class _Loader:
    """Stands in for the awaited module's loader until the module has been imported."""

    def __init__(self, loader: Any, watch: _Watch) -> None:
        self._loader = loader
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def exec_module(self, module: Any) -> None:
        """Import the module, then take the name."""
        module.__loader__ = module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        # Only now: an import that failed may be tried again.
        if self._watch in sys.meta_path:
            sys.meta_path.remove(self._watch)
        _take_the_name()


def _take_the_name() -> None:
    """Give our class the name that anomalib's command line and ``get_model`` look for.

    They refuse two classes of one name, so anomalib's own becomes ``BuiltinInpFormer``; it stays where it was for
    Python users and is reachable under the new name too, which pickle needs. If our class cannot be imported,
    anomalib's keeps its name: the import of anomalib must not fail because of us.
    """
    try:
        # If importing our classes is what brought anomalib in, they follow.
        import anomalib_inp.data.multi_category  # noqa: F401
        from anomalib_inp.models.registry import import_models

        if "anomalib_inp.models.encoder_model" not in sys.modules:
            import_models()

        builtin = sys.modules[_AWAITED].InpFormer
        holders = (builtin.__module__, "anomalib.models.image.inp_former", _AWAITED, "anomalib.models")
        for name in holders:
            sys.modules[name].BuiltinInpFormer = builtin  # type: ignore[attr-defined]
        builtin.__name__ = builtin.__qualname__ = "BuiltinInpFormer"
    except Exception as error:
        import warnings

        warnings.warn(
            "`InpFormer` stays the name of anomalib's own model, because the one of anomalib-inp cannot be imported. "
            f"{type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
