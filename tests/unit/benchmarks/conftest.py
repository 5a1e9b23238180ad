# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anomalib_inp.benchmarks.runs import Benchmark


@pytest.fixture(scope="package")
def root(write_small_sample: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_sample(tmp_path_factory.mktemp("benchmark"), categories=("brick", "grass"))


@pytest.fixture
def make(root: Path, tmp_path: Path) -> Callable[..., Benchmark]:
    """Makes a benchmark of the small sample, or of other data."""

    def make(
        setting: str,
        root: Path = root,
        model: str = "InpFormer",
        count: dict[str, int] | None = None,
        model_args: dict[str, Any] | None = None,
        **data: Any,
    ) -> Benchmark:
        if "sources" not in data:
            data = {"source": "MVTecAD", "root": str(root), **data}
        data = {"categories": "all", "num_workers": 0, **data}
        return Benchmark(setting, data, model, tmp_path, model_args or {}, {}, **(count or {}))

    return make
