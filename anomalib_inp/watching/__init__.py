# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""A folder that fills up: each image is predicted once, and others are told; without PyTorch and anomalib."""
