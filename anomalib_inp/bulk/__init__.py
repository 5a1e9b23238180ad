# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Bulk prediction on many machines: Ray Data schedules, retries and scales; what an image is told stays the same."""
