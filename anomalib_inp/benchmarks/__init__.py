# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Benchmarks: the settings of the papers, their runs and reports, and a comparison of export formats."""
