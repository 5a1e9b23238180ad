# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Loads a checkpoint of either model."""

from pathlib import Path
from typing import Any

from anomalib_inp.checkpoints.own import read_checkpoint
from anomalib_inp.models.inp_former import InpFormer
from anomalib_inp.models.inp_former_plus_plus import InpFormerPlusPlus

MODELS: dict[str, type[InpFormer | InpFormerPlusPlus]] = {
    model.__name__: model for model in (InpFormer, InpFormerPlusPlus)
}


def load_model(checkpoint: str | Path, **kwargs: Any) -> InpFormer | InpFormerPlusPlus:
    """Load a checkpoint of ours on the CPU, whichever model it is of.

    Args:
        checkpoint: The file.
        **kwargs: Arguments of the model that are to differ from those of the training, such as ``map``.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a checkpoint of ours.
    """
    name = read_checkpoint(checkpoint, mmap=True).get("model", InpFormer.__name__)
    if name not in MODELS:
        msg = f"{checkpoint} is of a model {name!r}; expected one of {', '.join(MODELS)}."
        raise ValueError(msg)
    return MODELS[name].load_from_checkpoint(checkpoint, map_location="cpu", **kwargs)
