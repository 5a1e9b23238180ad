# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""How far a token is from everything normal that is remembered, at several depths of the encoder."""

from collections.abc import Iterable, Sequence
from math import isnan
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_inp.distances import length
from anomalib_inp.outputs import PatchFeatures, Reconstruction

TEMPERATURE = 0.02
"""Average precision that makes a depth e times as heavy as another one."""

LEAST_WEIGHT = 0.02
"""Share of the heaviest depth's weight from which on a depth is looked at."""
LEAST_SPREAD = 5e-3
"""Images that are all alike have no spread to divide by."""


class NormalTokens(NamedTuple):
    """Normal tokens to choose a memory from.

    Attributes:
        tokens: Tokens at each depth ``(K, P, D)``.
        images: The image that each is of ``(P,)``.
    """

    tokens: Tensor
    images: Tensor


class NormalMemory(nn.Module):
    """Distance of each token to the nearest normal token, at several depths, in standard deviations of normal images.

    A defect is seen at some depths and not at others: threads of a fabric in the first blocks alone, a missing part in
    the deep ones. So the distances of each depth (:func:`nearest_distances`) are standardised by what they are on
    normal images, and the depths are weighted (:func:`weights_of`). It is empty until :meth:`remember`.

    Attributes:
        tokens: What is remembered (:func:`remembered`), ``M`` tokens at each of ``K`` depths ``(K, M, D + 1)``.
        mean: Mean distances of normal images ``(K, 2)``.
        spread: Their standard deviations ``(K, 2)``.
        weights: Weight of each depth ``(K,)``; their sum is 1.
        average_precision: What the weights come from ``(K,)``; NaN where they were given.
        used: The depths that are looked at.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("tokens", torch.empty(0, 0, 0, dtype=torch.float16))
        for name in ("mean", "spread", "weights", "average_precision"):
            self.register_buffer(name, torch.empty(0))
        self.used: list[int] = []

    def forward(self, reconstruction: Reconstruction) -> Tensor:
        """Compare the tokens of images with what is remembered: ``(B, h, w)``, 0 for the mean of normal images.

        Raises:
            RuntimeError: Nothing is remembered.
        """
        features = reconstruction.features
        return self._weighted(features).sum(dim=0).unflatten(1, features.grid)

    def found(self, features: PatchFeatures) -> tuple[Tensor, Tensor]:
        """Say what single blocks find above the mean of normal images, and what groups of blocks do, each ``(B, N)``.

        Raises:
            RuntimeError: Nothing is remembered.
        """
        weighted = self._weighted(features).clamp(min=0)
        singles = sum(depth < len(features.further) for depth in self.used)
        return weighted[:singles].sum(dim=0), weighted[singles:].sum(dim=0)

    def _weighted(self, features: PatchFeatures) -> Tensor:
        """Weighted distances at the depths that are looked at ``(used, B, N)``."""
        if not self.tokens.numel():
            msg = "The memory is empty: it is filled by a training (anomalib train, Engine.fit), before its first step."
            raise RuntimeError(msg)
        distances = self.distances(features, self.used)
        weighted = [self.weights[depth] * distance for depth, distance in zip(self.used, distances, strict=True)]
        return torch.stack(weighted)

    def distances(self, features: PatchFeatures, used: Sequence[int]) -> list[Tensor]:
        """Standardised distances of tokens at some depths, each ``(B, N)``."""
        depths, known = features.depths, self.tokens.to(features.groups[0].dtype)
        return [
            standardised(
                nearest_distances(depths[depth], known[depth], squared=depth >= len(features.further)),
                self.mean[depth],
                self.spread[depth],
            )
            for depth in used
        ]

    def remember(self, normal: NormalTokens, size: int) -> Tensor:
        """Remember, at each depth, the normal tokens that cover all others best.

        Args:
            normal: Normal tokens.
            size: How many to remember at each depth; all where there are no more.

        Returns:
            The image of each remembered token ``(K, M)``.
        """
        chosen = torch.stack([k_centres(F.normalize(tokens, dim=-1), size) for tokens in normal.tokens])  # (K, M)
        kept = [tokens[places] for tokens, places in zip(normal.tokens, chosen, strict=True)]
        self.tokens = remembered(torch.stack(kept))
        return normal.images[chosen]

    def weigh(self, mean: Tensor, spread: Tensor, weights: Tensor, average_precision: Tensor) -> None:
        """Set the statistics ``(K, 2)`` and the weights ``(K,)`` of the depths."""
        self.mean, self.spread = mean.float(), spread.float()
        self.weights, self.average_precision = weights.float(), average_precision.float()
        self._leave_out()

    def _leave_out(self) -> None:
        """Leave out what weighs next to nothing, and would cost as much as the others."""
        heaviest = self.weights.max().item() if len(self.weights) else 0.0
        self.used = [depth for depth, weight in enumerate(self.weights.tolist()) if weight > LEAST_WEIGHT * heaviest]

    def describe(self, names: Sequence[str]) -> str:
        """Say how depths of these names are weighted, and how well each finds anomalies, where that was measured."""
        rows = zip(names, self.weights.tolist(), self.average_precision.tolist(), strict=True)
        parts = [f"{name} {weight:.2f}" + ("" if isnan(found) else f" ({found:.3f})") for name, weight, found in rows]
        found = "" if self.average_precision.isnan().any() else " (pixel AP on pseudo-anomalies)"
        return f"Weights of the depths{found}: {', '.join(parts)}."

    @staticmethod
    def is_in(names: Iterable[str]) -> bool:
        """Tell whether a memory is among the tensors of a checkpoint, by their names."""
        return any(name.endswith(".average_precision") for name in names)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take the sizes of a checkpoint: how much is remembered is part of what was learnt."""
        buffers = dict(self.named_buffers(recurse=False))
        shapes = {name: tuple(state_dict[prefix + name].shape) for name in buffers if prefix + name in state_dict}
        if len(shapes) == len(buffers):
            _check_sizes(shapes)
            for name, shape in shapes.items():
                setattr(self, name, buffers[name].new_empty(shape))
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._leave_out()


def _check_sizes(shapes: dict[str, tuple[int, ...]]) -> None:
    """Refuse what is of as many depths in one tensor and not in another, which would be read without a word."""
    count = shapes["tokens"][0] if len(shapes["tokens"]) == 3 else -1
    of_depths = {"mean": (count, 2), "spread": (count, 2), "weights": (count,), "average_precision": (count,)}
    if any(shapes[name] != shape for name, shape in of_depths.items() if count):
        msg = f"The memory in this checkpoint is damaged: its tensors do not belong together, {shapes}."
        raise ValueError(msg)


def remembered(tokens: Tensor) -> Tensor:
    """Write tokens ``(..., D)`` down as they are remembered: direction and length, in 16 bits ``(..., D + 1)``."""
    return torch.cat([F.normalize(tokens, dim=-1), length(tokens).unsqueeze(-1)], dim=-1).half()


def nearest_distances(tokens: Tensor, known: Tensor, squared: bool) -> Tensor:
    """Cosine distance of tokens to the nearest remembered one, and squared distance to the nearest in that sense.

    The squared distance is large where tokens are long. In groups of blocks, both together find more than either; in
    single blocks, the first ones, the cosine distance alone does (docs/memory.md).

    Args:
        tokens: Patch tokens ``(..., N, D)``.
        known: What is remembered ``(M, D + 1)``.
        squared: Whether the squared distance is asked for.

    Returns:
        Both distances ``(..., 2, N)``, or the cosine distance twice.
    """
    directions, lengths = known[:, :-1], known[:, -1]
    products, own = tokens @ directions.transpose(-2, -1), length(tokens)  # (..., N, M), (..., N)
    cosine = 1 - products.amax(dim=-1) / own
    if not squared:
        return torch.stack([cosine, cosine], dim=-2)
    # |x - m|^2 = |x|^2 - |m| (2 <x, m/|m|> - |m|)
    return torch.stack([cosine, own * own - (lengths * (2 * products - lengths)).amax(dim=-1)], dim=-2)


def standardised(distances: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    """Mean of both distances, in standard deviations of those of normal images.

    Args:
        distances: Distances ``(..., 2, N)``.
        mean: Means of normal images ``(2,)``, or one pair for each depth ``(K, 2)``.
        spread: Their standard deviations, likewise.

    Returns:
        Distances ``(..., N)``.
    """
    return ((distances - mean.unsqueeze(-1)) / spread.unsqueeze(-1).clamp(min=LEAST_SPREAD)).mean(dim=-2)


def weights_of(average_precision: Tensor) -> Tensor:
    """Weigh depths by how well each finds anomalies, given as average precision ``(K,)``: ``(K,)``, sum 1."""
    return torch.softmax(average_precision / TEMPERATURE, dim=0)


def k_centres(tokens: Tensor, count: int) -> Tensor:
    """Choose tokens one by one, each the one that is farthest from all chosen before (k-centre greedy).

    It is anomalib's, but for the random projection, which costs accuracy here, and the first token, which is no random
    one.

    Args:
        tokens: Unit vectors ``(P, D)``.
        count: How many; all where there are no more.

    Returns:
        Indices ``(min(count, P),)``, in the order of choice.
    """
    if count >= len(tokens):
        return torch.arange(len(tokens), device=tokens.device)
    nearest = torch.full((len(tokens),), -2.0, device=tokens.device, dtype=tokens.dtype)
    chosen = [torch.zeros((), dtype=torch.long, device=tokens.device)]
    for _ in range(count - 1):
        nearest = torch.maximum(nearest, tokens @ tokens[chosen[-1]])
        chosen.append(nearest.argmin())
    return torch.stack(chosen)


def directions(depths: Sequence[Tensor]) -> Tensor:
    """Normalise the tokens of each depth, ``K`` times ``(B, N, D)``, into unit vectors ``(B, K, N, D)``."""
    return F.normalize(torch.stack(list(depths), dim=1), dim=-1)
