# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The frozen encoder that all models share: its weights, its positions and the blocks that are tapped."""
