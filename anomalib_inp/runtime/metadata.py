# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What an exported model says of itself."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from anomalib_inp.frame import CropBox

KEY = "anomalib_inp"
LABELS = {"image": "pred_label", "pixel": "pred_mask"}


class Metadata(NamedTuple):
    """What an exported model says of itself; raw scores and thresholds are cosine distances.

    Attributes:
        normalized: Whether scores and maps come out normalised (0.5 is the threshold) or raw.
        image_threshold: Threshold of image scores.
        image_span: Raw score that a margin of 1 stands for (see ``InpPostProcessor``).
        pixel_threshold: Threshold of maps.
        pixel_span: The same for maps.
        crop_box: The inspected part of the image.
        categories: Of a model of several categories: threshold and span of scores, then of maps, of each.
        image_limit: Normalised score above which an image is anomalous.
        pixel_limit: The same for maps.
    """

    normalized: bool
    image_threshold: float
    image_span: float
    pixel_threshold: float
    pixel_span: float
    crop_box: CropBox
    categories: dict[str, list[float]] = {}
    image_limit: float = 0.5
    pixel_limit: float = 0.5

    def of_category(self, category: str) -> "Metadata":
        """Take over the thresholds and spans of a category.

        Raises:
            ValueError: There are none.
        """
        if category not in self.categories:
            known = ", ".join(self.categories) or "no categories"
            msg = f"The model has no thresholds of the category {category!r}; it knows {known}."
            raise ValueError(msg)
        image, image_span, pixel, pixel_span = self.categories[category]
        return self._replace(image_threshold=image, image_span=image_span, pixel_threshold=pixel, pixel_span=pixel_span)

    def to_raw(self, normalized: Any, kind: str = "image") -> np.ndarray:
        """Turn normalised scores (``kind="image"``) or map values (``"pixel"``) into raw ones."""
        threshold, span = getattr(self, f"{kind}_threshold"), getattr(self, f"{kind}_span")
        t = np.clip(2 * np.asarray(normalized, dtype=np.float64) - 1, -1 + 1e-7, 1 - 1e-7)
        return t / np.sqrt(1 - t**2) * span + threshold

    def to_normalized(self, raw: Any, kind: str = "image") -> np.ndarray:
        """Turn raw scores (``kind="image"``) or map values (``"pixel"``) into normalised ones."""
        threshold, span = getattr(self, f"{kind}_threshold"), getattr(self, f"{kind}_span")
        margin = (np.asarray(raw, dtype=np.float64) - threshold) / span
        return (1 + margin / np.sqrt(1 + margin**2)) / 2


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
    values = json.loads(text)
    return Metadata(**{**values, "crop_box": CropBox(*values["crop_box"])})


def _onnx_text(path: Path) -> str | None:
    import onnx

    return {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}.get(KEY)


def _openvino_text(path: Path) -> str | None:
    import openvino

    model = openvino.Core().read_model(path)
    return model.get_rt_info(KEY).astype(str) if model.has_rt_info(KEY) else None
