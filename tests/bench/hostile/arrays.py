# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Arrays and tensors."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anomalib.data import ImageBatch, ImageItem
from PIL import Image
from torch.utils.data import DataLoader

from hostile.bench import Bench, Case, Run, near


def arrays(bench: Bench) -> Iterator[Case]:
    """Arrays and tensors, through both runtimes and the model itself."""
    image = bench.image
    score, deep, unit = bench.score(image), image.astype(np.uint16) * np.uint16(257), image * np.float32(1 / 255)
    holed = unit.copy()
    holed[5, 5, 1] = np.nan
    right: dict[str, Any] = {
        "uint8, H x W x 3": image,
        "uint8, 3 x H x W": image.transpose(2, 0, 1),
        "uint8, B x H x W x 3": image[None],
        "uint8, B x 3 x H x W": image.transpose(2, 0, 1)[None],
        "uint16, H x W x 3": deep,
        "uint16, 3 x H x W": deep.transpose(2, 0, 1),
        "float32, H x W x 3": unit,
        "float32, B x 3 x H x W": unit.transpose(2, 0, 1)[None],
        "Fortran order": np.asfortranarray(image),
        "turned over twice, strides below 0": np.ascontiguousarray(image[::-1, ::-1])[::-1, ::-1],
        "every second pixel of a larger one": np.repeat(np.repeat(image, 2, axis=0), 2, axis=1)[::2, ::2],
        "overshoot of a filter": np.where(unit == 1, np.float32(1.0005), unit),
    }
    only_numpy = {
        "float64, H x W x 3": unit.astype(np.float64),
        "big-endian uint16": deep.astype(">u2"),
        "an image of Pillow": Image.fromarray(image),
        "read-only": np.frombuffer(image.tobytes(), np.uint8).reshape(image.shape),
    }
    wrong: dict[str, tuple[Any, str]] = {
        "float up to 255": (image.astype(np.float32), "got 0 to 255"),
        "normalised": ((unit - 0.45) / 0.22, "do not normalise"),
        "a NaN": (holed, "nan"),
        "all NaN": (unit * np.nan, "nan"),
        "infinite": (np.where(holed > 2, 0, np.where(unit == 1, np.inf, unit)), "inf"),
        "minus infinite": (np.where(unit == 0, -np.inf, unit), "-inf"),
        "a little below 0": (unit - 0.01, "-0.01"),
        "int64": (image.astype(np.int64), "int64"),
        "int32": (image.astype(np.int32), "int32"),
        "int8": (image.astype(np.int8), "int8"),
        "bool": (image > 128, "bool"),
        "complex": (unit.astype(np.complex64), "complex64"),
        "grey, H x W": (image[..., 0], "got shape (90, 120)"),
        "one channel": (image[..., :1], "got shape"),
        "two channels": (image[..., :2], "got shape"),
        "with transparency": (np.concatenate([image, image[..., :1]], axis=2), "transparency"),
        "five axes": (image[None, None], "got shape"),
        "no rows": (image[:0], "got shape"),
        "an empty batch": (image[None][:0], "got shape"),
        "a number": (np.float32(1), "got shape ()"),
    }
    only_python: dict[str, tuple[Any, str]] = {
        "None": (None, "got shape ()"),
        "a path": ("image.png", "got shape ()"),
        "objects": (np.full((4, 4, 3), None), "object"),
        "texts": (np.full((4, 4, 3), "1"), "got str"),
        "dates": (np.zeros((4, 4, 3), "datetime64[s]"), "datetime64"),
    }

    def takes(score_of: Callable[[Any], np.ndarray], given: Any) -> Run:
        return lambda _: near(float(score_of(given)[0]), score)

    def refuses(score_of: Callable[[Any], np.ndarray], given: Any) -> Run:
        def run(_: Path) -> None:
            score_of(given)

        return run

    def tensor(given: Any) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(given)) if np.ndim(given) else torch.tensor(given)

    for runtime in bench.exports:
        score_of = partial(bench.exported, runtime)
        for name, given in {**right, **only_numpy}.items():
            yield Case("arrays", f"{runtime}: {name}", takes(score_of, given))
        for name, (given, said) in {**wrong, **only_python}.items():
            yield Case("arrays", f"{runtime}: {name}", refuses(score_of, given), said)
        bgr = partial(bench.exported, runtime, channels="bgr")
        yield Case("arrays", f"{runtime}: blue first, said so", takes(bgr, image[..., ::-1]))
        unknown = partial(bench.exported, runtime, channels="gbr")
        yield Case("arrays", f"{runtime}: unknown channels", refuses(unknown, image), "rgb or bgr")

        def a_batch(_: Path, score_of: Callable = score_of) -> None:
            found = score_of(np.stack([image, image[::-1]]))
            near(found[0], score)
            near(found[1], bench.score(image[::-1]))

        yield Case("arrays", f"{runtime}: a batch of two", a_batch)
    for name, given in right.items():
        yield Case("arrays", f"model: {name}", takes(bench.in_torch, tensor(given)))
    for name, (given, said) in wrong.items():
        yield Case("arrays", f"model: {name}", refuses(bench.in_torch, tensor(given)), said)

    def loader(batch: torch.Tensor) -> Run:
        def run(folder: Path) -> None:
            items = [ImageItem(image=one, image_path=f"{number}.png") for number, one in enumerate(batch)]
            bench.engine_predict(folder, dataloaders=DataLoader(items, collate_fn=ImageBatch.collate))

        return run

    for name, given in {"float up to 255": image.astype(np.float32), "a NaN": holed}.items():
        batch = tensor(given).permute(2, 0, 1)[None]
        yield Case("arrays", f"Engine.predict: {name}", loader(batch), "[0, 1]")
