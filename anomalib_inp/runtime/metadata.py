# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What an exported model says of itself."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from anomalib_inp.frame import CropBox
from anomalib_inp.thresholds.scale import Scale

KEY = "anomalib_inp"
LABELS = {"image": "pred_label", "pixel": "pred_mask"}


class Metadata(NamedTuple):
    """What an exported model says of itself; raw scores and thresholds are cosine distances.

    Attributes:
        normalized: Whether scores and maps come out normalised (0.5 is the threshold) or raw.
        image: Threshold of image scores, and the lowest and highest score of the validation images.
        pixel: The same of maps.
        crop_box: The inspected part of the image.
        categories: Of a model of several categories: the scales of image scores and of maps of each.
        image_limit: Normalised score above which an image is anomalous.
        pixel_limit: The same for maps.
    """

    normalized: bool
    image: Scale
    pixel: Scale
    crop_box: CropBox
    categories: dict[str, tuple[Scale, Scale]] = {}
    image_limit: float = 0.5
    pixel_limit: float = 0.5

    @classmethod
    def from_json(cls, text: str) -> "Metadata":
        """Read what :meth:`to_json` has written, or the exports of before, which say spans instead of both ends."""
        values = json.loads(text)
        categories = values.pop("categories", {})
        if "image_span" in values:
            both = [Scale.of_span(values.pop(f"{kind}_threshold"), values.pop(f"{kind}_span")) for kind in LABELS]
            scales = {name: (Scale.of_span(*four[:2]), Scale.of_span(*four[2:])) for name, four in categories.items()}
        else:
            both = [Scale(*values.pop(kind)) for kind in LABELS]
            scales = {name: (Scale(*image), Scale(*pixel)) for name, (image, pixel) in categories.items()}
        crop_box = CropBox(*values.pop("crop_box"))
        return cls(image=both[0], pixel=both[1], crop_box=crop_box, categories=scales, **values)

    def to_json(self) -> str:
        """Write all of it down, scales as threshold, lowest and highest value."""
        return json.dumps(self._asdict())

    def of_category(self, category: str) -> "Metadata":
        """Take over the scales of a category.

        Raises:
            ValueError: There are none.
        """
        if category not in self.categories:
            present = ", ".join(self.categories) or "no categories"
            msg = f"The model has no thresholds of the category {category!r}; it knows {present}."
            raise ValueError(msg)
        image, pixel = self.categories[category]
        return self._replace(image=image, pixel=pixel)

    def to_raw(self, normalized: Any, kind: str = "image") -> np.ndarray:
        """Turn normalised scores (``kind="image"``) or map values (``"pixel"``) into raw ones."""
        return getattr(self, kind).to_raw(normalized)

    def to_normalized(self, raw: Any, kind: str = "image") -> np.ndarray:
        """Turn raw scores (``kind="image"``) or map values (``"pixel"``) into normalised ones."""
        return getattr(self, kind).normalise(raw)


def read_metadata(path: str | Path) -> Metadata:
    """Read what an exported OpenVINO (``.xml``) or ONNX (``.onnx``) model says of itself.

    Raises:
        ValueError: The file is no export of ours.
    """
    path = Path(path)
    if path.suffix not in {".xml", ".onnx"} or not path.is_file():
        wrong = "there is no such file" if not path.exists() else "export the checkpoint first: anomalib export"
        msg = f"Expected the .xml of an exported OpenVINO model or an .onnx file, got {path}: {wrong}."
        raise FileNotFoundError(msg)
    try:
        text = (_onnx_text if path.suffix == ".onnx" else _openvino_text)(path)
    except Exception as error:  # each runtime has its own
        msg = f"{path} cannot be read as a model; an OpenVINO model needs its .bin beside it. {type(error).__name__}"
        raise ValueError(msg) from error
    if text is None:
        msg = f"{path} carries no metadata of anomalib-inp; export the model with anomalib export --model InpFormer."
        raise ValueError(msg)
    return Metadata.from_json(text)


def _onnx_text(path: Path) -> str | None:
    import onnx

    return {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}.get(KEY)


def _openvino_text(path: Path) -> str | None:
    import openvino

    model = openvino.Core().read_model(path)
    return model.get_rt_info(KEY).astype(str) if model.has_rt_info(KEY) else None
