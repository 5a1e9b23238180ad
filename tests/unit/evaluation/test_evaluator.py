# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import json
import pickle
import warnings

import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch
from lightning import LightningDataModule
from lightning.pytorch import LightningModule, Trainer
from pandas import DataFrame
from reference_metrics import make_data, reference_seven
from torch.utils.data import DataLoader

from anomalib_inp.evaluation.evaluator import PaperEvaluator
from anomalib_inp.evaluation.metrics import COLUMNS

KINDS = ("random", "smooth", "tied")


class Recorded(LightningModule):
    """Replays predictions, as a model would leave them on the batch."""

    def __init__(self, **kwargs):
        super().__init__()
        self.evaluator = PaperEvaluator(**kwargs)

    def configure_callbacks(self):
        return [self.evaluator]

    def test_step(self, batch, batch_idx):
        return batch


class Table:
    """What the evaluator asks of a data set."""

    def __init__(self, samples):
        self.samples = samples


class ManyCategories(LightningDataModule):
    """The data of several kinds, each a category, in batches that mix them; the last has no masks."""

    def __init__(self):
        super().__init__()
        self.items = []
        rows = []
        for kind in (*KINDS, "maskless"):
            scores, labels, maps, masks = make_data("smooth" if kind == "maskless" else kind)
            for index in range(len(scores)):
                path = f"{kind}/{index:03d}.png"
                mask = f"{kind}/{index:03d}_mask.png" if labels[index] and kind != "maskless" else None
                rows.append(
                    {"image_path": path, "category": kind, "label_index": int(labels[index]), "mask_path": mask}
                )
                truth = np.zeros_like(masks[index]) if kind == "maskless" else masks[index]
                self.items.append((path, scores[index], labels[index], maps[index], truth))
        order = np.random.default_rng(0).permutation(len(rows))
        self.items = [self.items[index] for index in order]
        self.test_data = Table(DataFrame([rows[index] for index in order]))

    def test_dataloader(self):
        return DataLoader(self.items, batch_size=5, collate_fn=batch_of)


def batch_of(items):
    paths, scores, labels, maps, masks = zip(*items, strict=True)
    batch = ImageBatch(
        image=torch.zeros(len(paths), 3, 8, 8),
        image_path=list(paths),
        gt_label=torch.tensor(np.array(labels)),
        gt_mask=torch.from_numpy(np.stack(masks)),
    )
    batch.raw_score = torch.tensor(np.array(scores))
    batch.raw_map = torch.from_numpy(np.stack(maps))[:, None]
    return batch


def make_batches(scores, labels, maps, masks=None, size=4):
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


def run_test(model, data, folder, barebones=False, verbose=False):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    kind = {"barebones": True} if barebones else {"logger": False, **quiet}
    trainer = Trainer(accelerator="cpu", default_root_dir=folder, **kind)
    loaders = {"datamodule": data} if isinstance(data, LightningDataModule) else {"dataloaders": data}
    trainer.test(model, **loaders, verbose=verbose)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def loader(batches):
    return DataLoader(batches, batch_size=None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("exact_images", [2500, 0])
def test_batches_give_the_same_as_the_whole(kind, exact_images, tmp_path):
    """Each batch alone decides nothing: some reach above 1, some do not, and one has normal images only."""
    scores, labels, maps, masks = make_data(kind)
    order = np.argsort(labels, kind="stable")
    batches = make_batches(*(values[order] for values in (scores, labels, maps, masks)))
    assert not all((batch.raw_map > 1).any() for batch in batches)
    assert any((batch.raw_map > 1).any() for batch in batches)

    got = run_test(Recorded(exact_images=exact_images), loader(batches), tmp_path)

    assert list(got) == list(COLUMNS)
    assert got == pytest.approx(reference_seven(kind), abs=1e-3 if exact_images == 0 else 1e-4)


def test_every_category_and_the_mean(tmp_path, capsys):
    got = run_test(Recorded(), ManyCategories(), tmp_path, verbose=True)

    for kind in KINDS:
        own = {key: got[f"{kind}/{key}"] for key in COLUMNS}
        assert own == pytest.approx(reference_seven(kind), abs=1e-4)
    assert "maskless/pixel_AP" not in got
    assert got["maskless/image_AP"] == pytest.approx(reference_seven("smooth")["image_AP"], abs=1e-4)
    kinds = {"image": (*KINDS, "smooth"), "pixel": KINDS}
    for key in COLUMNS:
        mean = np.mean([reference_seven(kind)[key] for kind in kinds[key.split("_")[0]]])
        assert got[key] == pytest.approx(mean, abs=1e-4)
    told = json.loads((tmp_path / "metrics.json").read_text())
    assert list(told) == ["maskless", "random", "smooth", "tied", "mean"]
    assert told["mean"] == pytest.approx({key: got[key] for key in COLUMNS})
    shown = capsys.readouterr().out
    assert "maskless" in shown
    assert "random/image_AP" not in shown  # one table, not two


@pytest.mark.parametrize("barebones", [False, True])
def test_without_masks_the_pixel_metrics_are_left_out(barebones, tmp_path):
    """The same evaluator with masks, without, with: nothing is carried over, nothing is said about missing updates."""
    data, model = make_data("smooth"), Recorded()

    results = []
    for masks in (True, False, True):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            batches = make_batches(*data[: 4 if masks else 3])
            results.append(run_test(model, loader(batches), tmp_path, barebones))
        assert not [warning for warning in caught if "update" in str(warning.message)]

    assert results[0] == results[2] == pytest.approx(reference_seven("smooth"), abs=1e-4)
    assert results[1] == {name: value for name, value in results[0].items() if name.startswith("image")}


@pytest.mark.parametrize("anomalous", [False, True])
def test_one_class_gives_nan(anomalous, tmp_path):
    scores, labels, maps, masks = make_data("smooth")
    labels, masks = np.full_like(labels, anomalous), np.full_like(masks, anomalous)

    got = run_test(Recorded(), loader(make_batches(scores, labels, maps, masks)), tmp_path)

    assert list(got) == list(COLUMNS)
    assert np.isnan(list(got.values())).all()


def test_nothing_of_a_test_is_saved_with_the_model(tmp_path):
    model = Recorded()
    run_test(model, loader(make_batches(*make_data("smooth"))), tmp_path)

    assert not model.evaluator.state_dict()
    assert len(pickle.dumps(model.evaluator)) < 10_000


def test_masks_of_another_size_are_refused(tmp_path):
    scores, labels, maps, masks = make_data("smooth")

    with pytest.raises(ValueError, match=r"must have the same shape, got \(4, 1, 48, 48\) and \(4, 24, 24\)"):
        run_test(Recorded(), loader(make_batches(scores, labels, maps, masks[:, ::2, ::2])), tmp_path)
