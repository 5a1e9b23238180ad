# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_content import load
from torch import Tensor

from anomalib_inp import InpFormer
from anomalib_inp.models.convert import convert_reference

GOLDEN = Path(__file__).parents[2] / "golden" / "inp_former_tiny"


def test_published_checkpoints_follow_the_published_protocol() -> None:
    pre_processor = InpFormer.from_reference(GOLDEN / "model.pth").pre_processor
    assert (pre_processor.image_size, pre_processor.crop_size) == ((448, 448), (392, 392))


def broken(change: Callable[[dict[str, Tensor]], object], path: Path) -> Path:
    state = load(GOLDEN / "model.pth")
    change(state)
    torch.save(state, path)
    return path


FAULTS: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "no checkpoint of ours": (
        lambda state: [state.pop(key) for key in list(state) if key.startswith(("encoder", "prototype"))],
        "Expected a checkpoint of the INP-Former reference code .* but prototype_token, encoder.pos_embed, .* missing",
    ),
    "missing in the decoder": (
        lambda state: state.pop("decoder.3.attn.qkv.weight", None) or state.pop("decoder.3.attn.q.weight"),
        r"Missing key\(s\).*decoder\.blocks\.3\.attn\.",
    ),
    "missing in the encoder": (
        lambda state: state.pop("encoder.blocks.5.attn.qkv.bias"),
        r"missing blocks\.5\.attn\.qkv\.bias",
    ),
    "left over in the bottleneck": (
        lambda state: state.update({"bottleneck.0.fc9.weight": torch.zeros(1)}),
        r"Unexpected key\(s\).*bottleneck\.fc9\.weight",
    ),
    "left over in the encoder": (
        lambda state: state.update({"encoder.extra": torch.zeros(1)}),
        "left over extra",
    ),
    "of no known part": (
        lambda state: state.update({"segmentation.0.weight": torch.zeros(1)}),
        r"belong to no part of INP-Former: segmentation\.0\.weight",
    ),
    "another shape in the bottleneck": (
        lambda state: state.update({"bottleneck.0.fc1.bias": torch.zeros(7)}),
        r"size mismatch for bottleneck\.fc1\.bias: .*\[7\]",
    ),
    "another shape in the encoder": (
        lambda state: state.update({"encoder.blocks.2.norm1.bias": torch.zeros(7)}),
        r"blocks\.2\.norm1\.bias is \(7,\) instead of \(32,\)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_named(fault: str, tmp_path: Path) -> None:
    change, message = FAULTS[fault]
    path = broken(change, tmp_path / "model.pth")
    for read in (lambda: InpFormer.from_reference(path), lambda: convert_reference(path, tmp_path / "new.ckpt")):
        with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
            read()
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "model.pth"))):
        InpFormer.from_reference(tmp_path / "model.pth")
