# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from anomalib_inp.training.feature_file import NAME, is_complete, map_features, num_bytes, write_features

SHAPE = (5, 2, 3, 4)
WHAT = {"images": "five", "dtype": "float32"}


def rows() -> Iterator[Tensor]:
    """Five rows in pieces of two, two and one."""
    yield from torch.arange(5 * 24.0).view(SHAPE).split(2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_safetensors_library_reads_what_is_written(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "features.safetensors"
    write_features(path, rows(), SHAPE, dtype, WHAT)
    expected = torch.arange(5 * 24.0).view(SHAPE).to(getattr(torch, dtype))
    assert torch.equal(load_file(path)[NAME], expected)
    assert torch.equal(map_features(path), expected)
    assert is_complete(path, WHAT)
    assert not is_complete(path, {**WHAT, "images": "six"})
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_size() -> None:
    assert num_bytes(SHAPE, "float32") == 480
    assert num_bytes(SHAPE, "bfloat16") == 240


def test_rows_begin_on_a_cache_line(tmp_path: Path) -> None:
    path = tmp_path / "features.safetensors"
    write_features(path, rows(), SHAPE, "float32", WHAT)
    assert (path.stat().st_size - num_bytes(SHAPE, "float32")) % 64 == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_what_is_interrupted_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "features.safetensors"

    def broken() -> Iterator[Tensor]:
        yield next(rows())
        raise error

    with pytest.raises(error):
        write_features(path, broken(), SHAPE, "float32", WHAT)
    assert not is_complete(path, WHAT)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_cut_short_is_not_complete(tmp_path: Path) -> None:
    path = tmp_path / "features.safetensors"
    write_features(path, rows(), SHAPE, "float32", WHAT)
    path.write_bytes(path.read_bytes()[:-4])
    assert not is_complete(path, WHAT)
    path.write_bytes(b"")
    assert not is_complete(path, WHAT)
