# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Registers our models with anomalib.

``import torch`` calls :func:`register` (entry point ``torch.backends``). It imports nothing heavy: it only asks to be
called when anomalib's models are imported, by whatever route.
"""

import os
from types import ModuleType


def register() -> None:
    """Take the short name ``InpFormer`` as soon as ``anomalib.models.image`` has been imported.

    ``ANOMALIB_INP_REGISTER=0`` in the environment turns this off. Never raises: an error here would break
    ``import torch``.
    """
    if os.environ.get("ANOMALIB_INP_REGISTER", "1") == "0":
        return
    try:
        import wrapt
    except ImportError:
        return
    wrapt.register_post_import_hook(_take_the_name, "anomalib.models.image")


def _take_the_name(module: ModuleType) -> None:
    """Give our class the name that anomalib's command line and ``get_model`` look for.

    They refuse two classes of one name, so anomalib's own becomes ``BuiltinInpFormer``; it stays where it was for
    Python users and is reachable under the new name too, which pickle needs.
    """
    import sys

    builtin = module.InpFormer
    builtin.__name__ = builtin.__qualname__ = "BuiltinInpFormer"
    for name in (builtin.__module__, "anomalib.models.image.inp_former", module.__name__, "anomalib.models"):
        if name in sys.modules:
            sys.modules[name].BuiltinInpFormer = builtin  # type: ignore[attr-defined]

    import anomalib_inp.models.inp_former  # noqa: F401
