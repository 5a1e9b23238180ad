# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_content import assert_same, outputs
from safetensors.torch import load_file

from anomalib_inp import InpFormer
from anomalib_inp.models.convert import convert_reference, set_map

GOLDEN = Path(__file__).parents[2] / "golden" / "inp_former_tiny"
SIZES: dict[str, Any] = {"image_size": 84, "crop_size": None}


def test_a_converted_checkpoint_computes_what_the_published_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    published = InpFormer.from_reference(GOLDEN / "model.pth", **SIZES)
    encoder = convert_reference(GOLDEN / "model.pth", "new/folder/inp.ckpt")
    assert encoder == Path("new/folder/inp.encoder.safetensors")
    # Nothing else is left behind, neither here nor there.
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    assert found == ["new", "new/folder", "new/folder/inp.ckpt", "new/folder/inp.encoder.safetensors"]
    converted = InpFormer.load_from_checkpoint("new/folder/inp.ckpt")

    images = load_file(GOLDEN / "expected.safetensors")["image"]
    expected = outputs(published, images)
    assert_same(outputs(converted, images), expected)
    # The published weights and not fresh ones.
    torch.manual_seed(1)
    other = InpFormer(**{**converted.hparams, **SIZES})
    assert not torch.equal(outputs(other, images)[-1], expected[-1])


def test_the_map_of_a_checkpoint_is_the_one_that_is_exported(folder: Path) -> None:
    path = folder / "finished.ckpt"
    before = path.read_bytes()
    assert set_map(path) == "reconstruction"
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="The map 'fused' shows the memory, but there is none"):
        set_map(path, "fused")
    assert set_map(path, "prototype_distance") == set_map(path) == "prototype_distance"
    with pytest.warns(UserWarning, match="of the map 'reconstruction', but the map 'prototype_distance' is shown"):
        model = InpFormer.load_from_checkpoint(path)  # as anomalib's export loads it
    assert model.model.map == "prototype_distance"
