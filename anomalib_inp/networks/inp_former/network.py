# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The network of INP-Former: images in, their reconstruction from their own prototypes out."""

from torch import Tensor, nn

from anomalib_inp.encoder.frozen import FrozenEncoder
from anomalib_inp.networks.inp_former.bottleneck import bottleneck
from anomalib_inp.networks.inp_former.decoder import InpGuidedDecoder
from anomalib_inp.networks.inp_former.extractor import InpExtractor
from anomalib_inp.outputs import PatchFeatures, Reconstruction


class InpFormerNetwork(nn.Module):
    """Encoder, INP extractor, bottleneck and INP-guided decoder (paper, figure 2).

    Args:
        encoder: The frozen encoder; it sets width, heads and the number of decoder blocks.
        num_prototypes: Prototypes per image ``M``.
    """

    def __init__(self, encoder: FrozenEncoder, num_prototypes: int = 6) -> None:
        super().__init__()
        dim, num_heads = encoder.embed_dim, encoder.num_heads
        self.encoder = encoder
        self.extractor = InpExtractor(dim, num_heads, num_prototypes)
        self.bottleneck = bottleneck(dim)
        self.decoder = InpGuidedDecoder(dim, num_heads, depth=len(encoder.target_layers))
        for trained in (self.extractor, self.bottleneck, self.decoder):
            trained.apply(_initialise)

    def forward(self, images: Tensor) -> Reconstruction:
        """Reconstruct normalised images ``(B, 3, H, W)``; ``H`` and ``W`` are multiples of the patch size."""
        return self.reconstruct(self.encoder(images))

    def reconstruct(self, features: PatchFeatures) -> Reconstruction:
        """Reconstruct patch features, wherever they come from."""
        fused = features.fused  # (B, N, D)
        prototypes = self.extractor(fused)  # (B, M, D)
        latent = self.bottleneck(fused)  # (B, N, D)
        groups = self.decoder(latent, prototypes)  # 2 x (B, N, D)
        return Reconstruction(features, prototypes, groups)


def _initialise(module: nn.Module) -> None:
    """Initialise as the reference does: narrow truncated normals (reference, ``INP_Former_*.py``)."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.01, a=-0.03, b=0.03)
        nn.init.zeros_(module.bias)
