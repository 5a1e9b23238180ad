# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""A file of features: one tensor in the format of safetensors, written row by row and read through a memory map.

The safetensors library writes what is in memory; features may not fit there. So the header is written here (eight bytes
of length, then JSON) and the rows follow as they are computed. Reading is left to the library.
"""

import json
import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from anomalib_inp.files import replacing

NAME = "groups"
DTYPES = {"float32": "F32", "bfloat16": "BF16"}
"""Names of the precisions in torch and in safetensors."""
ALIGNMENT = 64
"""Bytes: rows begin at a multiple of a cache line."""


def num_bytes(shape: Sequence[int], dtype: str) -> int:
    """Size of a tensor in bytes."""
    return torch.Size(shape).numel() * getattr(torch, dtype).itemsize


def write_features(
    path: Path, rows: Iterable[Tensor], shape: Sequence[int], dtype: str, description: dict[str, str]
) -> None:
    """Write rows into a file that is there only once it is complete.

    Args:
        path: The file.
        rows: Pieces of the tensor along its first dimension, in order.
        shape: Shape of the whole tensor.
        dtype: ``float32`` or ``bfloat16``.
        description: What the features are of; :func:`is_complete` asks for the same.

    Raises:
        OSError: The disk is full.
    """
    size = num_bytes(shape, dtype)
    tensor = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [0, size]}
    header = json.dumps({"__metadata__": description, NAME: tensor}).encode()
    header += b" " * (-(len(header) + 8) % ALIGNMENT)
    with replacing(path) as partial, partial.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for piece in rows:
            file.write(piece.to(getattr(torch, dtype)).contiguous().view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())


def is_complete(path: Path, description: dict[str, str]) -> bool:
    """Whether the file is there, whole, and of what is described."""
    if not path.is_file():
        return False
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() == description
    except SafetensorError:
        return False


def map_features(path: Path) -> Tensor:
    """Map the features into memory; all processes that do share the same memory."""
    with safe_open(path, "pt") as file:
        return file.get_tensor(NAME)
