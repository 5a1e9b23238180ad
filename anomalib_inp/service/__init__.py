# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""A model as a service, with a station in the browser; without PyTorch and anomalib."""
