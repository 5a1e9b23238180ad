# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Published checkpoints of the reference code, taken apart."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from anomalib_inp.encoder.weights import encoder_from_state
from anomalib_inp.networks.inp_former.network import InpFormerNetwork

ENCODER_PREFIX = "encoder."
# What the reference calls a part, and what we call it.
RENAMED = {
    "prototype_token": "extractor.queries",
    "aggregation.0.": "extractor.",
    "bottleneck.0.": "bottleneck.",
    "decoder.": "decoder.blocks.",
}
PUBLISHED_ENCODERS = {(384, 12): "small", (768, 12): "base", (1024, 24): "large"}


class Reference(NamedTuple):
    """A published checkpoint, taken apart.

    Attributes:
        encoder: The encoder's weights in DINOv2's naming.
        trained: The trained weights in our naming.
        arguments: Arguments of the model that the weights fit, read off the shapes.
    """

    encoder: dict[str, Tensor]
    trained: dict[str, Tensor]
    arguments: dict[str, Any]


def take_apart(state: Mapping[str, Tensor]) -> Reference:
    """Separate and rename the weights of a published checkpoint.

    Raises:
        ValueError: Keys are missing from which the sizes are read, or keys are of no known part.
    """
    needed = ("prototype_token", "decoder.0.attn.learn_scale", "encoder.pos_embed", "encoder.blocks.0.norm1.weight")
    missing = [key for key in needed if key not in state]
    if missing:
        msg = (
            f"Expected a checkpoint of the INP-Former reference code (encoder, bottleneck, aggregation, decoder, "
            f"prototype_token), but {', '.join(missing)} is missing."
        )
        raise ValueError(msg)
    encoder = {key.removeprefix(ENCODER_PREFIX): state[key] for key in state if key.startswith(ENCODER_PREFIX)}
    trained, unknown = {}, []
    for key in state:
        old = next((old for old in RENAMED if key.startswith(old)), None)
        if old is not None:
            trained[RENAMED[old] + key.removeprefix(old)] = state[key]
        elif not key.startswith(ENCODER_PREFIX):
            unknown.append(key)
    if unknown:
        msg = f"The checkpoint holds keys that belong to no part of INP-Former: {', '.join(unknown[:5])}."
        raise ValueError(msg)

    num_prototypes, dim = state["prototype_token"].shape
    depth = 1 + max(int(key.split(".")[1]) for key in encoder if key.startswith("blocks."))
    registers = "register_tokens" in encoder
    size = PUBLISHED_ENCODERS.get((dim, depth))
    arguments: dict[str, Any] = {
        "encoder": f"vit_{size or 'small'}_patch14_{'reg4_' if registers else ''}dinov2",
        "num_prototypes": num_prototypes,
    }
    if size is None:
        heads = state["decoder.0.attn.learn_scale"].shape[0]
        arguments["encoder_kwargs"] = {"embed_dim": dim, "depth": depth, "num_heads": heads}
    return Reference(encoder, trained, arguments)


def network_from_reference(state: Mapping[str, Tensor]) -> InpFormerNetwork:
    """Build the network of a published checkpoint, in the precision of its weights.

    Raises:
        ValueError: A key is missing, left over or of another shape; the message names it.
    """
    encoder_state, trained, arguments = take_apart(state)
    encoder = encoder_from_state(
        arguments["encoder"], encoder_state, "the checkpoint", timm_kwargs=arguments.get("encoder_kwargs")
    )
    network = InpFormerNetwork(encoder, arguments["num_prototypes"]).to(state["prototype_token"].dtype)
    load_trained(network, trained)
    return network


def load_trained(network: nn.Module, trained: Mapping[str, Tensor]) -> None:
    """Load all trained weights, and nothing else.

    Raises:
        ValueError: A key is missing, left over or of another shape; the message names it.
    """
    try:
        network.load_state_dict(trained, strict=True)
    except RuntimeError as error:
        msg = f"The checkpoint does not fit the network: {error}"
        raise ValueError(msg) from error
