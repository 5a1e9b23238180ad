# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Images: many categories at once, few shots, pseudo-anomalies, labelled anomalies, and sample data."""

from typing import TYPE_CHECKING, Any

from anomalib_inp.data.source import Source

if TYPE_CHECKING:
    from anomalib_inp.data.multi_category import MultiCategory

__all__ = ["MultiCategory", "Source"]


def __getattr__(name: str) -> Any:
    """Import what needs anomalib when it is first used."""
    if name != "MultiCategory":
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    from anomalib_inp.data.multi_category import MultiCategory

    return MultiCategory
