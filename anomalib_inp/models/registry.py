# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The one list of models. It imports none of them before one is asked for."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # Every program that uses torch imports this file, and few of them use paths.
    from pathlib import Path

    from anomalib.models.components import AnomalibModule

MODELS = {
    "InpFormer": "anomalib_inp.models.inp_former",
    "InpFormerPlusPlus": "anomalib_inp.models.inp_former_plus_plus",
    "SelfSimilarity": "anomalib_inp.models.self_similarity",
    "TokenMemory": "anomalib_inp.models.token_memory",
}
"""Module of each model. A new model is one more line."""


def import_models() -> None:
    """Import all models: anomalib finds those that exist as classes."""
    for module in MODELS.values():
        import_module(module)


def model_class(name: str) -> "type[AnomalibModule]":
    """Find a model by its name; whichever is asked for, all are imported."""
    import_models()
    return getattr(import_module(MODELS[name]), name)


def load_model(checkpoint: "str | Path", **kwargs: Any) -> "AnomalibModule":
    """Load a checkpoint of ours on the CPU, whichever model it is of.

    Args:
        checkpoint: The file.
        **kwargs: Arguments of the model that are to differ from those of the training, such as ``map``.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a checkpoint of ours.
    """
    from anomalib_inp.checkpoints.own import read_checkpoint

    name = read_checkpoint(checkpoint, mmap=True).get("model", "InpFormer")
    if name not in MODELS:
        msg = f"{checkpoint} is of a model {name!r}; expected one of {', '.join(MODELS)}."
        raise ValueError(msg)
    return model_class(name).load_from_checkpoint(checkpoint, map_location="cpu", **kwargs)
