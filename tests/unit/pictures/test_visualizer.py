# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.data import Folder, ImageBatch, ImageItem, NumpyImageBatch, NumpyImageItem, PredictDataset
from anomalib.visualization import ImageVisualizer
from drawn import CENTRE, GREEN, centroid, panels, square_map
from PIL import Image
from torch.utils.data import DataLoader

from anomalib_inp.frame import WHOLE_IMAGE
from anomalib_inp.pictures.strip import draw_result
from anomalib_inp.pictures.visualizer import InpVisualizer
from anomalib_inp.preprocessing import InpPreProcessor


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
    loader = SimpleNamespace(dataset=PredictDataset(tmp_path / "Parts/bolt/test"))
    return SimpleNamespace(
        predicting=False,
        test_dataloaders=loader,
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
    def test_saves_aligned_strips_under_the_names_of_the_images(
        self, hook: str, tmp_path: Path, dataset: tuple[list[str], list[str]], image: np.ndarray, gt_mask: np.ndarray
    ) -> None:
        batch = make_batch(dataset)
        save(InpVisualizer(panel_height=128), fake_trainer(tmp_path), self.module, batch, hook=hook)
        saved = Image.open(tmp_path / "results/images/bad/000.png")
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
        normal = Image.open(tmp_path / "results/images/good/000.png")
        assert len(panels(normal, 128)) == 4, "the mask of a normal image is empty, not unknown"

    def test_pictures_of_equal_names_are_all_there(
        self, tmp_path: Path, tiny_model: Callable[..., Any], quiet_engine: Callable[..., Any]
    ) -> None:
        images = ("lineA/camera1/000.png", "lineB/camera1/000.png", "lineA/camera1/000.bmp", "001.png")
        for index, name in enumerate(images):
            path = tmp_path / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((40, 40), 60 * index, np.uint8)).save(path)
        expected = {"lineA/camera1/000.png", "lineB/camera1/000.png", "lineA/camera1/000.png.png", "001.png"}
        model = tiny_model(visualizer=True)
        quiet_engine(tmp_path / "predict").predict(model, data_path=tmp_path / "images")
        module = Folder(
            "part", "lineA", tmp_path / "images", "lineB", "lineA", num_workers=0, val_split_mode="same_as_test"
        )
        quiet_engine(tmp_path / "test").test(model, datamodule=module)
        # Only these and no data set that lists them: then by their whole paths.
        batches = [
            [ImageItem(image=torch.rand(3, 40, 40), image_path=str(tmp_path / "images" / name))] for name in images
        ]
        loader = DataLoader(batches, batch_size=None, collate_fn=ImageBatch.collate)
        quiet_engine(tmp_path / "loader").predict(model, dataloaders=loader)

        def written(run: str) -> set[str]:
            root = min((tmp_path / run).rglob("images"), key=lambda path: len(path.parts))
            return {path.relative_to(root).as_posix() for path in root.rglob("*.png")}

        assert written("predict") == expected
        assert written("test") >= {"lineB/camera1/000.png", "lineA/camera1/000.png"}
        assert len(written("loader")) == 4

    def test_other_pre_processors_inspect_the_whole_image(
        self, tmp_path: Path, dataset: tuple[list[str], list[str]], image: np.ndarray
    ) -> None:
        batch = make_batch(dataset, mask_path=None, gt_mask=None)
        module: Any = SimpleNamespace(pre_processor=None)
        save(InpVisualizer(output_dir=tmp_path / "out"), fake_trainer(tmp_path), module, batch)
        drawn = panels(Image.open(tmp_path / "out/bad/000.png"))
        assert len(drawn) == 3, "nothing is known of the ground truth"
        assert drawn[2][0, 0].tolist() == image[0, 0].tolist(), "nothing is hatched"

    def test_the_mask_that_a_batch_lends_an_anomalous_image_is_not_shown(
        self, tmp_path: Path, dataset: tuple[list[str], list[str]]
    ) -> None:
        batch = make_batch((dataset[0], ["", dataset[1][0]]))
        save(InpVisualizer(), fake_trainer(tmp_path), self.module, batch)
        assert len(panels(Image.open(tmp_path / "results/images/bad/000.png"))) == 3

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
        truth = panels(Image.open(tmp_path / "results/images/bad/000.png"))[1]
        assert centroid((truth == GREEN).all(axis=2)) == pytest.approx((215, 75), abs=2)

    def test_refuses_to_overwrite_the_dataset(self, tmp_path: Path, dataset: tuple[list[str], list[str]]) -> None:
        batch = make_batch(dataset)
        before = Path(dataset[0][0]).read_bytes()
        visualizer = InpVisualizer(output_dir=tmp_path / "Parts/bolt/test")
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
