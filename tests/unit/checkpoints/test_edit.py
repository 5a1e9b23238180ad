# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_content import load
from torch import Tensor

from anomalib_inp import InpFormer
from anomalib_inp.checkpoints.edit import set_thresholds
from anomalib_inp.exporting.convert import metadata_of
from anomalib_inp.models.convert import convert_reference
from anomalib_inp.thresholds.scale import Thresholds

GOLDEN = Path(__file__).parents[2] / "golden" / "inp_former_tiny"


def flatten(content: Any, name: str = "") -> dict[str, Any]:
    if isinstance(content, dict):
        return {key: value for k, part in content.items() for key, value in flatten(part, f"{name}/{k}").items()}
    return {name: content}


@pytest.mark.parametrize("name", ["finished.ckpt", "model.ckpt"])
def test_thresholds_of_a_checkpoint(name: str, folder: Path) -> None:
    path = folder / name
    names, before = sorted(file.name for file in folder.iterdir()), flatten(load(path))
    shown = set_thresholds(path)
    state = load(path)["state_dict"]
    assert shown == Thresholds(
        image=state["post_processor._image_threshold"].item(),
        pixel=state["post_processor._pixel_threshold"].item(),
        normalized=True,
        categories=[],
    )
    assert set_thresholds(path, image=0.25) == shown._replace(image=0.25)
    moved = Thresholds(image=0.25, pixel=0.5, normalized=False, categories=[])
    assert set_thresholds(path, pixel=0.5, normalized=False) == moved
    assert set_thresholds(path) == moved
    assert sorted(file.name for file in folder.iterdir()) == names

    # Nothing else has changed: the ends of the validation values move with the threshold.
    after = flatten(load(path))
    assert after.keys() == before.keys()
    different = {key for key, value in after.items() if not _equal(value, before[key])}
    buffers = [name for kind in ("image", "pixel") for name in (f"_{kind}_threshold", f"{kind}_min", f"{kind}_max")]
    expected = {f"/state_dict/post_processor.{buffer}" for buffer in buffers}
    if name == "model.ckpt":  # the post-processor is a callback too, which a resumed training restores
        expected |= {f"/callbacks/InpPostProcessor/{buffer}" for buffer in buffers}
    assert different == {*expected, "/anomalib_post_processor_config/enable_normalization"}

    model = InpFormer.load_from_checkpoint(path)
    metadata = metadata_of(model)
    assert (metadata.normalized, metadata.image.threshold, metadata.pixel.threshold) == (False, 0.25, 0.5)
    set_thresholds(path, normalized=True)
    assert metadata_of(InpFormer.load_from_checkpoint(path)).normalized


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one.nan_to_num(-1), other.nan_to_num(-1))
    return repr(one) == repr(other)


def test_thresholds_of_a_category(folder: Path) -> None:
    path = folder / "finished.ckpt"
    content = load(path)
    content["anomalib_post_processor_config"]["ranges"] = {"bolt": [[0.3, 0.1, 0.5], [0.2, 0.05, 0.4]]}
    torch.save(content, path)
    shown = Thresholds(image=0.3, pixel=0.2, normalized=True, categories=["bolt"])
    assert set_thresholds(path, category="bolt") == shown
    common = set_thresholds(path)
    assert set_thresholds(path, pixel=0.25, category="bolt") == shown._replace(pixel=0.25)
    assert set_thresholds(path) == common
    model = InpFormer.load_from_checkpoint(path)
    image, pixel = model.post_processor.ranges["bolt"]
    assert image == (0.3, 0.1, 0.5)
    assert pixel == pytest.approx((0.25, 0.1, 0.45))  # the ends moved along
    assert metadata_of(model).categories == {"bolt": (image, pixel)}
    assert (image.span, pixel.span) == pytest.approx((0.1, 0.1))
    with pytest.raises(ValueError, match="no thresholds of the category 'nut'; it has bolt"):
        set_thresholds(path, image=0.25, category="nut")


def test_looking_at_thresholds_writes_nothing(folder: Path) -> None:
    path = folder / "finished.ckpt"
    before = (path.stat().st_mtime_ns, path.read_bytes())
    set_thresholds(path)
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before


@pytest.mark.parametrize("given", ["image", "pixel"])
def test_a_missing_threshold_follows_the_one_that_is_given(given: str, tmp_path: Path) -> None:
    """As in ``InpPostProcessor.set_thresholds``; a converted checkpoint has none."""
    path = tmp_path / "inp.ckpt"
    convert_reference(GOLDEN / "model.pth", path)
    assert all(math.isnan(getattr(set_thresholds(path), kind)) for kind in ("image", "pixel"))
    shown = Thresholds(image=0.25, pixel=0.25, normalized=True, categories=[])
    assert set_thresholds(path, **{given: 0.25}) == shown
    assert set_thresholds(path, **{given: 0.5}) == shown._replace(**{given: 0.5})


@pytest.mark.parametrize("kind", ["image", "pixel"])
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_thresholds_are_finite(kind: str, value: float, folder: Path) -> None:
    before = (folder / "finished.ckpt").read_bytes()
    with pytest.raises(ValueError, match=f"The {kind} threshold must be a finite raw score, got {value}"):
        set_thresholds(folder / "finished.ckpt", **{kind: value})
    assert (folder / "finished.ckpt").read_bytes() == before


def test_checkpoints_of_others_have_no_thresholds(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"other\.ckpt is no checkpoint with a post-processor of anomalib-inp"):
        set_thresholds(tmp_path / "other.ckpt", image=0.5)
