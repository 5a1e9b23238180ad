# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Stands for a full disk: the system refuses to write more than so many bytes into a file."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """Refuse to write files of more than ``size`` bytes, as the system does with ``ulimit -f``."""
    if sys.platform == "win32":
        pytest.skip("Windows has no limit on the size of files.")
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
