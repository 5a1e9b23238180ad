# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What is said of a data set before it is loaded; importing this imports neither torch nor anomalib."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Source:
    """Categories of one data set.

    Args:
        source: Image data module of anomalib: ``MVTecAD``, ``Visa``, ``RealIAD``, ``BTech``, ``MPDD``, ``Folder``, ...,
            or the full path of a class.
        root: Folder of the data set; by default the data module's. Of ``Folder``, the folder whose subfolders are the
            categories.
        categories: Names of the categories, or ``all``: those in the folder, or, before a download, those of the data
            set.
        arguments: Further arguments of the data module, such as ``normal_dir`` of ``Folder``.
        name: What the source is called where there are several; by default like its class.
    """

    source: str = "MVTecAD"
    root: str | None = None
    categories: list[str] | str = "all"
    arguments: dict[str, Any] = field(default_factory=dict)
    name: str = ""
