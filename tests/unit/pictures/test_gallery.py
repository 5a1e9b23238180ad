# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import numpy as np
import pytest
from PIL import Image

from anomalib_inp.pictures.gallery import gallery

STRIPS = [Image.new("RGB", size, (10, 20, 30)) for size in [(100, 40), (80, 50), (120, 30)]]


@pytest.mark.parametrize(("columns", "size"), [(1, (120, 124)), (2, (202, 82)), (3, (304, 50)), (5, (304, 50))])
def test_size_and_content(columns: int, size: tuple[int, int]) -> None:
    sheet = gallery(STRIPS, columns)
    assert sheet.size == size
    dark = (np.asarray(sheet) == (10, 20, 30)).all(axis=2).sum()
    assert dark == sum(strip.width * strip.height for strip in STRIPS)


def test_title_adds_a_header_that_fits() -> None:
    plain, titled = gallery(STRIPS), gallery(STRIPS, title="A title that is wider than every strip")
    assert titled.height > plain.height
    assert titled.width > plain.width
    assert (np.asarray(titled)[:, -3:][:20] == 255).all()


def test_empty() -> None:
    with pytest.raises(ValueError, match="at least one strip"):
        gallery([])
