# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from anomalib.data import ImageBatch, MVTecAD

from anomalib_inp.data.wrapped import LargeImages


@pytest.fixture
def images(write_small_sample: Callable[..., Path], tmp_path: Path):
    data = MVTecAD(write_small_sample(tmp_path), "brick", num_workers=0)
    data.setup()
    return data.test_data


def test_a_batch_is_anomalibs_without_a_copy(images) -> None:
    large = LargeImages(images)
    assert (len(large), large.name, large.samples.equals(images.samples)) == (len(images), images.name, True)
    for index in (0, len(images) - 1):  # a normal image has no mask file
        item = large[index]
        found, expected = large.collate_fn([item]), ImageBatch.collate([item])
        for field in fields(ImageBatch):
            ours, theirs = getattr(found, field.name), getattr(expected, field.name)
            assert torch.equal(ours, theirs) if isinstance(theirs, torch.Tensor) else ours == theirs
        assert found.image.data_ptr() == item.image.data_ptr()
    with pytest.raises(ValueError, match="too many values"):
        large.collate_fn([images[0], images[1]])
