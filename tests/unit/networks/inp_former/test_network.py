# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from anomalib_inp.encoder.weights import build_encoder
from anomalib_inp.losses.objective import InpFormerObjective
from anomalib_inp.networks.inp_former.attention import PrototypeAggregation, PrototypeGuidance
from anomalib_inp.networks.inp_former.decoder import GuidedBlock
from anomalib_inp.networks.inp_former.network import InpFormerNetwork


@pytest.fixture
def network(tiny_encoder_file: Path) -> InpFormerNetwork:
    torch.manual_seed(0)
    return InpFormerNetwork(build_encoder("test_vit", tiny_encoder_file))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def randomise(module: nn.Module) -> None:
    """Weights as training may leave them: nothing is 0 or 1."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) / 4


def test_shapes(network: InpFormerNetwork, images: Tensor) -> None:
    reconstruction = network(images)
    assert reconstruction.features.grid == (4, 6)
    assert reconstruction.prototypes.shape == (2, 6, 64)
    assert [group.shape for group in reconstruction.groups] == [(2, 24, 64)] * 2
    assert len(network.decoder.blocks) == len(network.encoder.target_layers) == 4


def test_every_trainable_parameter_gets_a_gradient_and_no_frozen_one_does(
    network: InpFormerNetwork, images: Tensor
) -> None:
    InpFormerObjective()(network(images))["loss"].backward()
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"extractor", "bottleneck", "decoder"}
    for name, parameter in network.named_parameters():
        if name in trained:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name
        else:
            assert name.startswith("encoder."), name
            assert parameter.grad is None, name


def test_order_of_the_queries_changes_nothing(network: InpFormerNetwork, images: Tensor) -> None:
    randomise(network)
    before = network(images)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    network.extractor.queries.data = network.extractor.queries.data[order]
    after = network(images)
    torch.testing.assert_close(after.prototypes, before.prototypes[:, order])
    for group, other in zip(after.groups, before.groups, strict=True):
        assert group.std() > 0.1
        torch.testing.assert_close(group, other, atol=1e-4, rtol=1e-4)


def test_order_of_the_tokens_is_kept(network: InpFormerNetwork, images: Tensor) -> None:
    """After the encoder no stage knows where a token is."""
    randomise(network)
    features = network.encoder(images)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    before = network.reconstruct(features)
    after = network.reconstruct(features._replace(groups=[group[:, order] for group in features.groups]))
    torch.testing.assert_close(after.prototypes, before.prototypes, atol=1e-4, rtol=1e-4)
    for group, other in zip(after.groups, before.groups, strict=True):
        torch.testing.assert_close(group, other[:, order], atol=1e-4, rtol=1e-4)


def test_images_of_a_batch_do_not_meet(network: InpFormerNetwork, images: Tensor) -> None:
    randomise(network)
    together = network(images)
    alone = network(images[1:])
    torch.testing.assert_close(alone.prototypes[0], together.prototypes[1], atol=1e-4, rtol=1e-4)
    for group, other in zip(alone.groups, together.groups, strict=True):
        torch.testing.assert_close(group[0], other[1], atol=1e-4, rtol=1e-4)


def test_without_prototypes_nothing_of_a_token_passes() -> None:
    """No residual around the attention: zero prototypes have zero values, and only biases are left."""
    torch.manual_seed(0)
    block = GuidedBlock(64, 2)
    randomise(block)
    for bias in (block.norm1.bias, block.attn.kv.bias):
        bias.data.zero_()
    prototypes = torch.zeros(2, 6, 64)
    tokens = torch.randn(2, 24, 64)
    attended = block.attn(block.norm1(tokens), block.norm1(prototypes))
    torch.testing.assert_close(attended, block.attn.proj.bias.expand(2, 24, 64))
    rebuilt = block(tokens, prototypes)
    torch.testing.assert_close(rebuilt, rebuilt[:1, :1].expand(2, 24, 64))
    assert rebuilt.std() > 0.1


def test_rebuilt_tokens_are_combinations_of_prototypes() -> None:
    """Each head mixes the values of the prototypes, so 3 prototypes and 2 heads leave 6 dimensions of 64."""
    torch.manual_seed(0)
    attention = PrototypeGuidance(64, 2)
    tokens, prototypes = torch.randn(1, 40, 64), torch.randn(1, 3, 64)
    rebuilt = attention(tokens, prototypes) - attention.proj.bias
    assert torch.linalg.matrix_rank(rebuilt[0].double(), rtol=1e-4) == 6
    assert torch.linalg.matrix_rank(tokens[0].double(), rtol=1e-4) == 40


def identity(attention: nn.Module, dim: int) -> None:
    """Make all projections pass their input on."""
    attention.q.weight.data = torch.eye(dim)
    attention.kv.weight.data = torch.eye(dim).repeat(2, 1)
    attention.proj.weight.data = torch.eye(dim)
    for layer in (attention.q, attention.kv, attention.proj):
        layer.bias.data.zero_()


def test_guidance_by_hand() -> None:
    attention = PrototypeGuidance(2, 1)
    identity(attention, 2)
    attention.learn_scale.data.fill_(2.0)
    tokens = torch.tensor([[[1.0, 0.0], [3.0, 4.0], [-5.0, 0.0]]])
    prototypes = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]])
    # cosines (1, 0), (0.6, 0.8), (-1, 0); times 2; ReLU; no normalisation of the weights
    expected = torch.tensor([[[4.0, 0.0], [2.4, 1.6], [0.0, 0.0]]])
    torch.testing.assert_close(attention(tokens, prototypes), expected)


def test_guidance_normalises_and_scales_each_head() -> None:
    attention = PrototypeGuidance(2, 2)
    identity(attention, 2)
    attention.learn_scale.data = torch.tensor([1.0, 3.0]).view(2, 1, 1)
    # heads of width 1: every cosine is a sign
    tokens, prototypes = torch.tensor([[[7.0, -0.5]]]), torch.tensor([[[2.0, -4.0], [-1.0, -6.0]]])
    torch.testing.assert_close(attention(tokens, prototypes), torch.tensor([[[2.0, 3 * (-4.0 - 6.0)]]]))


def test_aggregation_by_hand() -> None:
    attention = PrototypeAggregation(2, 1)
    identity(attention, 2)
    queries, tokens = torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[1.0, 0.0], [0.0, 3.0]]])
    # scores 2 / sqrt(2) and 0
    weights = torch.tensor([2**0.5, 0.0]).softmax(dim=0)
    torch.testing.assert_close(attention(queries, tokens), torch.stack([weights[0], 3 * weights[1]]).view(1, 1, 2))


def test_decoder_mirrors_the_encoder(network: InpFormerNetwork, images: Tensor) -> None:
    """The groups are means over halves of the blocks, deepest first."""
    randomise(network)
    outputs: list[Tensor] = []
    for block in network.decoder.blocks:
        block.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    shallow, deep = network(images).groups
    torch.testing.assert_close(deep, (outputs[0] + outputs[1]) / 2)
    torch.testing.assert_close(shallow, (outputs[2] + outputs[3]) / 2)
    assert (shallow - deep).abs().max() > 0.1


def test_initial_weights(network: InpFormerNetwork) -> None:
    linear = [module for module in network.modules() if isinstance(module, nn.Linear) and module.weight.requires_grad]
    assert len(linear) == 5 + 2 + 4 * 5
    for module in linear:
        assert module.weight.abs().max() <= 0.03
        assert module.weight.std().item() == pytest.approx(0.00986, rel=0.03)  # a normal of 0.01 cut at 3 sigma
        assert module.bias.abs().max() == 0
    for block in network.decoder.blocks:
        assert torch.equal(block.attn.learn_scale, torch.ones(2, 1, 1))
        assert torch.equal(block.norm1.weight, torch.ones(64))
    assert network.extractor.queries.std().item() == pytest.approx(1, abs=0.2)
