# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The commands of ``anomalib-inp``: each is a function whose signature is its options."""

UNREADABLE, INTERRUPTED, TERMINATED = 3, 130, 143
"""Exit codes: images could not be read; the user has stopped the command; a signal has."""
