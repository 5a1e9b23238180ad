# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What an exported model says of itself."""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

from anomalib_inp.files import locked, partial_of
from anomalib_inp.frame import CropBox
from anomalib_inp.results.inspection import EVERYTHING, Inspection
from anomalib_inp.thresholds.scale import NO_SCORES, Scale, ValidationScores
from anomalib_inp.tiles import Tiles

KEY = "anomalib_inp"
TAG, TAG_SIZE = "anomalib_inp_weights", 16
"""Name of what both files of an OpenVINO model say, the .bin in its last bytes, and how many those are: a kill may come
between writing one and the other."""
_METADATA_PROPS = 14  # number of that field of an ONNX file
LABELS = {"image": "pred_label", "pixel": "pred_mask"}


class MismatchError(ValueError):
    """The two files of a model do not belong together."""


class Tiling(NamedTuple):
    """How an image of any size is cut for a graph that takes tiles.

    Attributes:
        tiles: The tiles.
        image_size: Height and width that images are resized to before; ``None`` leaves them as they are.
    """

    tiles: Tiles
    image_size: tuple[int, int] | None = None

    @classmethod
    def read(cls, values: Any) -> "Tiling | None":
        """Read what JSON makes of it."""
        if values is None:
            return None
        (size, *others), image_size = values
        return cls(Tiles((size[0], size[1]), *others), None if image_size is None else (image_size[0], image_size[1]))


class Metadata(NamedTuple):
    """What an exported model says of itself; raw scores and thresholds are in the units of its map.

    Attributes:
        normalized: Whether scores and maps come out normalised (0.5 is the threshold) or raw.
        image: Threshold of image scores, and the lowest and highest score of the validation images.
        pixel: The same of maps.
        crop_box: The inspected part of the image.
        categories: Of a model of several categories: the scales of image scores and of maps of each.
        category: The category whose scales are those of the graph; ``None`` for the common ones.
        image_limit: Normalised score above which an image is anomalous.
        pixel_limit: The same for maps.
        validation: Raw scores of the validation images that the image threshold is of.
        category_validation: The same of each category.
        inspection: What of an image is inspected, and how large a region must be.
        map_size: Height and width of the map; ``None`` of exports of before, and where it depends on the image.
        share: Share of the pixels of a map that a score is the mean of, from 1 on their number; ``None`` likewise.
        tiling: How images are cut for a graph that takes tiles; ``None`` for one that takes images.
        resized: Height and width that images are resized to before the graph has them; ``None`` where it resizes.
        references: What the normal images of the training are like, by category, empty for all: brightness, sharpness.
    """

    normalized: bool
    image: Scale
    pixel: Scale
    crop_box: CropBox
    categories: dict[str, tuple[Scale, Scale]] = {}
    image_limit: float = 0.5
    pixel_limit: float = 0.5
    category: str | None = None
    validation: ValidationScores = NO_SCORES
    category_validation: dict[str, ValidationScores] = {}
    inspection: Inspection = EVERYTHING
    map_size: tuple[int, int] | None = None
    share: float | None = None
    references: dict[str, dict[str, list[float]]] = {}
    tiling: Tiling | None = None
    resized: tuple[int, int] | None = None

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
        read: dict[str, Any] = {
            "crop_box": CropBox(*values.pop("crop_box")),
            "validation": ValidationScores(*values.pop("validation", NO_SCORES)),
            "inspection": Inspection(*values.pop("inspection", EVERYTHING)),
            "tiling": Tiling.read(values.pop("tiling", None)),
            **{name: tuple(values.pop(name, None) or ()) or None for name in ("map_size", "resized")},
            "category_validation": {
                name: ValidationScores(*kept) for name, kept in values.pop("category_validation", {}).items()
            },
        }
        return cls(image=both[0], pixel=both[1], categories=scales, **read, **values)

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
        kept = self.category_validation.get(category, NO_SCORES)
        return self._replace(image=image, pixel=pixel, validation=kept, category=category)

    @property
    def reference(self) -> dict[str, list[float]]:
        """Values of the normal images that what passes is compared with: scores, brightness, sharpness."""
        statistics = self.references.get(self.category or "", {})
        return {"score": self.validation.normal, **statistics}

    @property
    def in_force(self) -> tuple[float, float]:
        """Raw score and raw map value above which something is anomalous; NaN without thresholds."""
        return self.image.in_force(self.image_limit), self.pixel.in_force(self.pixel_limit)

    def places(self, size: tuple[int, ...]) -> np.ndarray | None:
        """Tell which places of a map of this height and width are inspected, bool ``(h, w)``; ``None`` for all."""
        return self.inspection.places(self.crop_box, (size[0], size[1]))

    @property
    def places_for_metrics(self) -> Callable[[tuple[int, ...]], np.ndarray | None] | None:
        """:meth:`places`; ``None`` where all places count, and maps are of one size, so that every pixel is kept."""
        return self.places if self.inspection.mask or self.tiling is not None else None

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
        text = _onnx_text(path) if path.suffix == ".onnx" else _complete_text(path)
    except MismatchError:
        raise
    except Exception as error:  # whatever a broken file leads to
        raise unreadable(path, error) from error
    if text is None:
        msg = f"{path} carries no metadata of anomalib-inp; export the model with anomalib export --model InpFormer."
        raise ValueError(msg)
    return Metadata.from_json(text)


def unreadable(path: Path, error: Exception) -> ValueError:
    """Make the error of a file that is no model."""
    msg = f"{path} cannot be read as a model; an OpenVINO model needs its .bin beside it. {type(error).__name__}"
    return ValueError(msg)


def _onnx_text(path: Path) -> str | None:
    # Not by ONNX Runtime, which would start a session: the fields of the file lie one after the other, and the graph,
    # which is nearly all of it, is stepped over.
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        entries = [content[start:end] for field, start, end in _fields(content) if field == _METADATA_PROPS]
    pairs = ([entry[start:end].decode() for _, start, end in _fields(entry)] for entry in entries)
    return dict(pair for pair in pairs if len(pair) == 2).get(KEY)


def _fields(content: bytes | mmap) -> Iterator[tuple[int, int, int]]:
    """Number of each field of a protobuf message, and where its content begins and ends."""
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = content[position]
            position, value, shift = position + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    while position < len(content):
        field, kind = divmod(varint(), 8)
        start = position
        if kind == 0:
            varint()
        else:
            size = varint() if kind == 2 else {1: 8, 5: 4}[kind]
            start = position
            position += size
        if position > len(content):
            raise EOFError
        yield field, start, position


def _complete_text(path: Path) -> str | None:
    """Read an OpenVINO model that another process may be changing, or that a killed one has half changed."""
    with suppress(MismatchError):
        return _openvino_text(path)
    with locked(path):  # whoever was changing it has ended
        unfinished = partial_of(path)
        with suppress(MismatchError):
            return _openvino_text(path)
        if unfinished.is_file():  # as a kill leaves it
            unfinished.replace(path)
        return _openvino_text(path)


def _openvino_text(path: Path) -> str | None:
    path.with_suffix(".bin").stat()
    # Not by OpenVINO, which would build the model: this is the text of an attribute of one of the last elements.
    tree = ElementTree.parse(path)  # noqa: S314 - Python's parser limits what entities expand to
    tag, entry = (tree.find(f"rt_info/{name}") for name in (TAG, KEY))
    if tag is not None and tag.get("value") != _last_bytes(path.with_suffix(".bin")):
        msg = f"{path} and its .bin were not written together: take both from one export."
        raise MismatchError(msg)
    return None if entry is None else entry.get("value")


def _last_bytes(weights: Path) -> str:
    with weights.open("rb") as file:
        file.seek(max(0, weights.stat().st_size - TAG_SIZE))
        return file.read().hex()
