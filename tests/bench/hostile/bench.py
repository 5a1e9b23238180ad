# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""A tiny trained model, what is made of it, and how the outcome of an input is judged."""

import contextlib
import csv
import io
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from lightning import seed_everything
from PIL import Image
from safetensors.torch import save_file

import anomalib_inp
from anomalib_inp import ExportedModel, InpFormer
from anomalib_inp.cli import main

HERE = Path(anomalib_inp.__file__).parent
CLOSE = 1e-4
"""How far a score may lie from that of the clean twin."""
PARITY = 1e-5
"""How far an export's raw score and map may lie from the Engine's."""
NO_SPLITS = {"val_split_mode": "none", "test_split_mode": "none"}
"""Arguments of a data set that is trained on alone."""
LONGEST = 900
"""Characters of a sentence that somebody still reads."""

Run = Callable[[Path], None]


class RefusalError(Exception):
    """A command has ended with a message."""


class Case(NamedTuple):
    """An input.

    Attributes:
        kind: Row of the table.
        name: What it is.
        run: Does it in a folder of its own; returns if the result is right.
        refused: What the message must name where the input is to be refused; ``None`` where the result is to be right.
    """

    kind: str
    name: str
    run: Run
    refused: str | None = None


def judge(case: Case, folder: Path) -> tuple[str, str]:
    """Run a case: ``right``, ``refused`` or ``fault``, and what was said."""
    folder.mkdir(parents=True)
    try:
        with quiet():
            case.run(folder)
    except AssertionError as error:
        return "fault", f"wrong: {error or traceback.format_exc(limit=-1)}"
    except Exception as error:  # a case may fail in any way
        return refusal(case, error)
    return ("right", "") if case.refused is None else ("fault", "taken without a word")


def refusal(case: Case, error: Exception) -> tuple[str, str]:
    """Tell a sentence of ours from what went wrong somewhere."""
    message = str(error)
    if case.refused is None:
        return "fault", f"{type(error).__name__}: {message[:300]}"
    place = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    ours = isinstance(error, RefusalError) or place.is_relative_to(HERE)
    faults = [
        (not ours, f"not ours, from {place}"),
        (case.refused not in message, f"does not say {case.refused!r}"),
        (len(message) > LONGEST or len(message.splitlines()) > 4, "too long"),
    ]
    said = "; ".join(fault for wrong, fault in faults if wrong)
    return ("fault", f"{said}: {type(error).__name__}: {message[:300]}") if said else ("refused", message)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Swallow what is printed."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def near(found: float, expected: float, tolerance: float = CLOSE) -> None:
    """Compare two scores."""
    assert abs(found - expected) <= tolerance, f"{found:.6f} instead of {expected:.6f}"


class Bench:
    """A tiny trained model, its exports, clean images, and everything that is made of them.

    Args:
        root: Folder for all of it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.encoder = root / "encoder.safetensors"
        seed_everything(0, verbose=False)
        save_file(timm.create_model("test_vit", pretrained=False, num_classes=0).state_dict(), self.encoder)
        self.data = write_part(root / "data")
        model = self.model()
        engine = self.engine(root / "trained", max_epochs=2)
        with quiet():
            engine.fit(model, datamodule=self.module())
            self.checkpoint = next(root.glob("trained/**/finished.ckpt"))
            self.resumable = next(root.glob("trained/**/model.ckpt"))
            self.trained = model.eval()
            self.exports = {"OpenVINO": model.to_openvino(root / "export"), "ONNX": model.to_onnx(root / "export")}
        self.running = {name: ExportedModel(path) for name, path in self.exports.items()}
        self.image = photograph(7)
        self.parity = 0.0  # the largest difference of a map so far

    def model(self, kind: type = InpFormer, **arguments: Any) -> Any:
        """Build an untrained model."""
        own = {"encoder": "test_vit", "encoder_weights": str(self.encoder), "image_size": 64, "map_size": 64}
        return kind(**{**own, "visualizer": False, **arguments})

    @staticmethod
    def engine(folder: Path, **arguments: Any) -> Engine:
        """Build an engine that trains an epoch on the CPU."""
        still = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        return Engine(default_root_dir=folder, **{"max_epochs": 1, **still, **arguments})

    def module(self, root: Path | None = None, **arguments: Any) -> MVTecAD:
        """Build the data module of the clean data, or of others."""
        own = {"num_workers": 0, "train_batch_size": 2, "eval_batch_size": 2, "val_split_mode": "same_as_test"}
        return MVTecAD(root or self.data, "part", **{**own, **arguments})

    def raw(self, image: np.ndarray) -> tuple[float, np.ndarray]:
        """Score and map of an image ``(H, W, 3)``, uint8, by the network itself."""
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None] / 255
        with torch.inference_mode():
            found = self.trained.model(self.trained.pre_processor(pixels))
        return float(found.pred_score), found.anomaly_map[0, 0].numpy()

    def score(self, image: np.ndarray) -> float:
        """Raw score of an image by the network itself."""
        return self.raw(image)[0]

    def exported(self, kind: str, array: Any, **arguments: Any) -> np.ndarray:
        """Raw scores by an export."""
        model = self.running[kind]
        return np.atleast_1d(model.metadata.to_raw(model(array, **arguments).pred_score))

    def in_torch(self, array: Any) -> np.ndarray:
        """Raw scores by calling the model."""
        with torch.inference_mode():
            found = self.trained(array)
        return np.atleast_1d(self.running["ONNX"].metadata.to_raw(found.pred_score.numpy()))

    def predict(self, images: Path, output: Path, *arguments: str, status: int = 0) -> dict[str, dict[str, str]]:
        """Run ``anomalib-inp predict``: the rows of its table by image."""
        command = ["predict", str(self.exports["OpenVINO"]), str(images), "--output", str(output), *arguments]
        run_command(*command, status=status)
        with (output / "scores.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            return {row["image"]: row for row in csv.DictReader(file)}

    def engine_predict(self, folder: Path, **arguments: Any) -> dict[str, float]:
        """Run ``Engine.predict``: raw scores by the name of the image."""
        batches = self.engine(folder).predict(self.trained, return_predictions=True, **arguments)
        found = {}
        for batch in batches or []:
            for path, score in zip(batch.image_path, batch.raw_score, strict=True):
                found[Path(path).name] = float(score)
        return found


def run_command(*arguments: str, status: int = 0) -> str:
    """Run our command in this process, which ends with a status, and give what it prints.

    Raises:
        RefusalError: It has ended with a message.
    """
    printed = io.StringIO()
    before, sys.argv = sys.argv, ["anomalib-inp", *arguments]
    code: Any = 0
    try:
        with contextlib.redirect_stdout(printed):
            main()
    except SystemExit as ended:
        code = ended.code or 0
    finally:
        sys.argv = before
    if isinstance(code, str):
        raise RefusalError(code)
    assert code == status, f"exit code {code} instead of {status}"
    return printed.getvalue()


def photograph(index: int, size: tuple[int, int] = (90, 120)) -> np.ndarray:
    """An image ``(H, W, 3)``, uint8, with black and white in it, and unlike its transpose or its mirror image."""
    rng = np.random.default_rng(index)
    y, x = np.mgrid[: size[0], : size[1]] / max(size)
    waves = [128 + 90 * np.sin(2 * np.pi * ((1 + index % 5) * x + (2 + channel) * y**2)) for channel in range(3)]
    pixels = (np.stack(waves, axis=-1) + rng.normal(0, 25, (*size, 3))).clip(0, 255).astype(np.uint8)
    pixels[0, 0], pixels[-1, -1] = 0, 255
    return pixels


def write(path: Path, image: np.ndarray | Image.Image, **arguments: Any) -> Path:
    """Write an image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(path, **arguments)
    return path


def mask(size: tuple[int, int] = (90, 120)) -> np.ndarray:
    """A mask with a defect in it."""
    marked = np.zeros(size, np.uint8)
    marked[20:50, 30:70] = 255
    return marked


def write_part(root: Path) -> Path:
    """Write a small category in the layout of MVTec AD."""
    for index in range(4):
        write(root / f"part/train/good/{index:03}.png", photograph(index))
    for index in range(2):
        write(root / f"part/test/good/{index:03}.png", photograph(4 + index))
        defect = photograph(6 + index)
        defect[20:50, 30:70] = 255 - defect[20:50, 30:70]
        write(root / f"part/test/dent/{index:03}.png", defect)
        write(root / f"part/ground_truth/dent/{index:03}_mask.png", mask())
    return root
