# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The anomalib models: glue between networks, losses, scoring and anomalib; the registry lists them."""
