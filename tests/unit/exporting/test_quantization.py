# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""INT8 exports, by anomalib's own export and by hand."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino
import pytest
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine

from anomalib_inp import InpFormer
from anomalib_inp.data.sample import write_sample_data
from anomalib_inp.evaluation.metrics import AUROC
from anomalib_inp.exporting import quantization
from anomalib_inp.runtime import edit
from anomalib_inp.runtime.job import find_images
from anomalib_inp.runtime.metadata import read_metadata
from anomalib_inp.runtime.model import ExportedModel
from anomalib_inp.runtime.predict import predict, read


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample_data(tmp_path_factory.mktemp("data") / "sample", categories=("brick",))


def datamodule(data: Path, **kwargs: object) -> MVTecAD:
    settings = {"val_split_mode": "from_test", "val_split_ratio": 0.5, "seed": 0, "num_workers": 0, **kwargs}
    return MVTecAD(data, "brick", **settings)


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., InpFormer]) -> InpFormer:
    torch.manual_seed(0)
    model = tiny_model(target_layers=[1, 2], map_size=32, spread=4)
    model.post_processor.set_thresholds(0.1, 0.1)
    return model


def quantised_layers(path: Path) -> set[str]:
    """Names of the layers that multiply in 8 bits."""
    operations = openvino.Core().read_model(path).get_ops()
    names = set()
    for operation in operations:
        if operation.get_type_name() == "FakeQuantize":
            names |= {
                reader.get_node().get_friendly_name()
                for reader in operation.output(0).get_target_inputs()
                if reader.get_node().get_type_name() == "MatMul"
            }
    return names


def test_linear_layers_of_the_tokens_are_quantised_and_nothing_else(model, data: Path, tmp_path: Path) -> None:
    path = Engine(default_root_dir=tmp_path).export(
        model, "openvino", tmp_path, compression_type="int8_ptq", datamodule=datamodule(data)
    )
    kinds = {name.split("network.")[1].split("/")[0] for name in quantised_layers(path)}
    encoder = {f"encoder.backbone.blocks.{block}.{part}" for block in range(3) for part in ("attn.qkv", "attn.proj")}
    encoder |= {f"encoder.backbone.blocks.{block}.mlp.{part}" for block in range(3) for part in ("fc1", "fc2")}
    decoder = {f"decoder.blocks.{block}.{part}" for block in range(2) for part in ("attn.q", "mlp.fc1", "mlp.fc2")}
    assert kinds == encoder | decoder | {"bottleneck.fc1", "bottleneck.fc2"}
    assert len(kinds) == 20
    operations = openvino.Core().read_model(path).get_ops()
    patches = [operation for operation in operations if operation.get_type_name() == "Convolution"]
    assert patches
    read = [operation.input(port).get_source_output().get_node() for operation in patches for port in (0, 1)]
    assert "FakeQuantize" not in {node.get_type_name() for node in read}


def test_scores_stay_close_and_the_rest_stays_as_it_was(model, data: Path, tmp_path: Path) -> None:
    full = model.to_openvino(tmp_path, "full")
    eight = model.to_openvino(tmp_path, "eight", compression_type="int8_ptq", datamodule=datamodule(data))
    assert read_metadata(eight) == read_metadata(full)
    # 8 and 16 bits instead of 32, and the ranges
    assert eight.with_suffix(".bin").stat().st_size < 0.6 * full.with_suffix(".bin").stat().st_size
    items = find_images(data / "brick/test").items
    networks = [ExportedModel(path) for path in (full, eight)]
    scores = [[predict(network, item.path).raw_score for item in items] for network in networks]
    assert np.corrcoef(scores)[0, 1] > 0.9
    assert scores[0] != scores[1]
    edit.set_thresholds(eight, image=0.2)
    assert ExportedModel(eight).metadata.image.threshold == 0.2


def test_accuracy_is_watched(model, data: Path, tmp_path: Path) -> None:
    class Watched(AUROC):
        """Says of the first INT8 model that it has lost 0.4, and of what comes after it that it has lost nothing."""

        models = 0

        def compute(self) -> torch.Tensor:
            value = super().compute()
            if value.isnan():  # of a single image
                return value
            self.models += 1
            return torch.tensor(0.6 if self.models == 2 else 1.0)

    metric, images = Watched(fields=["raw_score", "gt_label"]), datamodule(data, val_split_ratio=0.15)
    path = model.to_openvino(tmp_path, compression_type="int8_acq", datamodule=images, metric=metric, max_drop=0.1)
    assert metric.models > 2  # the second one has lost too much
    assert 0 < len(quantised_layers(path)) < 20
    assert ExportedModel(path)(read(find_images(data / "brick/test").items[0].path)).pred_score.shape == (1,)


def test_calibration_images_are_normal_and_spread(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = quantization.calibration_images(datamodule(data))
    assert len(images) == 40
    assert {image.shape[:2] for image in images} == {(1, 3)}
    monkeypatch.setattr(quantization, "CALIBRATION_IMAGES", 3)
    with pytest.warns(UserWarning, match="Only 3 images"):
        few = quantization.calibration_images(datamodule(data))
    assert [next(i for i, image in enumerate(images) if np.array_equal(image, other)) for other in few] == [0, 20, 39]


def test_int8_without_data_says_what_is_missing(model, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"INT8 needs normal images.*--data MVTecAD"):
        model.to_openvino(tmp_path, compression_type="int8_ptq")


def test_a_watch_needs_both_kinds_of_images(model, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"normal and anomalous validation images, got normal ones only"):
        model.to_openvino(
            tmp_path, compression_type="int8_acq", datamodule=datamodule(data, val_split_mode="from_train")
        )


def test_without_nncf_the_error_says_what_to_install(model, data, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "module_available", lambda _: False)
    with pytest.raises(ModuleNotFoundError, match="pip install 'anomalib-inp\\[export\\]'"):
        model.to_openvino(tmp_path, compression_type="int8_ptq", datamodule=datamodule(data))
