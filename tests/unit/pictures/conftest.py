# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import numpy as np
import pytest
from drawn import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH


@pytest.fixture
def image() -> np.ndarray:
    pixels = np.full((HEIGHT, WIDTH, 3), 110, np.uint8)
    pixels[TOP:BOTTOM, LEFT:RIGHT] = 200
    return pixels


@pytest.fixture
def gt_mask() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[TOP:BOTTOM, LEFT:RIGHT] = True
    return mask
