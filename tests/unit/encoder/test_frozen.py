# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_inp.encoder.frozen import FrozenEncoder, default_target_layers
from anomalib_inp.encoder.positions import resize_positions
from anomalib_inp.encoder.weights import build_encoder, encoder_from_state
from anomalib_inp.networks.inp_former.network import InpFormerNetwork


@pytest.fixture
def state(tiny_encoder_file: Path) -> dict[str, Tensor]:
    return load_file(tiny_encoder_file)


@pytest.fixture
def encoder(state: dict[str, Tensor]) -> FrozenEncoder:
    return encoder_from_state("test_vit", state, "the fixture")


def image(height: int, width: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def random_timm_model(name: str, kwargs: dict[str, Any]) -> nn.Module:
    """A model whose every weight matters: timm's own initialisation hides biases, scales and the class token."""
    model = timm.create_model(name, pretrained=False, num_classes=0, **kwargs).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.rand(parameter.shape, generator=generator) - 0.4
    return model


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        (12, [2, 3, 4, 5, 6, 7, 8, 9]),
        (24, [4, 6, 8, 10, 12, 14, 16, 18]),
        (6, [1, 2, 3, 4]),
        (40, [7, 10, 13, 17, 20, 23, 27, 30]),
    ],
)
def test_default_target_layers(depth: int, expected: list[int]) -> None:
    assert default_target_layers(depth) == expected


@pytest.mark.parametrize("depth", range(2, 64))
def test_default_target_layers_fit_every_encoder(depth: int) -> None:
    layers = default_target_layers(depth)
    assert layers == sorted(set(layers))
    assert len(layers) in {2, 4, 6, 8}
    assert min(layers) >= 0
    assert max(layers) < depth


def test_an_encoder_of_one_block_has_nothing_to_tap() -> None:
    with pytest.raises(ValueError, match="depth 1 "):
        default_target_layers(1)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([4, 6], r"0 to 5, got \[6\] in \[4, 6\]. The default of this encoder is \[1, 2, 3, 4\]"),
        ([-1, 2], r"0 to 5, got \[-1\]"),
        ([3, 1], r"increasing order, got \[3, 1\]"),
        ([2, 2], r"different blocks in increasing order, got \[2, 2\]"),
        ([1, 2, 3], r"even number .* got \[1, 2, 3\]"),
    ],
)
def test_target_layers_that_do_not_fit(tiny_encoder_file: Path, layers: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_encoder("test_vit", tiny_encoder_file, layers)


def test_other_models_are_refused() -> None:
    with pytest.raises(TypeError, match="Vision Transformer of timm, got ResNet"):
        FrozenEncoder(timm.create_model("resnet10t", pretrained=False))


def test_no_parameter_trains(encoder: FrozenEncoder) -> None:
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_stays_in_eval_mode_when_its_parent_trains(state: dict[str, Tensor]) -> None:
    dropout = {"proj_drop_rate": 0.5, "drop_path_rate": 0.5, "pos_drop_rate": 0.5}
    encoder = encoder_from_state("test_vit", state, "the fixture", timm_kwargs=dropout)
    parent = nn.Sequential(encoder, nn.Dropout()).train()
    assert parent.training
    assert parent[1].training
    assert not any(module.training for module in encoder.modules())
    first, second = (encoder(image(64, 64)).fused for _ in range(2))
    assert torch.equal(first, second)


def test_blocks_after_the_last_tap_are_dropped(tiny_encoder_file: Path) -> None:
    assert len(build_encoder("test_vit", tiny_encoder_file).backbone.blocks) == 5
    assert len(build_encoder("test_vit", tiny_encoder_file, [0, 2]).backbone.blocks) == 3


def test_publishes_its_sizes(encoder: FrozenEncoder) -> None:
    assert (encoder.embed_dim, encoder.num_heads, encoder.patch_size) == (64, 2, 16)
    assert encoder.target_layers == [1, 2, 3, 4]
    features = encoder(image(64, 96))
    assert features.grid == (4, 6)
    assert [group.shape for group in features.groups] == [(2, 24, 64)] * 2


def test_size_that_is_no_multiple_of_the_patch(encoder: FrozenEncoder) -> None:
    expected = (
        "Image height and width must be multiples of the patch size 16, got 64x100. The nearest smaller size is 64x96."
    )
    with pytest.raises(ValueError, match=re.escape(expected)):
        encoder(image(64, 100))


# timm itself is the source: at the native size its own position table needs no resizing.
@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("test_vit", {}),
        ("test_vit2", {}),  # a register, no class token
        ("vit_small_patch14_reg4_dinov2", {"img_size": 56}),
        ("vit_base_patch16_clip_224", {"img_size": 64}),  # a norm before the blocks
        ("deit_small_distilled_patch16_224", {"img_size": 64}),  # class and distillation token
        ("aimv2_large_patch14_224", {"img_size": 56}),  # a norm in the patch embedding
        ("beit_base_patch16_224", {"img_size": 64}),  # no VisionTransformer
    ],
)
def test_taps_what_timm_taps(name: str, kwargs: dict[str, Any]) -> None:
    kwargs = {"embed_dim": 32, "num_heads": 2, "depth": 6, **kwargs}
    source = random_timm_model(name, kwargs)
    encoder = encoder_from_state(name, source.state_dict(), "timm", timm_kwargs=kwargs)
    side = source.patch_embed.img_size[0]
    images = image(side, side)
    with torch.no_grad():
        layers = source.forward_intermediates(
            images, indices=encoder.target_layers, norm=False, output_fmt="NLC", intermediates_only=True
        )
    shallow, deep = encoder(images).groups
    torch.testing.assert_close(shallow, (layers[0] + layers[1]) / 2)
    torch.testing.assert_close(deep, (layers[2] + layers[3]) / 2)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("test_vit", {}),
        ("vit_small_patch14_reg4_dinov2", {"img_size": 56}),
        ("vit_small_patch16_dinov3", {}),  # no VisionTransformer
    ],
)
def test_subtracts_the_class_token_of_each_block(name: str, kwargs: dict[str, Any]) -> None:
    kwargs = {"embed_dim": 32, "num_heads": 2, "depth": 6, **kwargs}
    source = random_timm_model(name, kwargs)
    plain, encoder = (
        encoder_from_state(name, source.state_dict(), "timm", timm_kwargs=kwargs, context_recentering=recentred)
        for recentred in (False, True)
    )
    side = source.patch_embed.img_size[0]
    images = image(side, side)
    with torch.no_grad():
        layers = source.forward_intermediates(
            images,
            encoder.target_layers,
            return_prefix_tokens=True,
            norm=False,
            output_fmt="NLC",
            intermediates_only=True,
        )
    patches, class_tokens = zip(*((patches, prefix[:, :1]) for patches, prefix in layers), strict=True)
    shallow, deep = encoder(images).groups
    torch.testing.assert_close(shallow, (patches[0] - class_tokens[0] + patches[1] - class_tokens[1]) / 2)
    torch.testing.assert_close(deep, (patches[2] - class_tokens[2] + patches[3] - class_tokens[3]) / 2)
    assert encoder.digest != plain.digest, "a checkpoint or a cache of the one would be taken for the other's"


def test_an_encoder_without_a_class_token_has_none_to_subtract() -> None:
    source = random_timm_model("test_vit2", {})
    with pytest.raises(ValueError, match="class token"):
        encoder_from_state("test_vit2", source.state_dict(), "timm", context_recentering=True)


def test_positions_of_the_native_grid_are_used_as_they_are(
    state: dict[str, Tensor], encoder: FrozenEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> Tensor:
        msg = "The table of the native grid was resized."
        raise AssertionError(msg)

    monkeypatch.setattr(F, "interpolate", never)
    images = image(160, 160)
    patches = F.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=16)
    expected = patches.flatten(2).transpose(1, 2) + state["pos_embed"][:, 1:]
    tokens = encoder.prepare_tokens(images)
    torch.testing.assert_close(tokens[:, 1:], expected)
    torch.testing.assert_close(tokens[:, 0], (state["cls_token"] + state["pos_embed"][:, :1])[:, 0].expand(2, -1))
    with pytest.raises(AssertionError, match="was resized"):
        encoder.prepare_tokens(image(64, 64))


def test_a_non_square_image_is_embedded_like_its_square_part(state: dict[str, Tensor], encoder: FrozenEncoder) -> None:
    images = image(64, 96)

    def embedded(images: Tensor, grid: tuple[int, int]) -> Tensor:
        tokens = encoder.prepare_tokens(images)[:, 1:] - resize_positions(state["pos_embed"][:, 1:], grid)
        return tokens.unflatten(1, grid)

    wide, square = embedded(images, (4, 6)), embedded(images[..., :64], (4, 4))
    torch.testing.assert_close(wide[:, :, :4], square, atol=1e-6, rtol=0)


def test_height_and_width_play_the_same_part(state: dict[str, Tensor], encoder: FrozenEncoder) -> None:
    """An encoder whose weights are transposed sees in the transposed image the transposed features."""
    positions = state["pos_embed"][:, 1:].unflatten(1, (10, 10)).transpose(1, 2).flatten(1, 2)
    transposed = state | {
        "pos_embed": torch.cat([state["pos_embed"][:, :1], positions], dim=1),
        "patch_embed.proj.weight": state["patch_embed.proj.weight"].transpose(2, 3).contiguous(),
    }
    images = image(64, 96)
    features = encoder(images)
    turned = encoder_from_state("test_vit", transposed, "the test")(images.transpose(2, 3))
    assert (features.grid, turned.grid) == ((4, 6), (6, 4))
    for group, other in zip(features.groups, turned.groups, strict=True):
        torch.testing.assert_close(group.unflatten(1, (4, 6)), other.unflatten(1, (6, 4)).transpose(1, 2))


def test_resized_positions_keep_a_constant_and_their_order() -> None:
    assert resize_positions(torch.full((1, 100, 1), 3.0), (4, 7)).allclose(torch.tensor(3.0))
    rows = torch.arange(10.0).repeat_interleave(10).view(1, 100, 1)
    resized = resize_positions(rows, (3, 5)).view(3, 5)
    torch.testing.assert_close(resized, resized[:, :1].expand(3, 5))
    assert (resized.diff(dim=0) > 1).all()


def test_training_goes_on_after_inference_mode(encoder: FrozenEncoder) -> None:
    """The table that a validation run resized and kept serves the training after it."""
    with torch.inference_mode():
        encoder(image(64, 64))
    features = encoder(image(64, 64))
    weight = nn.Parameter(torch.ones(64))
    (features.fused * weight).sum().backward()
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0


def test_weights_are_no_part_of_a_parents_state_dict(state: dict[str, Tensor], encoder: FrozenEncoder) -> None:
    other = encoder_from_state("test_vit", {key: value + 0.1 for key, value in state.items()}, "the test")
    source, parent = InpFormerNetwork(other), InpFormerNetwork(encoder)
    checkpoint = source.state_dict()
    assert checkpoint
    assert not any("encoder" in key or "backbone" in key for key in checkpoint)

    before = {name: value.clone() for name, value in encoder.named_parameters()}
    result = parent.load_state_dict(checkpoint, strict=True)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert all(torch.equal(value, before[name]) for name, value in encoder.named_parameters())
    for name, value in checkpoint.items():
        assert torch.equal(parent.state_dict()[name], value)


def test_a_strict_load_still_finds_what_is_missing(encoder: FrozenEncoder) -> None:
    parent = InpFormerNetwork(encoder)
    checkpoint = parent.state_dict()
    del checkpoint["extractor.queries"]
    with pytest.raises(RuntimeError, match=r"Missing key.*extractor\.queries"):
        parent.load_state_dict(checkpoint, strict=True)


def test_digest_is_that_of_the_weights_in_use(state: dict[str, Tensor]) -> None:
    def digest(change: Callable[[dict[str, Tensor]], object]) -> str:
        copy = {key: value.clone() for key, value in state.items()}
        change(copy)
        return encoder_from_state("test_vit", copy, "the test").digest

    assert digest(lambda _: None) == digest(lambda _: None)
    assert digest(lambda copy: copy["blocks.4.mlp.fc2.bias"][0].add_(1e-3)) != digest(lambda _: None)
    # nothing reads the block after the last tap
    assert digest(lambda copy: copy["blocks.5.mlp.fc2.bias"][0].add_(1e-3)) == digest(lambda _: None)


def test_rotary_positions(tmp_path: Path) -> None:
    """DINOv3 is timm's Eva: positions are its own, at any size."""
    name, kwargs = "vit_small_patch16_dinov3", {"embed_dim": 32, "depth": 6, "num_heads": 2}
    source = random_timm_model(name, kwargs)
    path = tmp_path / "dinov3.safetensors"
    save_file(source.state_dict(), path)

    encoder = build_encoder(name, path, timm_kwargs=kwargs)
    assert (encoder.embed_dim, encoder.num_heads, encoder.patch_size) == (32, 2, 16)
    assert len(encoder.backbone.blocks) == 5
    images = image(64, 96)
    features = encoder(images)
    assert features.grid == (4, 6)
    with torch.no_grad():
        layers = source.forward_intermediates(
            images, indices=[1, 2, 3, 4], norm=False, output_fmt="NLC", intermediates_only=True
        )
    torch.testing.assert_close(features.groups[0], (layers[0] + layers[1]) / 2)
    torch.testing.assert_close(features.groups[1], (layers[2] + layers[3]) / 2)
    # without positions, patches in another order would give the same tokens in another order
    backwards = images.unflatten(3, (6, 16)).flip(3).flatten(3)
    reordered = encoder(backwards).fused.unflatten(1, (4, 6)).flip(2).flatten(1, 2)
    assert (features.fused - reordered).abs().max() > 0.01
