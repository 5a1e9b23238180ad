# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

from functools import partial

import numpy as np
import pytest
import torch
from model_tester import SiblingTester
from torch.nn.functional import cosine_similarity

from anomalib_inp import SelfSimilarity
from anomalib_inp.outputs import PatchFeatures, Reconstruction
from anomalib_inp.runtime.model import ExportedModel
from anomalib_inp.scoring.neighbourhood import NeighbourhoodRegression
from anomalib_inp.scoring.self_similarity import SelfDistance, self_distance


class TestSelfSimilarity(SiblingTester):
    model_class = SelfSimilarity

    @pytest.fixture(scope="class")
    def model(self, tiny_model):
        return partial(tiny_model, SelfSimilarity, target_layers=[1, 2, 3, 4])

    def test_its_map_by_hand(self, model) -> None:
        """Token by token, with another library's cosine and a sort."""
        ours = model(map_size=None, nearest=0.2).eval()
        torch.manual_seed(0)
        images = torch.rand(2, 3, 64, 64)
        with torch.no_grad():
            layers = list(ours.model.network.encoder.tap(images))
            features = ours.model.network.encoder(images)
            (reading,) = ours.model.maps["self_distance"]
            found = reading(Reconstruction(features)).flatten(1)
        count = round(0.2 * 16)
        for image in range(2):
            for token in range(16):
                expected = 1.0
                for pair in (layers[:2], layers[2:]):
                    tokens = (pair[0] + pair[1])[image] / 2
                    cosines = [
                        cosine_similarity(tokens[token], tokens[other], dim=0).item()
                        for other in range(16)
                        if other != token
                    ]
                    expected *= 1 - np.mean(sorted(cosines)[-count:])
                assert found[image, token].item() == pytest.approx(expected, abs=1e-5)

    def test_the_map_of_neighbours_by_hand(self, model) -> None:
        """Token by token, with NumPy's solver."""
        ours = model(map="grnr", map_size=None).eval()
        torch.manual_seed(0)
        images = torch.rand(1, 3, 64, 80)
        with torch.no_grad():
            features = ours.model.network.encoder(images)
            (reading,) = ours.model.maps["grnr"]
            found = reading(Reconstruction(features))[0]
        assert found.shape == (4, 5)
        expected = np.ones((4, 5))
        for group in features.groups:
            tokens = group[0].double().numpy().reshape(4, 5, -1)
            mirrored = np.pad(tokens, ((1, 1), (1, 1), (0, 0)), mode="reflect")
            for row in range(4):
                for column in range(5):
                    block = mirrored[row : row + 3, column : column + 3].reshape(9, -1)
                    around = np.delete(block, 4, axis=0)
                    wanted = (tokens[row, column] + tokens.reshape(20, -1).mean(axis=0)) / 2
                    normal = around @ around.T
                    weights = np.linalg.solve(normal + 1e-4 * np.trace(normal) / 8 * np.eye(8), around @ wanted)
                    expected[row, column] *= np.linalg.norm(tokens[row, column] - weights @ around)
        np.testing.assert_allclose(found, expected, rtol=1e-3)

    @pytest.mark.parametrize("kind", ["onnx", "openvino"])
    def test_the_map_of_neighbours_is_exported(self, kind: str, model, tmp_path) -> None:
        built = model(map="grnr").eval()
        images = torch.rand(1, 3, 100, 90)
        with torch.no_grad():
            expected = built(images)
        export = built.to_onnx(tmp_path) if kind == "onnx" else built.to_openvino(tmp_path)
        exported = ExportedModel(export)(images.numpy())
        np.testing.assert_allclose(exported.anomaly_map, expected.anomaly_map, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(exported.pred_score, expected.pred_score, rtol=1e-4, atol=1e-4)

    def test_a_share_that_is_none_is_refused(self, model) -> None:
        for nearest in (0, 1, -0.1, float("nan")):
            with pytest.raises(ValueError, match="nearest must be a share of an image's tokens"):
                model(nearest=nearest)


def test_what_is_there_once_stands_out_and_what_repeats_does_not() -> None:
    tokens = torch.eye(8)[torch.tensor([0, 0, 0, 1, 1, 1, 1, 5])].unsqueeze(0)
    torch.testing.assert_close(self_distance(tokens, 2)[0], torch.tensor([0.0] * 7 + [1.0]))
    # Its length says nothing.
    torch.testing.assert_close(self_distance(tokens * torch.arange(1.0, 9).view(1, 8, 1), 2)[0, :7], torch.zeros(7))


def test_images_of_few_tokens() -> None:
    torch.manual_seed(0)
    assert self_distance(torch.rand(1, 1, 4), 16).tolist() == [[0]]
    two = torch.rand(1, 2, 4)
    expected = 1 - cosine_similarity(two[:, 0], two[:, 1])
    torch.testing.assert_close(self_distance(two, 16), expected.expand(1, 2))


def test_the_groups_are_multiplied() -> None:
    torch.manual_seed(0)
    groups = [torch.rand(2, 6, 4) for _ in range(2)]
    found = SelfDistance(0.3)(Reconstruction(PatchFeatures(groups, (2, 3))))
    expected = self_distance(groups[0], 2) * self_distance(groups[1], 2)
    torch.testing.assert_close(found.flatten(1), expected)
    assert found.shape == (2, 2, 3)


def test_neighbours_need_a_grid() -> None:
    with pytest.raises(ValueError, match="a grid of 2 x 2 patches at least, got 1x6"):
        NeighbourhoodRegression()(Reconstruction(PatchFeatures([torch.rand(1, 6, 4)], (1, 6))))
    for weight in (0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="own_weight must be above 0 and at most 1"):
            NeighbourhoodRegression(weight)


def test_what_the_neighbours_say_is_no_error() -> None:
    """A token that is the mean of its neighbours, in an image of one texture, is explained wholly."""
    flat = torch.ones(1, 12, 3)
    error = NeighbourhoodRegression(ridge=1e-6)(Reconstruction(PatchFeatures([flat], (3, 4))))
    torch.testing.assert_close(error, torch.zeros(1, 3, 4), rtol=0, atol=1e-3)
    odd = flat.clone()
    odd[0, 5] = torch.tensor([1.0, -1.0, 1.0])
    error = NeighbourhoodRegression()(Reconstruction(PatchFeatures([odd], (3, 4)))).flatten()
    assert error.argmax() == 5
