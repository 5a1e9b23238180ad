# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Checkpoints of ours: read, noted in, and checked against the model that loads them."""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from anomalib_inp.checkpoints.published import load_trained
from anomalib_inp.encoder.frozen import FrozenEncoder
from anomalib_inp.files import replacing


def load_reconstruction(network: nn.Module, path: str | Path, pre_processor: Any) -> None:
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
    except OSError:
        raise  # it is not the content that is wrong
    except Exception as error:
        msg = (
            f"{path} is no checkpoint, or holds more than plain data; it is refused, because reading it could run code."
        )
        raise ValueError(msg) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        msg = f"{path} is no checkpoint of a training. A published one is converted first: anomalib-inp convert."
        raise ValueError(msg)
    return checkpoint


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint in one step.

    Raises:
        DiskError: The disk is full.
    """
    with replacing_checkpoint(path, content):
        pass


@contextmanager
def replacing_checkpoint(path: Path, content: dict[str, Any]) -> Iterator[None]:
    """Write a checkpoint beside itself, and put it in its place where what is done meanwhile does not fail.

    Raises:
        DiskError: The disk is full.
    """
    buffer = io.BytesIO()  # of a full disk, torch says only that writing failed
    torch.save(content, buffer)
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())
        yield


def check_frame(checkpoint: Mapping[str, Any], pre_processor: Any) -> None:
    """Refuse a checkpoint that was trained on images of another size or crop.

    Raises:
        ValueError: The model's pre-processor is not the one of the training.
    """
    trained = checkpoint.get("anomalib_pre_processor_config", {}).get("transform")
    if trained is None or pre_processor is None:
        return
    config = pre_processor.checkpoint_config()
    tiles = [given.get("tile_size") for given in (checkpoint["anomalib_pre_processor_config"], config)]
    if tiles[0] != tiles[1]:
        trained_on, built_for = (f"tiles of {size[1]} x {size[0]}" if size else "whole images" for size in tiles)
        msg = f"The checkpoint was trained on {trained_on}, but the model is built for {built_for}: --model.tiles."
        raise ValueError(msg)
    if config["transform"] != trained:
        steps = [step["init_args"].get("size") for step in trained["init_args"].get("transforms", [])]
        sizes = [str(size) for size in steps if size]
        msg = (
            f"The checkpoint was trained on images of {', cropped to '.join(sizes) or 'another kind'} (height, width), "
            "but the model is built for others. Build it with the same --model.image_size and --model.crop_size."
        )
        raise ValueError(msg)


def check_map(path: Path, content: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that shows another map than its thresholds and the scores that it keeps are of.

    Raises:
        ValueError: It does.
    """
    shown = content.get("hyper_parameters", {}).get("map") or content.get("map")
    trained = content.get("map", shown)
    if shown != trained:
        msg = (
            f"{path} shows the map {shown!r}, but its thresholds and the scores that it keeps are of the map "
            f"{trained!r}: anomalib-inp map CHECKPOINT {trained}, or train with --model.map {shown}."
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


def warn_of_other_tiles(checkpoint: Mapping[str, Any], tiles: list[Any]) -> None:
    """Warn that thresholds are of images that were cut, merged or scored in another way."""
    trained = checkpoint.get("tiles", tiles)
    if trained != tiles:
        names = ("size", "overlap", "second_scale", "share of the map, or pixels of it, that are scored")
        pairs = zip(names, trained, tiles, strict=True)
        other = [f"{name} {before} instead of {now}" for name, before, now in pairs if before != now]
        rank_zero_warn(
            f"The checkpoint was trained on tiles of {', '.join(other)}: scores are others, and its thresholds do not "
            "fit them. Give the same --model.tiles, or choose thresholds anew (validate)."
        )


def warn_of_other_places(checkpoint: Mapping[str, Any], others: bool) -> None:
    """Warn that thresholds were chosen while another part of the image was inspected."""
    threshold = checkpoint["state_dict"].get("post_processor._image_threshold", torch.tensor(torch.nan))
    if others and not threshold.isnan():
        rank_zero_warn(
            "The thresholds in this checkpoint are of another region of interest. Choose them anew: validate, or "
            "anomalib-inp threshold."
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
    origin = str(checkpoint.get("hyper_parameters", {}).get("encoder_weights", "timm"))
    if not Path(origin).suffix or Path(origin).is_file():
        return None
    names = (Path(origin).name, PureWindowsPath(origin).name)  # the training may have been on Windows
    beside = (Path(checkpoint_path).parent / name for name in names)
    return next((str(path) for path in beside if path.is_file()), None)


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
        "model with the same arguments (--model.encoder, --model.encoder_weights, --model.target_layers, "
        "--model.context_recentering); if they are the same, the contents of the weights have changed since the "
        "training."
    )
    raise ValueError(msg)
