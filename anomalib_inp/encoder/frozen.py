# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The frozen encoder: a timm Vision Transformer whose middle blocks are tapped."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from anomalib_inp.encoder.positions import resize_positions
from anomalib_inp.outputs import PatchFeatures

MAX_TAPPED = 8


def default_target_layers(depth: int) -> list[int]:
    """Blocks to tap (0-based), spread over the middle of an encoder of ``depth`` blocks.

    Depth 12 gives 2, 3, ..., 9 and depth 24 gives 4, 6, ..., 18, as published; other depths keep the proportion.

    Raises:
        ValueError: The encoder has fewer than two blocks to tap.
    """
    first, last = depth / 6, min(depth * 3 / 4, depth - 1)
    count = min(MAX_TAPPED, (round(last) - round(first) + 1) // 2 * 2)
    if count < 2:
        msg = f"At least two blocks are tapped, but an encoder of depth {depth} has too few; choose a deeper one."
        raise ValueError(msg)
    return [round(first + (last - first) * step / (count - 1)) for step in range(count)]


def shallow_layers(depth: int) -> list[int]:
    """Blocks before those that are tapped by default, and the first of them: of 12 blocks, 0, 1 and 2.

    What is as fine as a patch, such as a thread of a fabric, is seen there alone.
    """
    first = default_target_layers(depth)[0]
    return sorted({0, first // 2, first})


def windows(depth: int) -> list[list[int]]:
    """What can be tapped: the default, and as many blocks with the same gaps from the first block to the last."""
    default = default_target_layers(depth)
    gap = default[1] - default[0]
    shifts = range(-default[0], depth - default[-1], gap)
    return [[layer + shift for layer in default] for shift in shifts]


class FrozenEncoder(nn.Module):
    """Turns images into patch features; never trains, and stays in eval mode inside a training parent.

    Its weights are not part of ``state_dict``: they come from where the encoder was made, so that a checkpoint holds
    only what was trained.

    Args:
        backbone: A timm Vision Transformer with its weights, built at its native image size.
        target_layers: Blocks to tap (0-based, increasing); ``None`` taps the published ones
            (:func:`default_target_layers`). Blocks after the last one are dropped. ``auto`` taps the published ones and
            keeps all blocks, until :meth:`retap` says which.
        num_groups: Groups of tapped blocks, equally many in each, whose means the patch features are; two halves in
            INP-Former.
        further_layers: Blocks (0-based, increasing) whose tokens are delivered beside the groups; ``None`` takes
            :func:`shallow_layers`.
        context_recentering: Deliver the patch tokens of each block less its class token (Dinomaly2, Context-Aware
            Recentering; anomalib's name).

    Attributes:
        embed_dim: Width ``D``.
        num_heads: Attention heads.
        patch_size: Side of a patch in pixels.
        target_layers: The tapped blocks.
        num_groups: Groups of them.
        further_layers: Blocks that are delivered one by one beside the groups.
        undecided: Whether the blocks to tap are still to be chosen.
        context_recentering: Whether class tokens are subtracted.
        digest: Fingerprint of the weights in use; a checkpoint notes it, so that it never meets another encoder. An
            encoder that subtracts its class token is another one.

    Raises:
        TypeError: The backbone has no transformer blocks or patch embedding to read.
        ValueError: ``target_layers`` do not fit the backbone, or there is no class token to subtract.
    """

    def __init__(
        self,
        backbone: nn.Module,
        target_layers: Sequence[int] | Literal["auto"] | None = None,
        num_groups: int = 2,
        further_layers: Sequence[int] | None = (),
        context_recentering: bool = False,
    ) -> None:
        super().__init__()
        if not all(hasattr(backbone, part) for part in ("blocks", "patch_embed", "forward_intermediates")):
            msg = f"The encoder must be a Vision Transformer of timm, got {type(backbone).__name__}."
            raise TypeError(msg)
        if context_recentering and getattr(backbone, "cls_token", None) is None:
            msg = "context_recentering subtracts the class token, but this encoder has none."
            raise ValueError(msg)
        depth = len(backbone.blocks)
        self.context_recentering = context_recentering
        self.num_groups = num_groups
        self.further_layers = shallow_layers(depth) if further_layers is None else list(further_layers)
        self.undecided = target_layers == "auto"
        if target_layers is None or target_layers == "auto":
            self.target_layers = default_target_layers(depth)
        else:
            self.target_layers = _checked_layers(target_layers, depth, num_groups)
        if not self.undecided:
            backbone.prune_intermediate_layers(self.tapped, prune_norm=True, prune_head=True)
        self.embed_dim: int = backbone.embed_dim
        self.num_heads: int = backbone.blocks[0].attn.num_heads
        self.patch_size: int = backbone.patch_embed.patch_size[0]
        self.backbone = backbone
        self.digest = self._fingerprint()
        self._positions: dict[Any, Tensor] = {}
        self.requires_grad_(False)
        self.eval()
        self.register_load_state_dict_pre_hook(_keep_own_weights)

    @property
    def tapped(self) -> list[int]:
        """All blocks whose tokens are delivered, one by one or in groups."""
        return sorted({*self.further_layers, *self.target_layers})

    def retap(self, target_layers: Sequence[int]) -> None:
        """Decide which blocks are tapped; those after the last one are dropped.

        Raises:
            ValueError: They do not fit the backbone.
        """
        self.target_layers = _checked_layers(target_layers, len(self.backbone.blocks), self.num_groups)
        self.backbone.prune_intermediate_layers(self.tapped, prune_norm=True, prune_head=True)
        self.digest = self._fingerprint()
        self.undecided = False

    def _fingerprint(self) -> str:
        return _digest(self.backbone) + ("-recentred" if self.context_recentering else "")

    @property
    def depth_names(self) -> list[str]:
        """Names of all that is delivered, from shallow to deep."""
        size = len(self.target_layers) // self.num_groups
        groups = [self.target_layers[first : first + size] for first in range(0, len(self.target_layers), size)]
        ends = [(f"{group[0]}-{group[-1]}", "s") if size > 1 else (str(group[0]), "") for group in groups]
        return [f"block {layer}" for layer in self.further_layers] + [f"block{many} {name}" for name, many in ends]

    def forward(self, images: Tensor) -> PatchFeatures:
        """Encode normalised images ``(B, 3, H, W)``, whose height and width are multiples of the patch size."""
        size = len(self.target_layers) // self.num_groups
        sums: list[Tensor] = []
        further: list[Tensor] = []
        # Added up as they come, so that no more than one layer of a group is held.
        for layer, tokens in zip(self.tapped, self.tap(images), strict=True):
            if layer in self.further_layers:
                further.append(tokens)
            if layer in self.target_layers:
                if self.target_layers.index(layer) % size == 0:
                    sums.append(tokens)
                else:
                    sums[-1] = sums[-1] + tokens
        return PatchFeatures([total / size for total in sums], self.grid(images), further)

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Patch rows and columns ``(h, w)`` of images ``(B, 3, H, W)``.

        Raises:
            ValueError: Height or width is not a multiple of the patch size.
        """
        # plain numbers, so that tracing for export takes the size as fixed
        (height, width), patch = (int(side) for side in images.shape[-2:]), self.patch_size
        if height % patch or width % patch:
            msg = (
                f"Image height and width must be multiples of the patch size {patch}, got {height}x{width}. "
                f"The nearest smaller size is {height // patch * patch}x{width // patch * patch}."
            )
            raise ValueError(msg)
        return height // patch, width // patch

    def tap(self, images: Tensor, layers: Sequence[int] | None = None) -> Iterator[Tensor]:
        """Patch tokens after each of these blocks, by default the tapped ones, each ``(B, N, D)``."""
        tapped = self.tapped if layers is None else list(layers)
        if not isinstance(self.backbone, VisionTransformer):  # rotary positions (timm's Eva) need no table of ours
            found = self.backbone.forward_intermediates(
                images, tapped, self.context_recentering, norm=False, output_fmt="NLC", intermediates_only=True
            )
            yield from (patches - prefix[:, :1] for patches, prefix in found) if self.context_recentering else found
            return
        tokens = self.prepare_tokens(images)
        for index, block in enumerate(self.backbone.blocks[: tapped[-1] + 1]):
            tokens = block(tokens)
            if index in tapped:
                patches = tokens[:, self.backbone.num_prefix_tokens :]
                yield patches - tokens[:, :1] if self.context_recentering else patches

    def prepare_tokens(self, images: Tensor) -> Tensor:
        """Embed images ``(B, 3, H, W)``: class, register and patch tokens with their positions, ``(B, P + N, D)``."""
        backbone = self.backbone
        grid = self.grid(images)
        embed = backbone.patch_embed
        tokens = embed.norm(embed.proj(images).flatten(2).transpose(1, 2))  # (B, N, D)
        prefix = [getattr(backbone, name, None) for name in ("cls_token", "dist_token", "reg_token")]
        prefix = [token.expand(images.shape[0], -1, -1) for token in prefix if token is not None]
        if backbone.no_embed_class:
            tokens = torch.cat([*prefix, tokens + self._position_table(grid)], dim=1)
        else:
            tokens = torch.cat([*prefix, tokens], dim=1) + self._position_table(grid)
        return backbone.norm_pre(tokens)

    def _position_table(self, grid: tuple[int, int]) -> Tensor:
        """Position table for a patch grid; resized once per grid, since the table is frozen."""
        table = self.backbone.pos_embed
        key = (grid, table.dtype, table.device)
        if key not in self._positions:
            prefix = 0 if self.backbone.no_embed_class else self.backbone.num_prefix_tokens
            # On the CPU, so that all devices start from the same table to the last bit.
            whole = table.detach().cpu()
            resized = torch.cat([whole[:, :prefix], resize_positions(whole[:, prefix:], grid)], dim=1)
            self._positions[key] = resized.to(table.device)
        return self._positions[key]

    def __getstate__(self) -> dict[str, Any]:
        """Leave the resized tables behind: whoever unpickles may put the weights on another device."""
        return {**self.__dict__, "_positions": {}}

    def train(self, mode: bool = True) -> "FrozenEncoder":
        """Stay in eval mode: a frozen encoder has no training mode."""
        del mode
        return super().train(False)

    def state_dict(self, *args: Any, destination: dict[str, Any] | None = None, **kwargs: Any) -> dict[str, Any]:
        """Contribute nothing: the weights belong to the encoder's origin, not to a checkpoint."""
        del args, kwargs
        return {} if destination is None else destination


class Windows(nn.Module):
    """An encoder as seen through each of its :func:`windows`: a group for each, for choosing one.

    Args:
        encoder: An encoder with all of its blocks.
    """

    further_layers: Sequence[int] = ()

    def __init__(self, encoder: FrozenEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.windows = windows(len(encoder.backbone.blocks))

    @property
    def depth_names(self) -> list[str]:
        """Names of the windows."""
        return [f"blocks {window[0]}-{window[-1]}" for window in self.windows]

    def forward(self, images: Tensor) -> PatchFeatures:
        """Encode normalised images ``(B, 3, H, W)``."""
        layers = {layer for window in self.windows for layer in window}
        tokens = dict(zip(sorted(layers), self.encoder.tap(images, sorted(layers)), strict=True))
        groups = [torch.stack([tokens[layer] for layer in window]).mean(dim=0) for window in self.windows]
        return PatchFeatures(groups, self.encoder.grid(images))


def _checked_layers(target_layers: Sequence[int], depth: int, num_groups: int) -> list[int]:
    layers = list(target_layers)
    beyond = [layer for layer in layers if not 0 <= layer < depth]
    if beyond:
        msg = (
            f"target_layers must be blocks of the encoder, 0 to {depth - 1}, got {beyond} in {layers}. "
            f"The default of this encoder is {default_target_layers(depth)}."
        )
        raise ValueError(msg)
    if not layers or layers != sorted(set(layers)) or len(layers) % num_groups:
        count = {1: "some", 2: "an even number of"}.get(num_groups, f"a multiple of {num_groups}")
        msg = f"target_layers must be {count} different blocks in increasing order, got {layers}."
        raise ValueError(msg)
    return layers


def _digest(backbone: nn.Module) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, weight in backbone.state_dict().items():
        digest.update(name.encode())
        digest.update(weight.contiguous().cpu().numpy().data)
    return digest.hexdigest()


def _keep_own_weights(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Let a strict load pass: the encoder's weights are not in the checkpoint and stay as they are."""
    own = nn.Module.state_dict(module, prefix=prefix)
    state_dict.update(own)
