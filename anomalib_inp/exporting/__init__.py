# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Writes exports: the model as one graph, for torch, ONNX and OpenVINO, also in 8 bits."""
