# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0
"""How good the anomaly maps and scores are: the metrics of the paper."""
