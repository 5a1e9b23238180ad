# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The anomalib models. Whatever is imported of them, all are: anomalib finds those that exist as classes."""

from anomalib_inp.models import inp_former, inp_former_plus_plus

__all__ = ["inp_former", "inp_former_plus_plus"]
