# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Networks on the frozen encoder in plain PyTorch, a folder for each method."""
