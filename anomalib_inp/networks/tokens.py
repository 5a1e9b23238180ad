# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The encoder alone, for methods that read its tokens and reconstruct nothing."""

from torch import Tensor, nn

from anomalib_inp.encoder.frozen import FrozenEncoder
from anomalib_inp.outputs import Reconstruction


class TokensOnly(nn.Module):
    """Encodes images; there are no prototypes and no decoder.

    Args:
        encoder: The frozen encoder.
    """

    def __init__(self, encoder: FrozenEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Reconstruction:
        """Encode normalised images ``(B, 3, H, W)``."""
        return Reconstruction(self.encoder(images))
