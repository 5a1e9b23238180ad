# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Thresholds: one scale, how they are chosen, and the post-processor that applies them."""
