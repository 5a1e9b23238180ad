# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""INP-Former and INP-Former++ for anomalib.

The public names are imported when they are first used: ``import anomalib_inp`` imports neither torch nor anomalib.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from anomalib_inp.models.registry import MODELS, model_class

if TYPE_CHECKING:
    from anomalib_inp.data.multi_category import MultiCategory
    from anomalib_inp.models.inp_former import InpFormer
    from anomalib_inp.models.inp_former_plus_plus import InpFormerPlusPlus
    from anomalib_inp.models.self_similarity import SelfSimilarity
    from anomalib_inp.models.token_memory import TokenMemory
    from anomalib_inp.pictures.visualizer import InpVisualizer
    from anomalib_inp.preprocessing import InpPreProcessor
    from anomalib_inp.runtime.model import ExportedModel
    from anomalib_inp.thresholds.post_processor import InpPostProcessor

__version__ = "0.1.0"

_HOME = {
    "ExportedModel": "anomalib_inp.runtime.model",
    "InpPostProcessor": "anomalib_inp.thresholds.post_processor",
    "InpPreProcessor": "anomalib_inp.preprocessing",
    "InpVisualizer": "anomalib_inp.pictures.visualizer",
    "MultiCategory": "anomalib_inp.data.multi_category",
}

__all__ = [
    "ExportedModel",
    "InpFormer",
    "InpFormerPlusPlus",
    "InpPostProcessor",
    "InpPreProcessor",
    "InpVisualizer",
    "MultiCategory",
    "SelfSimilarity",
    "TokenMemory",
]


def __getattr__(name: str) -> Any:
    """Import a public name from the module that holds it."""
    if name in MODELS:
        return model_class(name)
    if name not in _HOME:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    """List the public names without importing them."""
    return sorted(__all__)
