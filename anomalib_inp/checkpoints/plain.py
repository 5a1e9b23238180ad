# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Plain data, all that a checkpoint may hold besides tensors: reading anything else could run code."""

from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
import torch

PLAIN = {type(None), bool, int, float, complex, str, bytes, set}
PLAIN |= {torch.Tensor, torch.nn.Parameter, torch.Size, torch.dtype, torch.device}
"""What torch.load reads with weights_only=True."""


def plain(value: Any) -> Any:
    """Turn what stands for plain data into it: NumPy's numbers and arrays, OmegaConf's lists, paths, enumerations.

    What stands for none stays as it is, wherever it lies; see :func:`not_plain`.
    """
    if type(value) in PLAIN:
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(plain(item) for item in value)
    if isinstance(value, Sequence):
        return [plain(item) for item in value]
    return value


def not_plain(value: Any, name: str) -> Iterator[str]:
    """Name what is no plain data inside of a value that has passed :func:`plain`."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from not_plain(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            yield from not_plain(item, f"{name}[{place}]")
    elif type(value) not in PLAIN:
        yield f"{name} ({type(value).__module__}.{type(value).__qualname__})"
