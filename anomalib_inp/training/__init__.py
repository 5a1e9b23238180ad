# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Everything around the training steps: recipe, training data, feature cache, checks and callbacks."""
