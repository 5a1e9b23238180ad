# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""From a reconstruction to an anomaly map and an image score."""
