# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What is said of a data set before it is loaded; importing this imports neither torch nor anomalib."""

from collections.abc import Sequence
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


def given_sources(single: Source, sources: Sequence[Source] | None) -> Sequence[Source]:
    """Find out which sources are meant where one may be given by itself, or several.

    Args:
        single: The one; its ``root`` may stay where it is one of the several.
        sources: The several, or ``None``.

    Raises:
        ValueError: No sources, or both.
    """
    if sources is None:
        return [single]
    if not (sources and all(isinstance(one, Source) for one in sources)):
        msg = f"sources must be one anomalib_inp.data.Source at least, and nothing else, got {sources}."
        raise ValueError(msg)
    if single.categories != "all":
        msg = f"categories={single.categories} belong to one source: name them in each of sources."
        raise ValueError(msg)
    among = any(one.source == single.source and single.root in {None, one.root} for one in sources)
    if not among and (single.root or single.arguments or single.source != Source.source):
        there = ", ".join(f"{one.source} in {one.root}" for one in sources)
        msg = (
            f"source={single.source} in root={single.root} is none of the sources, {there}: give only sources, each "
            "with its root and arguments, or no sources."
        )
        raise ValueError(msg)
    return sources
