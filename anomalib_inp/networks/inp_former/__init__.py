# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The network of INP-Former, and the segmentation head of INP-Former++."""
