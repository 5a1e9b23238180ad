# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Where caches live: outside the working directory, shared by all runs of a user."""

import os
from pathlib import Path

from platformdirs import user_cache_path

VARIABLE = "ANOMALIB_INP_CACHE"
"""Environment variable that names another folder, for example on a larger disk."""


def cache_folder(kind: str) -> Path:
    """Folder of one kind of cache, ``features`` or ``openvino``."""
    named = os.environ.get(VARIABLE)
    return (Path(named).expanduser() if named else user_cache_path("anomalib-inp")) / kind
