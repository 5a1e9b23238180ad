# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

from typing import Any

import numpy as np
import pytest
from drawn import BOTTOM, CENTRE, GREEN, HEIGHT, LEFT, RED, RIGHT, TOP, WIDTH, centroid, inside, panels, square_map
from PIL import Image

from anomalib_inp.frame import WHOLE_IMAGE, CropBox
from anomalib_inp.pictures.strip import _FOUND, LINE, _mask_label, _score_text, draw_result, panel_of


@pytest.mark.parametrize("box", [WHOLE_IMAGE, CENTRE, CropBox(0.25, 0.0, 1.0, 0.5)])
@pytest.mark.parametrize("map_size", [32, 256, 392])
def test_heat_and_contours_lie_on_the_defect(
    image: np.ndarray, gt_mask: np.ndarray, box: CropBox, map_size: int
) -> None:
    anomaly_map = square_map(box, map_size)
    strip = draw_result(image, anomaly_map, pred_mask=anomaly_map > 0.5, gt_mask=gt_mask, crop_box=box)
    plain, truth, heat, found = panels(strip)
    middle = ((LEFT + RIGHT) / 2, (TOP + BOTTOM) / 2)
    tolerance = 2 if map_size > 32 else WIDTH / map_size

    difference = np.abs(heat - plain).sum(axis=2) * inside(box, heat.shape)
    assert centroid(difference) == pytest.approx(middle, abs=tolerance)
    assert centroid((found == RED).all(axis=2)) == pytest.approx(middle, abs=tolerance)
    assert centroid((truth == GREEN).all(axis=2)) == pytest.approx(middle, abs=1)


@pytest.mark.parametrize("box", [WHOLE_IMAGE, CENTRE])
def test_panels_keep_the_aspect_ratio_and_agree_in_size(image: np.ndarray, gt_mask: np.ndarray, box: CropBox) -> None:
    anomaly_map = square_map(box)
    drawn = panels(draw_result(image, anomaly_map, pred_mask=anomaly_map > 0.5, gt_mask=gt_mask, crop_box=box))
    assert {panel.shape for panel in drawn} == {(256, round(256 * WIDTH / HEIGHT), 3)}


def test_outside_the_crop_is_marked_and_never_hot(image: np.ndarray) -> None:
    anomaly_map = np.ones((256, 256), np.float32)
    plain, heat, found = panels(draw_result(image, anomaly_map, pred_mask=anomaly_map > 0.5, crop_box=CENTRE))
    outside = ~inside(CENTRE, heat.shape, margin=-3)
    for panel in (heat, found):
        assert np.abs(panel - plain)[outside].mean() > 30
        assert np.ptp(panel[outside], axis=1).max() == 0, "the image is grey, so colour outside would be heat"
    within = inside(CENTRE, heat.shape)
    assert np.ptp(heat[within], axis=1).min() > 100
    tinted = inside(CENTRE, heat.shape, margin=5)
    np.testing.assert_allclose(found[tinted], 0.8 * plain[tinted] + 0.2 * np.array([235, 24, 24]), atol=24)


def test_nothing_found_leaves_the_image_as_it_is(image: np.ndarray) -> None:
    plain, heat = panels(draw_result(image, np.full((256, 256), 0.1)))
    np.testing.assert_array_equal(heat, plain)


def test_colours_are_not_stretched_per_image(image: np.ndarray) -> None:
    """The colour at a place depends on its own value only, and grows away from the image with it."""
    low = draw_result(image, np.full((4, 4), 0.5))
    mixed = np.full((4, 4), 0.5)
    mixed[3, 3] = 1.0
    plain, heat_low = panels(low)
    _, heat_mixed = panels(draw_result(image, mixed))
    np.testing.assert_array_equal(heat_low[:100], heat_mixed[:100])
    change = [np.abs(panels(draw_result(image, np.full((4, 4), value)))[1] - plain).sum() for value in (0.3, 0.5, 0.7)]
    assert change == sorted(change)
    assert change[0] > 0


def test_raw_maps_have_their_own_range(image: np.ndarray) -> None:
    anomaly_map = square_map(WHOLE_IMAGE)
    _, normalised = panels(draw_result(image, anomaly_map))
    _, raw = panels(draw_result(image, anomaly_map * 0.3 + 0.1, vmin=0.1, vmax=0.4))
    np.testing.assert_allclose(raw, normalised, atol=1)


def test_missing_masks_leave_their_panels_out(image: np.ndarray, gt_mask: np.ndarray) -> None:
    anomaly_map = square_map(WHOLE_IMAGE)
    assert len(panels(draw_result(image, anomaly_map))) == 2
    assert len(panels(draw_result(image, anomaly_map, gt_mask=gt_mask))) == 3
    assert len(panels(draw_result(image, anomaly_map, pred_mask=anomaly_map > 0.5))) == 3


def test_a_thin_scratch_in_a_large_mask_stays_visible(image: np.ndarray) -> None:
    gt_mask = np.zeros((2000, 3200), bool)
    gt_mask[301, 500:2500] = True
    _, truth, _ = panels(draw_result(image, square_map(WHOLE_IMAGE), gt_mask=gt_mask))
    scratch = (truth == 110).all(axis=2)
    assert scratch.sum(axis=1).max() == pytest.approx(2000 / 3200 * truth.shape[1], abs=2)


def test_headline_follows_score_and_verdict(image: np.ndarray) -> None:
    anomaly_map = square_map(WHOLE_IMAGE)
    arguments: list[dict[str, Any]] = [{}, {"score": 0.8}, {"score": 0.8, "anomalous": True}, {"anomalous": False}]
    arguments += [{"anomalous": True, "truth": False}, {"anomalous": False, "truth": True}]
    strips = [np.asarray(draw_result(image, anomaly_map, **argument)) for argument in arguments]
    headlines = [strip[: strip.shape[0] - 256 - 40, :200] for strip in strips]
    assert (headlines[0] == 255).all()
    assert len({headline.tobytes() for headline in headlines}) == len(arguments)


def test_a_right_verdict_is_not_marked(image: np.ndarray) -> None:
    for anomalous in (True, False):
        plain, told = (
            np.asarray(draw_result(image, square_map(WHOLE_IMAGE), anomalous=anomalous, truth=truth))
            for truth in (None, anomalous)
        )
        np.testing.assert_array_equal(plain, told)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "I;16"])
def test_any_image_mode(mode: str) -> None:
    image = Image.fromarray(np.full((20, 30), 1000, np.uint16)) if mode == "I;16" else Image.new(mode, (30, 20))
    assert len(panels(draw_result(image, np.zeros((8, 8)), height=64), height=64)) == 2


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 1), (1, 30), (30, 1), (1, 1), (1, 5000), (5000, 1, 3)])
@pytest.mark.parametrize("box", [WHOLE_IMAGE, CENTRE])
def test_grey_and_thin_arrays(shape: tuple[int, ...], box: CropBox) -> None:
    mask = np.ones((256, 256), bool)
    strip = draw_result(
        np.full(shape, 90, np.uint8),
        mask.astype(np.float32),
        pred_mask=mask,
        gt_mask=np.ones(shape[:2], bool),
        crop_box=box,
        score=1.0,
        anomalous=True,
        height=32,
    )
    assert strip.height < 100
    assert strip.width < 4 * 4 * 32 + 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"anomaly_map": np.zeros((1, 8, 8))}, r"anomaly_map must have the shape .* got \(1, 8, 8\)"),
        ({"pred_mask": np.zeros((8, 8, 1), bool)}, "pred_mask must have the shape"),
        ({"gt_mask": np.zeros((0, 8), bool)}, "gt_mask must have the shape"),
        ({"crop_box": CropBox(0.5, 0, 0.5, 1)}, "crop_box must hold fractions"),
        ({"crop_box": CropBox(0, 0, 392, 392)}, "crop_box must hold fractions"),
        ({"vmax": 0.0}, "vmax must exceed vmin"),
        ({"height": 0}, "height must be positive"),
        ({"image": np.zeros((8, 8, 3))}, "must be uint8 .* got float64"),
        ({"image": np.zeros((3, 8, 8), np.uint8)}, "channels last"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    arguments = {"image": np.zeros((8, 8, 3), np.uint8), "anomaly_map": np.zeros((8, 8))} | arguments
    with pytest.raises(ValueError, match=message):
        draw_result(**arguments)


def test_pictures_say_where_image_and_pixels_disagree(image: np.ndarray) -> None:
    found, nothing = square_map(WHOLE_IMAGE) > 0.5, np.zeros((8, 8), bool)
    red, grey = np.array(_FOUND), np.array(LINE)

    def outlined(anomalous: bool | None, mask: np.ndarray, colour: np.ndarray) -> bool:
        strip = draw_result(image, square_map(WHOLE_IMAGE), pred_mask=mask, anomalous=anomalous)
        return bool((panels(strip)[-1] == colour).all(axis=2).any())

    assert outlined(True, found, red)
    assert outlined(None, found, red)
    assert not outlined(False, found, red)
    assert outlined(False, found, grey)
    said = {
        (True, True): "predicted mask",
        (True, None): "predicted mask",
        (True, False): "above the pixel threshold only",
        (False, False): "predicted mask: empty",
        (False, None): "predicted mask: empty",
        (False, True): "no pixel above its threshold",
    }
    assert {key: _mask_label(*key) for key in said} == said
    labels = [
        np.asarray(draw_result(image, square_map(WHOLE_IMAGE), pred_mask=nothing, anomalous=anomalous))[:50, 300:]
        for anomalous in (None, True)
    ]
    assert not np.array_equal(*labels)


def test_raw_scores_stand_beside_those_that_saturate(image: np.ndarray) -> None:
    assert _score_text(0.994, 0.4312) == "score 0.99 (raw 0.4312)"
    assert _score_text(0.43, 0.43) == _score_text(0.43, None) == "score 0.43"
    assert _score_text(None, None) == ""
    same, other = (
        np.asarray(draw_result(image, square_map(WHOLE_IMAGE), score=0.99, raw_score=raw))[:30] for raw in (0.41, 0.42)
    )
    assert not np.array_equal(same, other)


@pytest.mark.parametrize("place", [(601, 333), (3, 1590), (1196, 800)])
def test_a_small_peak_of_a_large_map_is_hot_and_shown_closer(place: tuple[int, int]) -> None:
    """However small: the panel of the map steps over no pixel, and a last one shows the pixels around it."""
    row, column = place
    rng = np.random.default_rng(0)
    large = np.repeat(rng.integers(90, 160, (1200, 1600, 1)), 3, axis=2).astype(np.uint8)
    anomaly_map = np.zeros((600, 800), np.float32)
    anomaly_map[row // 2, column // 2] = 1
    large[row, column] = (10, 20, 250)
    plain, heat, found, closer = panels(draw_result(large, anomaly_map, pred_mask=anomaly_map > 0.5))
    hot = np.ptp(heat.astype(int), axis=2) > 100
    assert hot.any()
    assert centroid(hot) == pytest.approx((column * WIDTH / 1600, row * HEIGHT / 1200), abs=2)
    (y,), (x,) = np.nonzero((closer == (10, 20, 250)).all(axis=2))  # its own pixels, one to one
    height, width = closer.shape[:2]
    if height < row < 1200 - height and width < column < 1600 - width:
        np.testing.assert_array_equal(
            closer[y - 40 : y - 10, x - 40 : x + 40], large[row - 40 : row - 10, column - 40 : column + 40]
        )
    assert ((closer == RED).all(axis=2)).sum() >= 8  # outlined
    assert found.shape == closer.shape == plain.shape


def test_what_is_kept_of_an_image_draws_what_the_image_draws() -> None:
    for height in (300, 1100):
        image = np.random.default_rng(0).integers(0, 256, (height, 500, 3), dtype=np.uint8)
        anomaly_map = np.random.default_rng(1).random((64, 64))
        kept, whole = (np.asarray(draw_result(each, anomaly_map)) for each in (panel_of(image), image))
        np.testing.assert_array_equal(kept, whole)


def test_an_image_that_fits_has_no_closer_panel() -> None:
    assert len(panels(draw_result(np.zeros((1024, 900, 3), np.uint8), np.zeros((600, 400))))) == 2
