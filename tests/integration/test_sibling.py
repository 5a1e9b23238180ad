# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""A model that is defined here alone, with nothing to train: what a sibling has to say, and all that it is given."""

from functools import partial
from typing import ClassVar

import pytest
import torch
from anomalib.models.components import AnomalibModule
from model_tester import SiblingTester
from torch import Tensor, nn

from anomalib_inp.distances import cosine_distance
from anomalib_inp.encoder.frozen import FrozenEncoder
from anomalib_inp.models.encoder_model import EncoderModel
from anomalib_inp.outputs import Reconstruction
from anomalib_inp.scoring.detector import Detector


class PlainNetwork(nn.Module):
    """The encoder alone: no prototypes, no decoder."""

    def __init__(self, encoder: FrozenEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Reconstruction:
        return Reconstruction(self.encoder(images))


def distance_to_the_mean(reconstruction: Reconstruction) -> Tensor:
    """Cosine distance of each token to the mean token of its image, ``(B, h, w)``."""
    tokens = reconstruction.features.fused
    return cosine_distance(tokens, tokens.mean(dim=1, keepdim=True)).unflatten(1, reconstruction.features.grid)


class ToySibling(EncoderModel, AnomalibModule):
    num_groups: ClassVar = 3
    maps: ClassVar = ("distance",)

    def build_detector(self, encoder: FrozenEncoder) -> Detector:
        return Detector(PlainNetwork(encoder), {"distance": [distance_to_the_mean]})


class TestSibling(SiblingTester):
    model_class = ToySibling

    @pytest.fixture(scope="class")
    def model(self, tiny_model):
        return partial(tiny_model, ToySibling, target_layers=[0, 2, 4])

    def test_its_map_by_hand(self, model) -> None:
        toy = model(map_size=None).eval()
        torch.manual_seed(0)
        images = torch.rand(2, 3, 64, 64)
        with torch.no_grad():
            features = toy.model.network.encoder(images)
            layers = torch.stack(list(toy.model.network.encoder.tap(images)))
            tokens = layers.mean(dim=0)
            torch.testing.assert_close(features.fused, tokens)
            cosines = nn.functional.cosine_similarity(tokens, tokens.mean(dim=1, keepdim=True), dim=-1)
            (reading,) = toy.model.maps["distance"]
            torch.testing.assert_close(reading(Reconstruction(features)).flatten(1), 1 - cosines)

    def test_one_batch_passes_and_thresholds_are_chosen(self, model, datamodule, quiet_engine) -> None:
        toy, run = model(), quiet_engine(max_epochs=7)
        run.fit(toy, datamodule=datamodule())
        assert run.trainer.current_epoch == 1
        assert run.trainer.fit_loop.epoch_loop.total_batch_idx + 1 == 1
        assert torch.isfinite(toy.post_processor.image_threshold)

    def test_no_images_are_an_error(self, model, datamodule, quiet_engine) -> None:
        with pytest.raises(RuntimeError, match=r"Nothing was trained: .* limit_train_batches=0"):
            quiet_engine(limit_train_batches=0).fit(model(), datamodule=datamodule())

    def test_blocks_that_do_not_make_equal_groups_are_refused(self, model) -> None:
        with pytest.raises(ValueError, match=r"multiple of 3 different blocks.*got \[1, 2\]"):
            model(target_layers=[1, 2])
