# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What is said of images, as users get it: tables, records, regions; without PyTorch and anomalib."""
