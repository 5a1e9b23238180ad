# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Checkpoints: published ones become ours, and ours find their encoder again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_warn
from safetensors.torch import save
from torch import Tensor

from anomalib_inp.network.encoder import FrozenEncoder
from anomalib_inp.network.inp_former import InpFormerNetwork
from anomalib_inp.network.weights import encoder_from_state, read_weights
from anomalib_inp.post_processing import check_thresholds

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


def load_trained(network: InpFormerNetwork, trained: Mapping[str, Tensor]) -> None:
    """Load all trained weights, and nothing else.

    Raises:
        ValueError: A key is missing, left over or of another shape; the message names it.
    """
    try:
        network.load_state_dict(trained, strict=True)
    except RuntimeError as error:
        msg = f"The checkpoint does not fit the network: {error}"
        raise ValueError(msg) from error


def load_reconstruction(network: InpFormerNetwork, path: str | Path, pre_processor: Any) -> None:
    """Load the reconstruction of a finished checkpoint of ours into a network.

    Args:
        network: The network.
        path: Checkpoint of either model.
        pre_processor: Pre-processor that the network is used with.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a checkpoint of ours, or of another encoder, frame or number of prototypes.
    """
    checkpoint = read_checkpoint(path)
    check_encoder(checkpoint, network.encoder)
    check_frame(checkpoint, pre_processor)
    prefix = "model.network."
    weights = checkpoint["state_dict"].items()
    load_trained(network, {name.removeprefix(prefix): weight for name, weight in weights if name.startswith(prefix)})


def read_checkpoint(path: str | Path, mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint of ours without running any code from it.

    Args:
        path: The file.
        mmap: Leave the weights on disk, for a look at the rest alone.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file is no checkpoint of Lightning, or holds more than plain data and tensors.
    """
    path = Path(path)
    if not path.is_file():
        msg = f"There is no checkpoint {path}."
        raise FileNotFoundError(msg)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:
        msg = (
            f"{path} is no checkpoint, or holds more than plain data; it is refused, because reading it could run code."
        )
        raise ValueError(msg) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        msg = f"{path} is no checkpoint of a training. A published one is converted first: anomalib-inp convert."
        raise ValueError(msg)
    return checkpoint


def check_frame(checkpoint: Mapping[str, Any], pre_processor: Any) -> None:
    """Refuse a checkpoint that was trained on images of another size or crop.

    Raises:
        ValueError: The model's pre-processor is not the one of the training.
    """
    trained = checkpoint.get("anomalib_pre_processor_config", {}).get("transform")
    if trained is None or pre_processor is None:
        return
    own = pre_processor.checkpoint_config()["transform"]
    if own != trained:
        steps = [step["init_args"].get("size") for step in trained["init_args"].get("transforms", [])]
        sizes = [str(size) for size in steps if size]
        msg = (
            f"The checkpoint was trained on images of {', cropped to '.join(sizes) or 'another kind'} (height, width), "
            "but the model is built for others. Build it with the same --model.image_size and --model.crop_size."
        )
        raise ValueError(msg)


def warn_of_another_map(checkpoint: Mapping[str, Any], shown: str) -> None:
    """Warn that thresholds are of another anomaly map than the one that will be shown."""
    trained = checkpoint.get("map", shown)
    if (
        trained != shown
        and not checkpoint["state_dict"].get("post_processor._image_threshold", torch.tensor(0)).isnan()
    ):
        rank_zero_warn(
            f"The thresholds in this checkpoint are of the map {trained!r}, but the map {shown!r} is shown: labels and "
            "masks mean nothing until thresholds are chosen anew (validate, or set them by hand: anomalib-inp "
            "threshold). Metrics do not depend on them."
        )


def check_model(checkpoint: Mapping[str, Any], model: str) -> None:
    """Refuse a checkpoint of the other model.

    Raises:
        ValueError: It is.
    """
    trained = checkpoint.get("model", model)
    if trained != model:
        msg = f"This is a checkpoint of {trained}, not of {model}: --model {trained}, in Python anomalib_inp.{trained}."
        raise ValueError(msg)


def find_encoder(checkpoint: Mapping[str, Any], checkpoint_path: str | Path) -> str | None:
    """Find the encoder's file beside a checkpoint where the place that the checkpoint names is gone.

    Returns:
        The file, or ``None`` where the checkpoint's own answer holds.
    """
    origin = Path(checkpoint.get("hyper_parameters", {}).get("encoder_weights", "timm"))
    beside = Path(checkpoint_path).parent / origin.name
    return str(beside) if origin.suffix and not origin.is_file() and beside.is_file() else None


def note_encoder(checkpoint: dict[str, Any], encoder: FrozenEncoder) -> None:
    """Note in a checkpoint which encoder it needs."""
    arguments = checkpoint.get("hyper_parameters", {})
    checkpoint["encoder_digest"] = encoder.digest
    # Lightning mixes what the user asks for into the arguments of the training before we can compare them.
    checkpoint["encoder_origin"] = {name: arguments.get(name) for name in ("encoder", "encoder_weights")}
    checkpoint["encoder_origin"]["target_layers"] = list(encoder.target_layers)


def check_encoder(checkpoint: Mapping[str, Any], encoder: FrozenEncoder) -> None:
    """Refuse a checkpoint that was trained with another encoder.

    Raises:
        ValueError: The encoder's weights are not those of the training.
    """
    origin = checkpoint.get("encoder_origin", checkpoint.get("hyper_parameters", {}))
    layers = origin.get("target_layers") or encoder.target_layers
    if checkpoint.get("encoder_digest", encoder.digest) == encoder.digest and layers == encoder.target_layers:
        return
    msg = (
        f"The checkpoint was trained with the encoder {origin.get('encoder')!r}, the weights "
        f"{origin.get('encoder_weights')!r} and the target layers {layers}, but the model has other ones. Build the "
        "model with the same arguments (--model.encoder, --model.encoder_weights, --model.target_layers); if they are "
        "the same, the contents of the weights have changed since the training."
    )
    raise ValueError(msg)


def convert_reference(published: str | Path, checkpoint: str | Path) -> Path:
    """Write a published checkpoint as one of ours, and its encoder beside it.

    Returns:
        The file of the encoder.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A key is missing, left over or of another shape; the message names it.
    """
    from lightning import Trainer

    from anomalib_inp.models.inp_former import InpFormer

    checkpoint = Path(checkpoint)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    encoder = checkpoint.with_suffix(".encoder.safetensors")
    state = read_weights(published)
    InpFormer.from_reference(published)  # refuses a file that does not fit before anything is written
    # safetensors' own save_file would make a file that only its owner can read
    encoder.write_bytes(save({name: weight.contiguous() for name, weight in take_apart(state).encoder.items()}))
    model = InpFormer.from_reference(published, encoder_weights=str(encoder.resolve()))
    trainer = Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
    trainer.strategy.connect(model)
    trainer.save_checkpoint(checkpoint, weights_only=True)
    return encoder


def set_thresholds(
    checkpoint: str | Path,
    image: float | None = None,
    pixel: float | None = None,
    normalized: bool | None = None,
    category: str | None = None,
) -> dict[str, Any]:
    """Set the thresholds of a checkpoint, in place, and choose between normalised and raw exports.

    Args:
        checkpoint: A checkpoint of ours.
        image: New image threshold, a raw score; ``None`` leaves it, or takes the other one's value where it is missing.
        pixel: New pixel threshold, a raw map value; ``None`` likewise.
        normalized: Whether exports give normalised scores; ``None`` leaves it.
        category: The category whose thresholds are meant; ``None`` for the common ones.

    Returns:
        What the checkpoint says now, and which categories have thresholds of their own.

    Raises:
        ValueError: Not a checkpoint of ours, an unknown category, or a threshold that is no finite number.
    """
    path = Path(checkpoint)
    content = read_checkpoint(path)
    config = content.get("anomalib_post_processor_config")
    if config is None:
        msg = f"{path} is no checkpoint with a post-processor of anomalib-inp."
        raise ValueError(msg)
    given = {name: value for name, value in (("image", image), ("pixel", pixel)) if value is not None}
    check_thresholds(image, pixel)
    if category is None:
        thresholds = _move_common(content["state_dict"], given)
    else:
        thresholds = _move_own(config.get("ranges", {}), category, given)
    if normalized is not None:
        config["enable_normalization"] = normalized
    if (image, pixel, normalized) != (None, None, None):
        _write(path, content)
    return {**thresholds, "normalized": config["enable_normalization"], "categories": list(config.get("ranges", {}))}


def _move_common(state: dict[str, torch.Tensor], given: Mapping[str, float]) -> dict[str, float]:
    """Set the common thresholds in a state dict, and tell them."""
    thresholds = {kind: state[f"post_processor._{kind}_threshold"] for kind in ("image", "pixel")}
    for name, value in given.items():
        for kind, threshold in thresholds.items():
            if kind == name or (kind not in given and threshold.isnan()):
                threshold.fill_(value)
    return {kind: float(threshold) for kind, threshold in thresholds.items()}


def _move_own(ranges: dict[str, Any], category: str, given: Mapping[str, float]) -> dict[str, float]:
    """Set the thresholds of a category in the post-processor's description, and tell them.

    Raises:
        ValueError: There are none.
    """
    if category not in ranges:
        msg = f"The checkpoint has no thresholds of the category {category!r}; it has {', '.join(ranges) or 'none'}."
        raise ValueError(msg)
    own = dict(zip(("image", "pixel"), ranges[category], strict=True))
    for name, value in given.items():
        own[name][0] = value
    return {kind: values[0] for kind, values in own.items()}


def set_map(checkpoint: str | Path, map: str | None = None) -> str:  # noqa: A002
    """Choose the anomaly map of a checkpoint, in place: what is exported, and shown where no other map is asked for.

    Args:
        checkpoint: A checkpoint of ours.
        map: Name of the map; ``None`` leaves it.

    Returns:
        The map of the checkpoint.

    Raises:
        ValueError: Not a checkpoint of ours, or the model has no such map.
    """
    from anomalib_inp.models.loading import load_model

    path = Path(checkpoint)
    content = read_checkpoint(path)
    if map is not None:
        content.setdefault("hyper_parameters", {})["map"] = load_model(path, map=map).model.map
        _write(path, content)
    return str(content.get("hyper_parameters", {}).get("map") or content.get("map", "reconstruction"))


def _write(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint in one step: it is the old one or the new one, never half of either."""
    temporary = path.with_name(f".{path.name}.tmp")
    torch.save(content, temporary)
    temporary.replace(path)
