# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The memory of normal tokens, by itself and beside INP-Former."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.data import MVTecAD
from model_tester import SiblingTester
from scipy.ndimage import zoom

from anomalib_inp import InpFormer, InpFormerPlusPlus, TokenMemory
from anomalib_inp.runtime.model import ExportedModel
from anomalib_inp.scoring.memory import NormalMemory, NormalTokens


def remembering(model):
    """Fill the memory of a model with random tokens, as a training would."""
    memory = model.model.head_of(NormalMemory)
    if memory is not None:
        depths, width = len(model.model.network.encoder.depth_names), model.model.network.encoder.embed_dim
        generator = torch.Generator().manual_seed(5)
        tokens = torch.nn.functional.normalize(torch.randn(depths, 60, width, generator=generator), dim=-1)
        memory.remember(NormalTokens(tokens, torch.arange(60) % 6), 40)
        memory.weigh(
            *(
                torch.rand(*shape, generator=generator) + 0.1
                for shape in ((depths, 2), (depths, 2), (depths,), (depths,))
            )
        )
    return model


class TestTokenMemory(SiblingTester):
    model_class = TokenMemory

    @pytest.fixture(scope="class")
    def model(self, tiny_model):
        return lambda **kwargs: remembering(tiny_model(TokenMemory, memory_size=30, **kwargs))


@pytest.mark.parametrize("kind", [InpFormer, InpFormerPlusPlus])
class TestBesideInpFormer:
    @pytest.fixture(scope="class")
    def datamodule(self, write_small_sample, tmp_path_factory):
        root = write_small_sample(tmp_path_factory.mktemp("data"), categories=("brick",))
        return partial(MVTecAD, root, "brick", train_batch_size=4, num_workers=0, val_split_mode="same_as_test")

    def test_trains_and_loads_and_exports_what_it_remembers(self, kind, tiny_model, datamodule, quiet_engine, tmp_path):
        model = tiny_model(kind, memory=True, memory_size=30)
        assert model.model.map == "fused"
        run = quiet_engine()
        run.train(model, datamodule=datamodule())
        memory = model.model.head_of(NormalMemory)
        assert memory.tokens.shape == (4, 30, 64 + 1)
        assert memory.tokens.dtype == torch.float16
        (checkpoint,) = Path(run.trainer.default_root_dir).rglob("finished.ckpt")
        loaded, images = kind.load_from_checkpoint(checkpoint).eval(), torch.rand(1, 3, 70, 64)
        model.eval()
        for name in ("fused", "memory"):
            model.model.map = loaded.model.map = name
            with torch.no_grad():
                expected = model(images)
                assert torch.equal(loaded(images).anomaly_map, expected.anomaly_map)
            for export in (model.to_onnx(tmp_path / name), model.to_openvino(tmp_path / name)):
                exported = ExportedModel(export)(images.numpy())
                np.testing.assert_allclose(exported.anomaly_map, expected.anomaly_map, rtol=0, atol=1e-4)

    def test_maps(self, kind, tiny_model) -> None:
        assert tuple(tiny_model(kind, memory=True).model.maps) == kind.maps
        assert not {"memory"} & set(tiny_model(kind).model.maps)
        with pytest.raises(ValueError, match="The map 'memory' shows the memory, but there is none: memory true"):
            tiny_model(kind, map="memory")

    def test_the_fused_map(self, kind, tiny_model) -> None:
        """By what each depth finds and what the head or the error says, with another library's enlargement."""
        torch.manual_seed(0)
        model = remembering(tiny_model(kind, memory=True, map_size=None)).eval()
        detector, images = model.model, torch.rand(2, 3, 64, 64)
        memory = detector.head_of(NormalMemory)
        with torch.no_grad():
            reconstruction = detector.network(images)
            (fused,) = detector.maps["fused"]
            shown, scored = fused(reconstruction)
            distances = memory.distances(reconstruction.features, range(4))  # blocks 0 and 1, and two groups
            block0, block1, *groups = (
                (weight * distance.clamp(min=0)).unflatten(1, (4, 4)).numpy()
                for weight, distance in zip(memory.weights, distances, strict=True)
            )
            (reading,) = detector.maps["reconstruction" if kind is InpFormer else "segmentation"]
            seen = np.cbrt(reading(reconstruction).numpy())
            detection = detector.eval()(images)
        blocks, groups = block0 + block1, groups[0] + groups[1]
        assert blocks.max() > 0
        assert groups.max() > 0
        if kind is InpFormerPlusPlus:
            blocks, groups = (
                np.stack([zoom(image, 16, order=1, grid_mode=False) for image in each]) for each in (blocks, groups)
            )
            seen = 0.2 + seen
        np.testing.assert_allclose(shown, 0.5 * blocks + seen * groups, atol=1e-4)
        np.testing.assert_allclose(scored, seen * (blocks + groups), atol=1e-4)
        # An image is scored by 0.3 % of the second: 12 of 64 x 64 pixels.
        smooth = detector.smoothing(scored, (64, 64)).flatten(1)
        torch.testing.assert_close(detection.pred_score, smooth.sort(dim=1).values[:, -12:].mean(dim=1))
        torch.testing.assert_close(detection.anomaly_map, detector.smoothing(shown, (64, 64)))


def test_inp_former_plus_plus_without_a_head_fuses_memory_and_reconstruction(tiny_model) -> None:
    model = tiny_model(InpFormerPlusPlus, memory=True, head=False)
    assert model.model.map == "fused"
    assert tuple(model.model.maps) == tuple(name for name in InpFormerPlusPlus.maps if name != "segmentation")
