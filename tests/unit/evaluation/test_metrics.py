# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch
from reference_metrics import make_data, reference_seven
from torch import distributed

from anomalib_inp.evaluation.functional import seven_metrics
from anomalib_inp.evaluation.metrics import AP, AUPRO, AUROC, COLUMNS, F1Max


@pytest.mark.parametrize("kind", ["random", "smooth", "tied"])
def test_seven_metrics_match_scikit_learn(kind):
    data = make_data(kind)

    got = seven_metrics(*data)

    assert list(got) == list(COLUMNS)
    assert got == pytest.approx(reference_seven(kind), abs=1e-4)


@pytest.mark.parametrize(("scale", "shift"), [(64.0, 0.0), (1.0, -8.0), (1 / 1024, 0.0)])
def test_range_of_the_values_does_not_matter(scale, shift):
    scores, labels, maps, masks = make_data("tied")

    got = seven_metrics(scale * scores + shift, labels, scale * maps + shift, masks)

    assert got == pytest.approx(seven_metrics(scores, labels, maps, masks), abs=1e-6)


def test_values_worked_by_hand():
    """One two-pixel and one one-pixel region, twenty normal pixels.

    The false-positive rate goes 0, 1/20, 2/20, ...; the overlap is 1/2 at 0, and (1 + 1)/2 from 1/20 on.
    """
    maps, masks = np.zeros((1, 1, 23)), np.zeros((1, 1, 23), bool)
    masks[0, 0, [0, 1, 10]] = True
    maps[0, 0] = -np.arange(23)
    maps[0, 0, [0, 1, 5, 10]] = [9, 9, 8, 7]

    got = seven_metrics(np.array([3.0, 2.0, 1.0, 0.0]), np.array([1, 0, 1, 0]))
    aupro = AUPRO(["raw_map", "gt_mask"])
    for name, metric in (("AUROC", AUROC), ("AP", AP), ("F1Max", F1Max), ("AUPRO", AUPRO)):
        assert metric(["raw_map", "gt_mask"], "pixel_").name == f"pixel_{name}"
    batch = ImageBatch(image=torch.zeros(1, 3, 8, 8), gt_mask=torch.from_numpy(masks))
    batch.raw_map = torch.from_numpy(maps)
    aupro.update(batch)

    # Ranked anomalous, normal, anomalous, normal.
    assert got == pytest.approx({"image_AUROC": 3 / 4, "image_AP": (1 + 2 / 3) / 2, "image_F1Max": 4 / 5})
    # Up to 1/20 the overlap stays at 1/2, there it rises to 1.
    assert aupro.compute().item() == pytest.approx((0.05 * 0.5 + 0.25 * 1.0) / 0.3)


@pytest.mark.parametrize("anomalous", [False, True])
def test_one_class_gives_nan(anomalous):
    scores, labels, maps, masks = make_data("smooth")
    labels, masks = np.full_like(labels, anomalous), np.full_like(masks, anomalous)

    got = seven_metrics(scores, labels, maps, masks)

    assert list(got) == list(COLUMNS)
    assert np.isnan(list(got.values())).all()


def test_maps_without_masks_give_the_image_metrics():
    scores, labels, maps, _ = make_data("smooth")

    assert list(seven_metrics(scores, labels, maps)) == list(COLUMNS)[:3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": torch.zeros(3, 1)}, r"scores must have shape \(any\), got \(3, 1\)"),
        ({"labels": torch.zeros(4)}, r"labels must have shape \(3\), got \(4,\)"),
        ({"labels": torch.tensor([0, 1, 2])}, "labels must be bool or 0 and 1, got values from 0 to 2"),
        ({"maps": torch.zeros(2, 8, 8)}, r"maps must have shape \(3, any, any\), got \(2, 8, 8\)"),
        ({"masks": torch.zeros(3, 8, 4)}, r"masks must have shape \(3, 8, 8\), got \(3, 8, 4\)"),
        ({"masks": torch.full((3, 8, 8), 255)}, "masks must be bool or 0 and 1, got values from 255 to 255"),
        ({"scores": torch.tensor([0, 1, torch.nan])}, "raw_score must be numbers, got NaN"),
    ],
)
def test_unusable_input_is_refused(change, message):
    data = {"scores": torch.rand(3), "labels": torch.tensor([0, 1, 1]), "maps": torch.rand(3, 8, 8)}
    data["masks"] = data["maps"] > 0.5

    with pytest.raises(ValueError, match=message):
        seven_metrics(**{**data, **change})


def test_what_is_complete_is_not_shared_between_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes with GPUs cannot share what is on the CPU, where these metrics are computed."""
    monkeypatch.setattr(distributed, "all_gather", lambda *_, **__: pytest.fail("values are shared"))
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        maps = np.stack([np.zeros((2, 2)), np.eye(2)])
        values = seven_metrics(np.array([0.1, 0.9]), np.array([0, 1]), maps, maps > 0)
    finally:
        distributed.destroy_process_group()
    assert values["image_AUROC"] == 1
