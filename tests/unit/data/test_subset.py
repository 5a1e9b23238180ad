# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Worked by hand: five images of two categories, and two processes."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from anomalib.data import ImageBatch
from pandas import DataFrame
from torch.utils.data import DistributedSampler

from anomalib_inp.data.subset import Subset

ROWS = [
    ("a.png", "nut", 0, ""),
    ("b.png", "bolt", 1, ["b/000.png", "b/001.png"]),  # as MVTec LOCO has them
    ("c.png", "nut", 1, None),
    ("d.png", "bolt", 0, "not_there.png"),  # as BTech has them
    ("e.png", "nut", 0, float("nan")),
]
PATHS = [path for path, *_ in ROWS]


def table() -> DataFrame:
    return DataFrame(ROWS, columns=["image_path", "category", "label_index", "mask_path"])


def batch_of(*paths: str) -> Any:
    return ImageBatch(image=torch.zeros(len(paths), 3, 2, 2), image_path=list(paths))


def run(samples: DataFrame, rank: int = 0, world_size: int = 1) -> Any:
    data = SimpleNamespace(test_data=SimpleNamespace(samples=samples), name="MultiCategory")
    return SimpleNamespace(datamodule=data, global_rank=rank, world_size=world_size)


def test_a_batch_is_told_what_it_is_of() -> None:
    subset = Subset(table())
    assert subset.names == ["bolt", "nut"]
    assert subset.has_masks == [True, False]
    assert len(subset) == 5
    batch = batch_of("c.png", "b.png", "a.png")
    membership = subset.attach(batch)
    assert membership.names == ["nut", "bolt", "nut"]
    assert membership.indices.tolist() == [1, 0, 1]
    assert membership.counted.tolist() == [True, True, True]
    assert membership.masked.tolist() == [False, True, False]
    assert batch.membership is membership
    assert Subset().attach(batch) is membership  # decided once


def test_two_processes_count_each_image_once() -> None:
    counted = []
    for rank in range(2):
        # what Lightning gives each process: of five images three, so that one is handed out twice
        given = [PATHS[row] for row in DistributedSampler(PATHS, num_replicas=2, rank=rank, shuffle=False)]
        assert given == [["a.png", "c.png", "e.png"], ["b.png", "d.png", "a.png"]][rank]
        membership = Subset.from_trainer(run(table(), rank, world_size=2), "test").attach(batch_of(*given))
        assert membership.counted.tolist() == [[True, True, True], [True, True, False]][rank]
        counted += [path for path, here in zip(given, membership.counted, strict=True) if here]
    assert sorted(counted) == PATHS


def test_a_category_without_anomalous_images_lacks_no_masks() -> None:
    samples = table()
    assert Subset(samples[samples.label_index == 0]).has_masks == [True, True]
    assert Subset(samples.drop(columns="mask_path")).has_masks == [False, False]


def test_without_a_column_all_are_of_one_category() -> None:
    trainer = run(table().drop(columns="category"))
    assert Subset.from_trainer(trainer, "test").names == ["MultiCategory"]
    trainer.datamodule.category = "screw"
    other = table().drop(columns="category")
    trainer.datamodule.test_data.samples = other
    assert Subset.from_trainer(trainer, "test").attach(batch_of("a.png")).names == ["screw"]


@pytest.mark.parametrize("paths", [["a.png", "x.png"], None])
def test_of_other_images_there_is_nothing_to_say(paths: list[str] | None) -> None:
    for subset in (Subset(table(), rank=1, world_size=2), Subset()):
        membership = subset.attach(ImageBatch(image=torch.zeros(2, 3, 2, 2), image_path=paths))
        assert membership.names == ["", ""]
        assert membership.indices.tolist() == [0, 0]
        assert membership.counted.all()
        assert membership.masked.all()


def test_it_is_made_once_and_anew_when_images_are_taken_out() -> None:
    trainer = run(table())
    subset = Subset.from_trainer(trainer, "test")
    assert Subset.from_trainer(trainer, "test") is subset
    trainer.datamodule.test_data.samples = table()[1:]
    assert len(Subset.from_trainer(trainer, "test")) == 4
    assert len(Subset.from_trainer(trainer, "val")) == len(Subset.from_trainer(SimpleNamespace(), "test")) == 0
