# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Checkpoints: published ones are taken apart, ours find their encoder again; neither knows the models."""
