# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Thresholds of each category against those that a post-processor of its own chooses."""

from types import SimpleNamespace

import pytest
import torch
from anomalib.data import ImageBatch, InferenceBatch
from lightning.pytorch.trainer.states import TrainerFn
from pandas import DataFrame

from anomalib_inp import InpPostProcessor
from anomalib_inp.thresholds.choose import BinnedScales, CommonScales

CATEGORIES = ("bolt", "nut", "washer")


def make_images(anomalous: bool, seed: int = 0, count: int = 8) -> dict[str, ImageBatch]:
    """Images of three categories whose scores differ by a factor of ten; the last has no masks."""
    generator = torch.Generator().manual_seed(seed)
    images = {}
    for name, scale in zip(CATEGORIES, (0.1, 1.0, 10.0), strict=True):
        labels = torch.arange(count) % 2 if anomalous else torch.zeros(count, dtype=torch.long)
        masks = (torch.rand(count, 8, 8, generator=generator) < 0.3) & labels[:, None, None].bool()
        # Blocks of 4 x 4 equal pixels: the common thresholds of normal images look at every fourth pixel.
        maps = torch.rand(count, 2, 2, generator=generator).repeat_interleave(4, 1).repeat_interleave(4, 2)
        images[name] = ImageBatch(
            image=torch.zeros(count, 3, 8, 8),
            image_path=[f"{name}/{index}.png" for index in range(count)],
            pred_score=scale * (torch.rand(count, generator=generator) + 0.5 * labels),
            anomaly_map=scale * (maps + 0.7 * masks),
            gt_label=labels,
            gt_mask=None if name == "washer" and anomalous else masks,
        )
    return images


def table_of(images: dict[str, ImageBatch]) -> DataFrame:
    rows = []
    for name, batch in images.items():
        for path, label in zip(batch.image_path, batch.gt_label, strict=True):
            mask = "mask.png" if label and batch.gt_mask is not None else None
            rows.append({"image_path": path, "category": name, "label_index": int(label), "mask_path": mask})
    return DataFrame(rows)


def mixed(images: dict[str, ImageBatch]) -> list[ImageBatch]:
    """Batches of all categories; who has no masks is given empty ones, as joined data do."""
    batches = []
    for start in (0, 4):
        part = slice(start, start + 4)
        joined = {
            name: torch.cat([getattr(batch, name)[part] for batch in images.values()])
            for name in ("image", "pred_score", "anomaly_map", "gt_label")
        }
        masks = [torch.zeros(4, 8, 8).bool() if b.gt_mask is None else b.gt_mask[part] for b in images.values()]
        paths = [path for batch in images.values() for path in batch.image_path[part]]
        batches.append(ImageBatch(**joined, gt_mask=torch.cat(masks), image_path=paths))
    return batches


def validate(post: InpPostProcessor, batches: list[ImageBatch], samples: DataFrame | None) -> SimpleNamespace:
    """What Lightning calls during a validation in one process."""
    data = SimpleNamespace(samples=samples)
    trainer = SimpleNamespace(
        strategy=SimpleNamespace(reduce=lambda value, reduce_op: value),
        state=SimpleNamespace(fn=TrainerFn.FITTING),
        global_step=0,
        datamodule=None if samples is None else SimpleNamespace(val_data=data, test_data=data, name="MultiCategory"),
        world_size=1,
        global_rank=0,
    )
    module = SimpleNamespace(device=torch.device("cpu"))
    post.on_validation_epoch_start(trainer, module)
    for index, batch in enumerate(batches):
        post.on_validation_batch_end(trainer, module, batch, batch, index)
    post.on_validation_epoch_end(trainer, module)
    return trainer


def threshold_and_span(post: InpPostProcessor, kind: str, category: str) -> torch.Tensor:
    scale = post.scale(kind, category)
    return torch.tensor([float(scale.threshold), float(scale.span)])


@pytest.fixture(params=[True, False], ids=["with anomalous images", "normal images only"])
def images(request: pytest.FixtureRequest) -> dict[str, ImageBatch]:
    return make_images(request.param)


def test_each_category_has_the_thresholds_of_its_own_images(images: dict[str, ImageBatch]) -> None:
    post = InpPostProcessor(normal_image_quantile=0.8, normal_pixel_quantile=0.9)
    validate(post, mixed(images), table_of(images))
    assert list(post.ranges) == list(CATEGORIES)
    for name, batch in images.items():
        alone = InpPostProcessor(normal_image_quantile=0.8, normal_pixel_quantile=0.9)
        validate(alone, [batch], None)
        assert alone.ranges == {}
        torch.testing.assert_close(*(threshold_and_span(each, "image", name) for each in (post, alone)))
        # pixels are counted in bins of 0.1 %
        own, expected = (threshold_and_span(each, "pixel", name) for each in (post, alone))
        if batch.gt_mask is None:  # how high its anomalous pixels go is not counted
            own, expected = own[0], expected[0]
        torch.testing.assert_close(own, expected, rtol=0.003, atol=0)


def test_pixels_of_normal_images_by_hand() -> None:
    images = make_images(anomalous=False)
    post = InpPostProcessor(normal_pixel_quantile=0.9)
    validate(post, mixed(images), table_of(images))
    for name, batch in images.items():
        expected = batch.anomaly_map.flatten().kthvalue(round(0.9 * 8 * 64 + 0.49)).values.item()
        assert post.scale("pixel", name).threshold == pytest.approx(expected, rel=0.002)


def test_common_thresholds_leave_out_anomalous_images_without_masks() -> None:
    images = make_images(anomalous=True)
    post, other = InpPostProcessor(), InpPostProcessor()
    validate(post, mixed(images), table_of(images))
    validate(other, [images["bolt"], images["nut"]], None)
    assert post.scale("pixel").threshold == other.scale("pixel").threshold


def test_images_are_read_by_the_thresholds_of_their_category(images: dict[str, ImageBatch]) -> None:
    post = InpPostProcessor()
    trainer = validate(post, mixed(images), table_of(images))
    post.on_test_start(trainer, SimpleNamespace())
    for batch in mixed(images):
        post.post_process_batch(batch)
        for index, path in enumerate(batch.image_path):
            chosen = InpPostProcessor(category=path.split("/")[0])
            chosen.load_checkpoint_config({**post.checkpoint_config(), "category": None})
            expected = chosen(
                InferenceBatch(
                    pred_score=batch.raw_score[index : index + 1], anomaly_map=batch.raw_map[index : index + 1, None]
                )
            )
            torch.testing.assert_close(batch.pred_score[index], expected.pred_score[0])
            torch.testing.assert_close(batch.anomaly_map[index], expected.anomaly_map[0, 0])
            assert batch.pred_label[index] == expected.pred_label[0]
            assert torch.equal(batch.pred_mask[index], expected.pred_mask[0, 0])


def test_images_of_no_known_category_are_read_by_the_common_ones(images: dict[str, ImageBatch]) -> None:
    post, common = InpPostProcessor(), InpPostProcessor(per_category=False)
    for each in (post, common):
        trainer = validate(each, mixed(images), table_of(images))
        each.on_test_start(trainer, SimpleNamespace())
    assert common.ranges == {}
    batches = mixed(images)[:1] * 2
    batches[0].image_path = [f"other/{path}" for path in batches[0].image_path]
    post.post_process_batch(batches[0])
    expected = common(InferenceBatch(pred_score=batches[0].raw_score, anomaly_map=batches[0].raw_map))
    torch.testing.assert_close(batches[0].pred_score, expected.pred_score)
    torch.testing.assert_close(batches[0].anomaly_map, expected.anomaly_map)


def test_one_category_needs_none_of_its_own(images: dict[str, ImageBatch]) -> None:
    post = InpPostProcessor()
    validate(post, [images["bolt"]], table_of({"bolt": images["bolt"]}))
    assert post.ranges == {}


def test_thresholds_of_a_category_by_hand(images: dict[str, ImageBatch]) -> None:
    post = InpPostProcessor()
    validate(post, mixed(images), table_of(images))
    before, common = dict(post.ranges), post.image_threshold.clone()
    post.set_thresholds(image=0.25, category="nut")
    assert post.ranges["nut"][0].threshold == 0.25
    assert post.ranges["nut"][1] == before["nut"][1]
    assert {**post.ranges, "nut": None} == {**before, "nut": None}
    assert post.image_threshold == common
    with pytest.raises(ValueError, match="no thresholds of the category 'screw'; there are those of bolt, nut, washer"):
        post.set_thresholds(image=0.25, category="screw")
    post.category = "screw"
    with pytest.raises(ValueError, match="no thresholds of the category 'screw'"):
        post(InferenceBatch(pred_score=torch.rand(1), anomaly_map=torch.rand(1, 1, 2, 2)))


def test_what_is_not_inspected_chooses_nothing(images: dict[str, ImageBatch]) -> None:
    """Pixels of the right half are ten thousand; thresholds are those of the left half by itself."""
    posts = []
    for inspected in (True, False):
        given = {}
        for name, batch in images.items():
            maps, masks = batch.anomaly_map[..., ::4, ::4][..., :1], batch.gt_mask
            masks = None if masks is None else masks[..., ::4, ::4][..., :1]
            if inspected:
                maps = torch.cat([maps, torch.full_like(maps, 1e4)], dim=-1)
                masks = None if masks is None else torch.cat([masks, masks], dim=-1)
            given[name] = ImageBatch(
                image=batch.image,
                image_path=batch.image_path,
                pred_score=batch.pred_score,
                anomaly_map=maps,
                gt_label=batch.gt_label,
                gt_mask=masks,
            )
            if inspected:
                given[name].inspected = torch.tensor([[True, False]]).expand(2, 2)
        posts.append(InpPostProcessor())
        validate(posts[-1], list(given.values()), table_of(given))
    for name in CATEGORIES:
        assert posts[0].ranges[name][1] == pytest.approx(posts[1].ranges[name][1])
    assert posts[0].pixel_max < 1e3


@pytest.mark.parametrize("kind", [torch.bool, torch.long])
@pytest.mark.parametrize("anomalous", [True, False])
def test_counted_pixels_choose_what_kept_ones_choose(kind: torch.dtype, anomalous: bool) -> None:
    """To the width of a bin, whatever labels are made of: an Engine gives them as bool."""
    torch.manual_seed(0)
    scores, labels = torch.rand(6), torch.tensor([0, 0, 1, 0, 1, 1] if anomalous else [0] * 6).to(kind)
    maps = torch.rand(6, 15, 20).repeat_interleave(4, 1).repeat_interleave(4, 2)  # as above
    masks = (torch.rand(maps.shape) > 0.9) & (labels == 1).view(-1, 1, 1)
    maps = maps + masks
    kept, counted = (made(0.9, 0.98) for made in (CommonScales, BinnedScales))
    for made in (kept, counted):
        for part in (slice(0, 2), slice(2, 6)):
            made.update(scores[part], labels[part], maps[part], masks[part], torch.ones(len(scores[part]), dtype=bool))
    expected, found = kept.compute(), counted.compute()
    assert found[0] == expected[0]
    assert float(found[1].threshold) == pytest.approx(float(expected[1].threshold), rel=0.005)
    assert found[2] == expected[2]
