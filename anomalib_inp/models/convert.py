# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Writes checkpoints that take a model to write: converted published ones, and ours with another map."""

from pathlib import Path

from lightning import Trainer
from safetensors.torch import save

from anomalib_inp.checkpoints.own import read_checkpoint, write_checkpoint
from anomalib_inp.checkpoints.published import take_apart
from anomalib_inp.encoder.weights import read_weights
from anomalib_inp.models.inp_former import InpFormer
from anomalib_inp.models.registry import load_model


def convert_reference(published: str | Path, checkpoint: str | Path) -> Path:
    """Write a published checkpoint as one of ours, and its encoder beside it.

    Returns:
        The file of the encoder.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A key is missing, left over or of another shape; the message names it.
    """
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
    path = Path(checkpoint)
    content = read_checkpoint(path)
    if map is not None:
        content.setdefault("hyper_parameters", {})["map"] = load_model(path, map=map).model.map
        write_checkpoint(path, content)
    return str(content.get("hyper_parameters", {}).get("map") or content.get("map", "reconstruction"))
