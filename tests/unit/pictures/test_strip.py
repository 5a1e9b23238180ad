# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch, ImageItem, NumpyImageBatch, NumpyImageItem
from anomalib.visualization import ImageVisualizer
from PIL import Image

from anomalib_inp.frame import WHOLE_IMAGE, CropBox
from anomalib_inp.pictures.gallery import gallery
from anomalib_inp.pictures.strip import draw_result
from anomalib_inp.pictures.visualizer import InpVisualizer
from anomalib_inp.preprocessing import InpPreProcessor

CENTRE = InpPreProcessor((448, 448), (392, 392)).crop_box
HEIGHT, WIDTH = 200, 320
TOP, BOTTOM, LEFT, RIGHT = 60, 90, 200, 230
RED, GREEN = (235, 32, 38), (0, 214, 143)


@pytest.fixture
def image() -> np.ndarray:
    pixels = np.full((HEIGHT, WIDTH, 3), 110, np.uint8)
    pixels[TOP:BOTTOM, LEFT:RIGHT] = 200
    return pixels


@pytest.fixture
def gt_mask() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[TOP:BOTTOM, LEFT:RIGHT] = True
    return mask


def square_map(box: CropBox, size: int = 256) -> np.ndarray:
    """The square as a model that inspects only the crop sees it: 1 where the centre of a map pixel lies on it."""
    centres = (np.arange(size) + 0.5) / size
    x = (box.left + centres * (box.right - box.left)) * WIDTH
    y = (box.top + centres * (box.bottom - box.top)) * HEIGHT
    return np.outer((y > TOP) & (y < BOTTOM), (x > LEFT) & (x < RIGHT)).astype(np.float32)


def panels(strip: Image.Image, height: int = 256) -> list[np.ndarray]:
    """Cut the panels out of a strip: whatever stands on the white paper and is a framed panel high."""
    pixels = np.asarray(strip)
    _, _, boxes, _ = cv2.connectedComponentsWithStats((pixels.min(axis=2) < 255).astype(np.uint8), connectivity=8)
    framed = sorted((int(x), int(y), int(w), int(h)) for x, y, w, h, _ in boxes[1:] if h == height + 2)
    return [pixels[y + 1 : y + h - 1, x + 1 : x + w - 1].astype(int) for x, y, w, h in framed]


def centroid(weights: np.ndarray) -> tuple[float, float]:
    """Centre of mass ``(x, y)`` in pixels of the original image."""
    rows, columns = np.indices(weights.shape)
    x = ((columns + 0.5) * weights).sum() / weights.sum() / weights.shape[1] * WIDTH
    y = ((rows + 0.5) * weights).sum() / weights.sum() / weights.shape[0] * HEIGHT
    return x, y


def inside(box: CropBox, shape: tuple[int, ...], margin: int = 2) -> np.ndarray:
    mask = np.zeros(shape[:2], bool)
    mask[
        int(box.top * shape[0]) + margin : int(box.bottom * shape[0]) - margin,
        int(box.left * shape[1]) + margin : int(box.right * shape[1]) - margin,
    ] = True
    return mask


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


class TestGallery:
    strips = [Image.new("RGB", size, (10, 20, 30)) for size in [(100, 40), (80, 50), (120, 30)]]

    @pytest.mark.parametrize(("columns", "size"), [(1, (120, 124)), (2, (202, 82)), (3, (304, 50)), (5, (304, 50))])
    def test_size_and_content(self, columns: int, size: tuple[int, int]) -> None:
        sheet = gallery(self.strips, columns)
        assert sheet.size == size
        dark = (np.asarray(sheet) == (10, 20, 30)).all(axis=2).sum()
        assert dark == sum(strip.width * strip.height for strip in self.strips)

    def test_title_adds_a_header_that_fits(self) -> None:
        plain, titled = gallery(self.strips), gallery(self.strips, title="A title that is wider than every strip")
        assert titled.height > plain.height
        assert titled.width > plain.width
        assert (np.asarray(titled)[:, -3:][:20] == 255).all()

    def test_empty(self) -> None:
        with pytest.raises(ValueError, match="at least one strip"):
            gallery([])


@pytest.fixture
def dataset(tmp_path: Path, image: np.ndarray, gt_mask: np.ndarray) -> tuple[list[str], list[str]]:
    """Image and mask files of one anomalous and one normal part."""
    paths = [tmp_path / "Parts/bolt/test" / kind / "000.png" for kind in ("bad", "good")]
    mask_path = tmp_path / "Parts/bolt/ground_truth/bad/000.png"
    for path in (*paths, mask_path):
        path.parent.mkdir(parents=True)
    Image.fromarray(image).save(paths[0])
    Image.fromarray(image[..., 0]).save(paths[1])
    Image.fromarray(gt_mask.astype(np.uint8) * 255).save(mask_path)
    return [str(path) for path in paths], [str(mask_path), ""]


def make_batch(dataset: tuple[list[str], list[str]], **changes: Any) -> ImageBatch:
    """A batch after the test step: the image is what the network has seen."""
    anomaly_map = torch.from_numpy(np.stack([square_map(CENTRE), np.zeros((256, 256), np.float32)]))
    fields = {
        "image": torch.randn(2, 3, 392, 392),
        "image_path": dataset[0],
        "mask_path": dataset[1],
        "gt_mask": torch.zeros(2, 392, 392),
        "gt_label": torch.tensor([1, 0]),
        "anomaly_map": anomaly_map,
        "pred_mask": anomaly_map > 0.5,
        "pred_score": torch.tensor([0.9, 0.1]),
        "pred_label": torch.tensor([1, 0]),
    }
    return ImageBatch(**(fields | changes))


def fake_trainer(tmp_path: Path) -> Any:
    return SimpleNamespace(
        default_root_dir=str(tmp_path / "results"),
        datamodule=SimpleNamespace(name="Parts", category="bolt"),
        strategy=SimpleNamespace(broadcast=lambda value: value),
    )


def save(
    visualizer: ImageVisualizer,
    trainer: Any,
    module: Any,
    batch: ImageBatch,
    index: int = 0,
    hook: str = "on_test_batch_end",
) -> None:
    """Draw a batch as the trainer would have it drawn."""
    visualizer.setup(trainer, module, "test")
    getattr(visualizer, hook)(trainer, module, batch, batch, index)


class TestInpVisualizer:
    module: Any = SimpleNamespace(pre_processor=InpPreProcessor((448, 448), (392, 392)))

    @pytest.mark.parametrize("hook", ["on_test_batch_end", "on_predict_batch_end"])
    def test_saves_aligned_strips_under_anomalib_names(
        self, hook: str, tmp_path: Path, dataset: tuple[list[str], list[str]], image: np.ndarray, gt_mask: np.ndarray
    ) -> None:
        batch = make_batch(dataset)
        save(InpVisualizer(panel_height=128), fake_trainer(tmp_path), self.module, batch, hook=hook)
        # Spelled out rather than asked of anomalib, so that a change of its names shows.
        saved = Image.open(tmp_path / "results/images/test/bad/000.png")
        expected = draw_result(
            image,
            square_map(CENTRE),
            pred_mask=square_map(CENTRE) > 0.5,
            gt_mask=gt_mask,
            crop_box=CENTRE,
            score=0.9,
            anomalous=True,
            name="bad/000.png",
            height=128,
        )
        np.testing.assert_array_equal(np.asarray(saved), np.asarray(expected))
        normal = Image.open(tmp_path / "results/images/test/good/000.png")
        assert len(panels(normal, 128)) == 4, "the mask of a normal image is empty, not unknown"

    def test_names_are_those_of_anomalib(self, tmp_path: Path, dataset: tuple[list[str], list[str]]) -> None:
        trainer, batch = fake_trainer(tmp_path), make_batch(dataset)
        trainer.datamodule = None
        written = []
        for visualizer in (ImageVisualizer(output_dir=tmp_path / "a"), InpVisualizer(output_dir=tmp_path / "b")):
            save(visualizer, trainer, self.module, batch)
            root = Path(visualizer.output_dir)
            written.append(sorted(path.relative_to(root) for path in root.rglob("*.png")))
        assert written[0] == written[1] != []

    def test_other_pre_processors_inspect_the_whole_image(
        self, tmp_path: Path, dataset: tuple[list[str], list[str]], image: np.ndarray
    ) -> None:
        batch = make_batch(dataset, mask_path=None, gt_mask=None)
        module: Any = SimpleNamespace(pre_processor=None)
        save(InpVisualizer(output_dir=tmp_path / "out"), fake_trainer(tmp_path), module, batch)
        drawn = panels(Image.open(tmp_path / "out/test/bad/000.png"))
        assert len(drawn) == 3, "nothing is known of the ground truth"
        assert drawn[2][0, 0].tolist() == image[0, 0].tolist(), "nothing is hatched"

    def test_the_mask_that_a_batch_lends_an_anomalous_image_is_not_shown(
        self, tmp_path: Path, dataset: tuple[list[str], list[str]]
    ) -> None:
        batch = make_batch((dataset[0], ["", dataset[1][0]]))
        save(InpVisualizer(), fake_trainer(tmp_path), self.module, batch)
        assert len(panels(Image.open(tmp_path / "results/images/test/bad/000.png"))) == 3

    def test_without_files_the_crop_itself_is_drawn(self, tmp_path: Path, dataset: tuple[list[str], list[str]]) -> None:
        batch = make_batch(dataset, image_path=None, mask_path=None)
        save(InpVisualizer(), fake_trainer(tmp_path), self.module, batch, 3)
        written = sorted((tmp_path / "results/images").rglob("*.png"))
        assert len(written) == 2
        assert {panel.shape for panel in panels(Image.open(written[0]))} == {(256, 256, 3)}

    def test_mask_in_memory_is_placed_like_the_map(
        self, tmp_path: Path, dataset: tuple[list[str], list[str]], gt_mask: np.ndarray
    ) -> None:
        batch = make_batch(dataset, mask_path=None, gt_mask=torch.from_numpy(np.stack([square_map(CENTRE, 392)] * 2)))
        save(InpVisualizer(), fake_trainer(tmp_path), self.module, batch)
        truth = panels(Image.open(tmp_path / "results/images/test/bad/000.png"))[1]
        assert centroid((truth == GREEN).all(axis=2)) == pytest.approx((215, 75), abs=2)

    def test_refuses_to_overwrite_the_dataset(self, tmp_path: Path, dataset: tuple[list[str], list[str]]) -> None:
        batch = make_batch(dataset)
        before = Path(dataset[0][0]).read_bytes()
        visualizer = InpVisualizer(output_dir=tmp_path / "Parts/bolt")
        with pytest.raises(ValueError, match="overwrite its own image"):
            save(visualizer, fake_trainer(tmp_path), self.module, batch)
        assert Path(dataset[0][0]).read_bytes() == before

    def test_visualize_takes_items_and_batches(self, dataset: tuple[list[str], list[str]], image: np.ndarray) -> None:
        visualizer, batch = InpVisualizer(), make_batch(dataset)
        first, second = visualizer.visualize(batch, CENTRE)
        assert first.size == second.size
        assert visualizer.visualize(next(iter(batch)), CENTRE).tobytes() == first.tobytes()
        assert visualizer(batch)[0].tobytes() != first.tobytes(), "called without a box, the map covers the whole image"

        channels_first = image.transpose(2, 0, 1)[None].astype(np.float32) / 255
        maps = square_map(WHOLE_IMAGE)[None]
        numpy_batch = visualizer.visualize(NumpyImageBatch(image=channels_first, anomaly_map=maps))
        numpy_item = visualizer.visualize(NumpyImageItem(image=channels_first[0], anomaly_map=maps[0]))
        torch_item = visualizer.visualize(
            ImageItem(image=torch.from_numpy(channels_first[0]), anomaly_map=torch.from_numpy(maps[0]))
        )
        assert panels(torch_item)[0].tolist() == panels(numpy_item)[0].tolist() == panels(numpy_batch)[0].tolist()
        assert panels(torch_item)[0][0, 0].tolist() == [110, 110, 110]

    def test_items_without_map_and_other_types(self, image: np.ndarray) -> None:
        assert InpVisualizer().visualize(NumpyImageItem(image=image)) is None
        with pytest.raises(TypeError, match="got ndarray"):
            InpVisualizer().visualize(image)

    def test_survives_pickling(self) -> None:
        assert pickle.loads(pickle.dumps(InpVisualizer(panel_height=99))).panel_height == 99  # noqa: S301
