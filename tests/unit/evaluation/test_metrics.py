# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import pickle
import warnings
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch
from lightning.pytorch import LightningModule, Trainer
from rich.console import Console
from scipy.ndimage import gaussian_filter
from skimage.measure import label
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score
from torch.utils.data import DataLoader

from anomalib_inp.evaluation.metrics import (
    AP,
    AUPRO,
    AUROC,
    COLUMNS,
    F1Max,
    metrics_table,
    paper_evaluator,
    seven_metrics,
)

SIZE = 48
BATCH = 4


def reference_f1_max(truth, values):
    precision, recall, _ = precision_recall_curve(truth, values)
    return np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12))


def reference_aupro(maps, masks, limit=0.3):
    """Mean overlap of the regions over the false-positive rate, at every distinct value, by the definition."""
    regions = []
    for values, mask in zip(maps, masks, strict=True):
        components = label(mask)  # full (8-) connectivity
        regions += [values[components == index] for index in range(1, components.max() + 1)]
    normal = maps[~masks]
    curve = [(0.0, 0.0)]
    for threshold in np.unique(maps)[::-1]:
        overlap = np.mean([np.mean(region >= threshold) for region in regions])
        curve.append((np.mean(normal >= threshold), overlap))
        if curve[-1][0] > limit:
            break
    area = 0.0
    for (fpr, pro), (next_fpr, next_pro) in pairwise(curve):
        if next_fpr > limit:
            next_pro = pro + (next_pro - pro) * (limit - fpr) / (next_fpr - fpr)
            next_fpr = limit
        area += (next_fpr - fpr) * (pro + next_pro) / 2
    return area / limit


@cache
def reference_seven(kind):
    scores, labels, maps, masks = make_data(kind)
    pixels, truth = maps.ravel(), masks.ravel()
    return {
        "image_AUROC": roc_auc_score(labels, scores),
        "image_AP": average_precision_score(labels, scores),
        "image_F1Max": reference_f1_max(labels, scores),
        "pixel_AUROC": roc_auc_score(truth, pixels),
        "pixel_AP": average_precision_score(truth, pixels),
        "pixel_F1Max": reference_f1_max(truth, pixels),
        "pixel_AUPRO": reference_aupro(maps, masks),
    }


def make_data(kind, count=12):
    """Maps with a value above 1 in some batches only, like cosine distances; a third of the images are normal."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    masks = np.zeros((count, SIZE, SIZE), bool)
    for mask in (mask for index, mask in enumerate(masks) if index % 3):
        for row, column, radius in rng.integers((0, 0, 2), (SIZE, SIZE, 9), (3, 3)):
            mask |= (rows - row) ** 2 + (columns - column) ** 2 < radius**2
        mask[[0, 1], [0, 1]] = True  # touching at a corner only: one region
    if kind == "random":
        maps = rng.random(masks.shape)
    else:
        noise = gaussian_filter(rng.standard_normal(masks.shape), (0, 3, 3))
        maps = 0.3 + noise + 0.4 * gaussian_filter(masks.astype(float), (0, 2, 2))
        maps -= maps.min()
    maps *= np.where(np.arange(count) < count // 2, 0.9, 1.3)[:, None, None] / maps.max()
    if kind == "tied":
        maps = np.round(maps * 12) / 12
    maps = maps.astype(np.float32)
    return maps.max((1, 2)), masks.any((1, 2)), maps, masks


class Recorded(LightningModule):
    """Replays predictions, as a model would leave them on the batch."""

    def __init__(self):
        super().__init__()
        self.evaluator = paper_evaluator()

    def configure_callbacks(self):
        return [self.evaluator]

    def test_step(self, batch, batch_idx):
        return batch


def make_batches(scores, labels, maps, masks=None, size=BATCH):
    batches = []
    for start in range(0, len(scores), size):
        part = slice(start, start + size)
        batch = ImageBatch(
            image=torch.zeros(len(scores[part]), 3, 8, 8),
            gt_label=torch.from_numpy(labels[part]),
            gt_mask=None if masks is None else torch.from_numpy(masks[part]),
        )
        batch.raw_score = torch.from_numpy(scores[part])
        batch.raw_map = torch.from_numpy(maps[part])[:, None]
        batches.append(batch)
    return batches


def run_test(model, batches, barebones=False):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", **({"barebones": True} if barebones else {"logger": False, **quiet}))
    trainer.test(model, DataLoader(batches, batch_size=None), verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize("kind", ["random", "smooth", "tied"])
def test_seven_metrics_match_scikit_learn(kind):
    data = make_data(kind)

    got = seven_metrics(*data)

    assert list(got) == list(COLUMNS)
    assert got == pytest.approx(reference_seven(kind), abs=1e-4)


@pytest.mark.parametrize("kind", ["random", "smooth", "tied"])
def test_batches_give_the_same_as_the_whole(kind):
    """Each batch alone decides nothing: some reach above 1, some do not, and one has normal images only."""
    scores, labels, maps, masks = make_data(kind)
    order = np.argsort(labels, kind="stable")
    data = [values[order] for values in (scores, labels, maps, masks)]
    batches = make_batches(*data)
    assert not all((batch.raw_map > 1).any() for batch in batches)
    assert any((batch.raw_map > 1).any() for batch in batches)

    evaluator = paper_evaluator()
    for batch in batches:
        evaluator.on_test_batch_end(None, None, None, batch, 0)
    got = {metric.name: metric.compute().item() for metric in evaluator.test_metrics}

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


def test_evaluator_in_a_trainer():
    data = make_data("smooth")

    got = run_test(Recorded(), make_batches(*data))

    assert got == pytest.approx(reference_seven("smooth"), abs=1e-4)


@pytest.mark.parametrize("barebones", [False, True])
def test_evaluator_without_masks_leaves_the_pixel_metrics_out(barebones):
    """The same evaluator with masks, without, with: nothing is carried over, nothing is said about missing updates."""
    data, model = make_data("smooth"), Recorded()

    results = []
    for masks in (True, False, True):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            results.append(run_test(model, make_batches(*data[: 4 if masks else 3]), barebones))
        assert not [warning for warning in caught if "update" in str(warning.message)]

    assert results[0] == results[2] == pytest.approx(reference_seven("smooth"), abs=1e-4)
    assert results[1] == {name: value for name, value in results[0].items() if name.startswith("image")}


@pytest.mark.parametrize("anomalous", [False, True])
def test_one_class_gives_nan(anomalous):
    scores, labels, maps, masks = make_data("smooth")
    labels, masks = np.full_like(labels, anomalous), np.full_like(masks, anomalous)

    got = run_test(Recorded(), make_batches(scores, labels, maps, masks))

    assert list(got) == list(COLUMNS)
    assert np.isnan(list(got.values())).all()
    assert np.isnan(list(seven_metrics(scores, labels, maps, masks).values())).all()


def test_maps_without_masks_give_the_image_metrics():
    scores, labels, maps, _ = make_data("smooth")

    assert list(seven_metrics(scores, labels, maps)) == list(COLUMNS)[:3]


def test_evaluator_has_no_weights_and_can_be_pickled():
    evaluator = paper_evaluator()

    assert not evaluator.state_dict()
    assert [metric.name for metric in pickle.loads(pickle.dumps(evaluator)).test_metrics] == list(COLUMNS)  # noqa: S301


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


def test_evaluator_refuses_masks_of_another_size():
    scores, labels, maps, masks = make_data("smooth")
    batch = make_batches(scores, labels, maps, masks[:, ::2, ::2])[0]

    with pytest.raises(ValueError, match=r"must have the same shape, got \(4, 1, 48, 48\) and \(4, 24, 24\)"):
        paper_evaluator().on_test_batch_end(None, None, None, batch, 0)


def test_table_shows_per_cent_and_dashes():
    table = metrics_table(
        {"screw": dict.fromkeys(COLUMNS, 0.98765), "nut": {"image_AUROC": 1.0, "image_AP": torch.nan}}
    )

    console = Console(width=120)
    with console.capture() as capture:
        console.print(table)
    header, screw, nut = (line for line in capture.get().splitlines() if any(c.isalnum() for c in line))
    cells = [[cell.strip() for cell in line.strip("┃│").replace("┃", "│").split("│")] for line in (header, screw, nut)]
    assert cells[0] == ["category", "I-AUROC", "I-AP", "I-F1max", "P-AUROC", "P-AP", "P-F1max", "AUPRO"]
    assert cells[1] == ["screw", *["98.77"] * 7]
    assert cells[2] == ["nut", "100.00", *["-"] * 6]
