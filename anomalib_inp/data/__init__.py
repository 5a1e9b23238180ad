# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Images: many categories at once, few shots, pseudo-anomalies, labelled anomalies, and sample data."""

from anomalib_inp.data.multi_category import MultiCategory, Source

__all__ = ["MultiCategory", "Source"]
