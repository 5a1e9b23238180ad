# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What people really feed it, through training, tests, predictions, exports and runtimes: ``make bench-hostile``.

Each input either gives the right result, compared with that of a clean twin, or is refused by one clear sentence of
ours. Anything else, a traceback, a silent drop or a wrong score, is a fault. The table goes to ``docs/reliability.md``.
"""

import contextlib
import csv
import io
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pages
import timm
import torch
from anomalib.data import Folder, ImageBatch, ImageItem, MVTecAD
from anomalib.data.utils import read_image
from anomalib.engine import Engine
from anomalib.pre_processing import PreProcessor
from lightning import seed_everything
from PIL import Image
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from torchvision.transforms import v2

import anomalib_inp
from anomalib_inp import ExportedModel, InpFormer, InpFormerPlusPlus
from anomalib_inp.cli import main
from anomalib_inp.data import MultiCategory

HERE = Path(anomalib_inp.__file__).parent
PAGE = pages.DOCS / "reliability.md"
CLOSE = 1e-4
"""How far a score may lie from that of the clean twin."""
PARITY = 1e-5
"""How far an export's raw score and map may lie from the Engine's."""
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


# --- arrays -----------------------------------------------------------------------------------------------------------


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


# --- images in files --------------------------------------------------------------------------------------------------

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I;16B", "I", "F")
CONTAINERS = ("png", "jpg", "bmp", "tif", "webp", "pgm", "ppm")
REFUSED = {"LAB", "I", "F"}


def of_mode(mode: str) -> Image.Image:
    """The image in one of Pillow's modes."""
    pixels = photograph(7)
    if mode.startswith("I;16"):
        grey = pixels[..., 0].astype(np.uint16) * np.uint16(257)
        order = ">u2" if mode == "I;16B" else "<u2"
        return Image.frombytes(mode, (grey.shape[1], grey.shape[0]), grey.astype(order).tobytes())
    if mode == "I":
        return Image.fromarray(pixels[..., 0].astype(np.int32) * 1000)
    if mode == "F":
        return Image.fromarray(pixels[..., 0].astype(np.float32))
    if mode == "LAB":
        return Image.frombytes("LAB", (120, 90), pixels.tobytes())
    if mode == "PA":
        return Image.fromarray(pixels).convert("P").convert("PA")
    return Image.fromarray(pixels).convert(mode)


def seen(path: Path) -> np.ndarray:
    """What an image file shows, uint8 ``(H, W, 3)``, by another way than ours: of 16 bits, the upper 8."""
    with Image.open(path) as image:
        if image.mode.startswith("I"):
            grey = (np.asarray(image).astype(np.int64) // 257).astype(np.uint8)
            return np.stack([grey] * 3, axis=-1)
        return np.asarray(image.convert("RGB"))


def image_files(bench: Bench) -> Iterator[Case]:
    """Every mode in every container that takes it, predicted by our command and by the Engine."""
    for mode in MODES:
        for container in CONTAINERS:
            name = f"{mode.replace(';', '')}.{container}"
            try:
                path = write(bench.root / "modes" / name.replace(".", "_") / name, of_mode(mode))
                with Image.open(path) as written:
                    deep = written.mode in {"I", "I;16", "I;16B"} and container in {"png", "pgm", "ppm"}
                    refused = not deep and written.mode in REFUSED
            except (OSError, ValueError, KeyError):
                continue  # a container that does not take the mode

            def by_command(folder: Path, path: Path = path) -> None:
                (row,) = bench.predict(path, folder / "out").values()
                near(float(row["raw_score"]), bench.score(seen(path)), 1e-3)

            def by_engine(folder: Path, path: Path = path) -> None:
                (score,) = bench.engine_predict(folder, data_path=path.parent).values()
                near(score, bench.score(seen(path)), 1e-3)

            def strict(folder: Path, path: Path = path) -> None:
                bench.predict(path, folder / "out", "--strict", "true")

            yield Case(
                "images, modes", f"predict: {name}", strict if refused else by_command, name if refused else None
            )
            yield Case("images, modes", f"Engine: {name}", by_engine, name if refused else None)


SIZES = (
    *((1, 1), (1, 2), (2, 1), (3, 3), (3, 1), (1, 3), (7, 5), (16, 16), (63, 65), (64, 64), (65, 63), (90, 120)),
    *((127, 129), (1, 8000), (8000, 1), (50, 8000), (8000, 50), (3000, 2000), (2000, 3000), (999, 1001), (640, 480)),
    *((1080, 1920), (33, 1000), (1000, 33), (256, 256)),
)


def parity(bench: Bench) -> Iterator[Case]:
    """Images of many sizes, in colour and grey: both exports give the Engine's raw scores and maps."""
    for height, width in SIZES:
        for mode in ("RGB", "L"):

            def run(folder: Path, size: tuple[int, int] = (height, width), mode: str = mode) -> None:
                pixels = photograph(3, size) if mode == "RGB" else np.repeat(photograph(3, size)[..., :1], 3, axis=2)
                path = write(folder / "image.png", Image.fromarray(pixels).convert(mode))
                batches = bench.engine(folder).predict(bench.trained, data_path=path, return_predictions=True)
                expected = batches[0]
                for name, model in bench.running.items():
                    found = model(read_image(path, as_tensor=True).numpy())
                    metadata = model.metadata
                    near(float(metadata.to_raw(found.pred_score)[0]), float(expected.raw_score[0]), PARITY)
                    maps = metadata.to_raw(found.anomaly_map[0, 0], "pixel"), expected.raw_map[0].squeeze().numpy()
                    off = float(np.abs(maps[0] - maps[1]).max())
                    bench.parity = max(bench.parity, off)
                    assert off <= PARITY, f"{name}: the map is off by {off:.1e}"

            yield Case("images, sizes", f"{height} x {width}, {mode}", run)


# --- broken files -----------------------------------------------------------------------------------------------------


def decodes(path: Path) -> bool:
    """Whether Pillow gets an image out of a file."""
    try:
        with Image.open(path) as image:
            image.load()
    except Exception:
        return False
    return True


def broken(bench: Bench) -> Iterator[tuple[str, Callable[[Path], Path]]]:
    """Files that are no images, or half of one: what each is, and what writes it into a folder."""
    for container in ("png", "jpg", "tif", "bmp", "webp"):
        whole = io.BytesIO()
        Image.fromarray(bench.image).save(whole, {"jpg": "JPEG", "tif": "TIFF"}.get(container, container.upper()))
        for share in (0, 0.1, 0.5, 0.9):
            content = whole.getvalue()[: int(share * len(whole.getvalue()))]
            yield f"{share:.0%} of a {container}", partial(_put, name=f"broken.{container}", content=content)
    png = io.BytesIO()
    Image.fromarray(bench.image).save(png, "PNG")
    flipped = bytearray(png.getvalue())
    flipped[len(flipped) // 2] ^= 0xFF
    header = bytearray(png.getvalue())
    header[16:24] = (60000).to_bytes(4, "big") * 2
    contents = {
        "a text": b"no image",
        "a page of a web server": b"<html><body>404</body></html>",
        "zeros": bytes(5000),
        "a flipped byte": bytes(flipped),
        "a header of 60000 x 60000 pixels": bytes(header),
    }
    for name, content in contents.items():
        yield name, partial(_put, name="broken.png", content=content)
    yield "a link that leads nowhere", _dangling


def _put(folder: Path, name: str, content: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return folder / name


def _dangling(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "broken.png").symlink_to(folder / "nowhere.png")
    return folder / "broken.png"


def broken_files(bench: Bench) -> Iterator[Case]:
    """A broken file among good ones: predicted by our command and by the Engine, and trained on."""
    for name, put in broken(bench):

        def by_command(folder: Path, put: Callable[[Path], Path] = put) -> None:
            for index in range(3):
                write(folder / f"images/{index}.png", photograph(index))
            path = put(folder / "images")
            rows = bench.predict(folder / "images", folder / "out", status=0 if decodes(path) else 3)
            assert len(rows) == 4, f"{len(rows)} rows"
            for index in range(3):
                near(float(rows[f"{index}.png"]["raw_score"]), bench.score(photograph(index)))
            row = rows[path.name]
            if decodes(path):
                near(float(row["raw_score"]), bench.score(seen(path)), 1e-3)
            else:
                assert row["error"], "no error"
                assert not row["score"], "a score"

        yield Case("broken files", f"predict: {name}", by_command)
        probe = put(bench.root / "probes" / name.replace("/", "_"))
        refused = None if decodes(probe) else probe.name

        def strict(folder: Path, put: Callable[[Path], Path] = put) -> None:
            bench.predict(put(folder / "images").parent, folder / "out", "--strict", "true")

        def by_engine(folder: Path, put: Callable[[Path], Path] = put) -> None:
            write(folder / "images/0.png", photograph(0))
            put(folder / "images")
            found = bench.engine_predict(folder / "out", data_path=folder / "images")
            assert len(found) == 2, f"{len(found)} images"

        def trained_on(folder: Path, put: Callable[[Path], Path] = put) -> None:
            shutil.copytree(bench.data / "part/train/good", folder / "good")
            put(folder / "good")
            data = Folder("part", "good", folder, num_workers=0, train_batch_size=1, **NO_SPLITS)
            bench.engine(folder / "out").fit(bench.model(), datamodule=data)

        yield Case("broken files", f"predict --strict: {name}", strict, refused)
        if "link" not in name:  # anomalib leaves it out, which our checks say
            yield Case("broken files", f"Engine.predict: {name}", by_engine, refused)
            yield Case("broken files", f"train: {name}", trained_on, refused)


NO_SPLITS = {"val_split_mode": "none", "test_split_mode": "none"}


# --- data sets --------------------------------------------------------------------------------------------------------


def copied(bench: Bench, folder: Path) -> Path:
    """A copy of the clean data set."""
    return Path(shutil.copytree(bench.data, folder / "data"))


def trains(bench: Bench, change: Callable[[Path], object], warns: str | None = None) -> Run:
    """Change a copy of the data set, and train and test on it; a warning of ours may be expected."""

    def run(folder: Path) -> None:
        root = copied(bench, folder)
        change(root / "part")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            bench.engine(folder / "out").train(bench.model(), datamodule=bench.module(root))
        said = " ".join(str(warning.message) for warning in caught)
        assert warns is None or warns in said, f"no warning says {warns!r}"

    return run


DENT, MASK = "test/dent/000.png", "ground_truth/dent/000_mask.png"


def masks(bench: Bench) -> Iterator[Case]:
    """Masks that do not fit, or mark no defect."""
    marked = Image.fromarray(mask())
    smooth = Image.fromarray((np.hypot(*(np.indices((90, 120)) - 50)) < 30).astype(np.uint8) * 255).resize((60, 45))
    smooth = smooth.resize((120, 90), Image.Resampling.BICUBIC)
    alpha = Image.merge("RGBA", [*[Image.new("L", (120, 90))] * 3, marked])

    def put(image: Image.Image, name: str = MASK) -> Callable[[Path], object]:
        return lambda part: write(part / name, image)

    def all_masks(image: Image.Image) -> Callable[[Path], object]:
        return lambda part: [write(part / f"ground_truth/dent/00{index}_mask.png", image) for index in range(2)]

    for name, image in {
        "two values": marked,
        "of one bit": marked.convert("1"),
        "a palette": marked.convert("P"),
        "in colour": marked.convert("RGB"),
        "0 and 1": Image.fromarray((mask() > 0).astype(np.uint8)),
        "numbered defects": Image.fromarray((mask() > 0).astype(np.uint8) * np.uint8(2)),
        "16 bits": Image.fromarray(mask().astype(np.uint16) * np.uint16(257)),
    }.items():
        yield Case("masks", name, trains(bench, put(image)))
    for name, size in {"half": (60, 45), "turned": (90, 120), "a pixel more": (121, 90), "1 x 1": (1, 1)}.items():
        yield Case("masks", f"other size, {name}", trains(bench, put(marked.resize(size))), "000_mask.png has")
    named = "look wrong"
    yield Case("masks", "one marks nothing", trains(bench, put(Image.new("L", (120, 90))), named))
    yield Case("masks", "one marks all", trains(bench, put(Image.new("L", (120, 90), 255)), named))
    yield Case("masks", "one in transparency alone", trains(bench, put(alpha), named))
    yield Case("masks", "one smoothed", trains(bench, put(smooth), named))
    yield Case("masks", "all mark nothing", trains(bench, all_masks(Image.new("L", (120, 90)))), "marks nothing")
    yield Case(
        "masks", "all mark everything", trains(bench, all_masks(Image.new("L", (120, 90), 9))), "the whole image"
    )
    yield Case("masks", "all in transparency alone", trains(bench, all_masks(alpha)), "transparency does not count")
    for share in (0, 0.5):
        half = partial(_cut, name=MASK, share=share)
        yield Case("masks", f"{share:.0%} of one", trains(bench, half), "000_mask.png")
    for orientation in range(2, 9):
        yield from _turned(bench, orientation)


def _cut(part: Path, name: str, share: float) -> None:
    content = (part / name).read_bytes()
    (part / name).write_bytes(content[: int(share * len(content))])


def _turned(bench: Bench, orientation: int) -> Iterator[Case]:
    """A JPEG that a viewer turns, with masks drawn on what the viewer shows and on the pixels of the file."""
    sideways = orientation >= 5

    def build(folder: Path, upright: bool) -> Folder:
        exif = Image.Exif()
        exif[0x0112] = orientation
        for index in range(3):
            write(folder / f"good/{index}.jpg", photograph(index))
        write(folder / "bad/0.jpg", photograph(6), exif=exif)
        write(folder / "masks/0.png", mask((120, 90) if upright else (90, 120)))
        arguments = {"num_workers": 0, "train_batch_size": 1, "val_split_mode": "same_as_test"}
        return Folder("part", "good", folder, "bad", None, "masks", test_split_mode="from_dir", **arguments)

    def run(folder: Path, upright: bool = False, warns: str = "") -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            bench.engine(folder / "out").test(bench.model(), datamodule=build(folder, upright))
        assert warns in " ".join(str(warning.message) for warning in caught), f"no warning says {warns!r}"

    name = f"EXIF orientation {orientation}"
    yield Case("masks", f"{name}, drawn on the file", partial(run, warns="A viewer turns 1 images"))
    if sideways:
        yield Case(
            "masks", f"{name}, drawn upright", partial(run, upright=True), f"orientation {orientation} in a viewer"
        )


def layouts(bench: Bench) -> Iterator[Case]:
    """Files in other places than the layout of MVTec AD has, and folders that are not there."""
    image = photograph(9)
    for name in (
        *("train/good/more/9.png", "train/9.png", "train/bad/9.png", "train/good/._9.png", "test/9.png"),
        *("test/dent/.thumbnails/0.png", "test/.ipynb_checkpoints/0.png", "test/dent/more/0.png", "overview.png"),
        *(
            "ground_truth/9.png",
            "ground_truth/good/000_mask.png",
            "ground_truth/dent/more/0.png",
            "old/train/good/0.png",
        ),
    ):
        yield Case("layouts", name, trains(bench, lambda part, name=name: write(part / name, image)), name)
    yield Case(
        "layouts", "a folder called 9.png", trains(bench, lambda part: (part / "train/good/9.png").mkdir()), "9.png"
    )
    for name in ("notes.txt", "test/dent/Thumbs.db", "test/dent/.DS_Store", "train/good/desktop.ini"):
        yield Case("layouts", name, trains(bench, lambda part, name=name: (part / name).write_text("text")))
    yield Case("layouts", "an empty kind", trains(bench, lambda part: (part / "test/hole").mkdir()))
    yield Case("layouts", "no mask", trains(bench, lambda part: (part / MASK).unlink()), "000.png has no mask")
    yield Case("layouts", "no image", trains(bench, lambda part: (part / DENT).unlink()), "has no image")
    yield Case(
        "layouts",
        "two masks",
        trains(bench, lambda part: write(part / MASK.replace("_mask", ""), mask())),
        "has two masks",
    )
    for new in ("000.png", "000_mask.PNG", "000.PNG"):
        rename = partial(_rename, old=MASK, new=f"ground_truth/dent/{new}")
        yield Case("layouts", f"a mask called {new}", trains(bench, rename))
    yield Case(
        "layouts", "a JPEG among PNG", trains(bench, lambda part: write(part / "train/good/9.jpg", image), "left out")
    )
    yield Case(
        "layouts", "no normal images", trains(bench, partial(_remove, name="train/good/*")), "no training images"
    )

    def numbered(part: Path) -> None:
        for folder, suffix in (("test", ""), ("ground_truth", "_mask")):
            for old, new in (("000", "1"), ("001", "10")):
                _rename(part, f"{folder}/dent/{old}{suffix}.png", f"{folder}/dent/{new}{suffix}.png")

    yield Case("layouts", "numbers without zeros", trains(bench, numbered), "fill numbers up with zeros")

    def missing(folder: Path) -> None:
        data = Folder("part", "nothing", bench.data / "part", num_workers=0, **NO_SPLITS)
        bench.engine(folder).fit(bench.model(), datamodule=data)

    yield Case("layouts", "Folder: none of this name", missing, "There is no folder")

    def hidden(folder: Path) -> None:
        root = copied(bench, folder)
        write(root / "part/train/good/.ipynb_checkpoints/0.png", image)
        data = Folder("part", "train/good", root / "part", num_workers=0, **NO_SPLITS)
        bench.engine(folder).fit(bench.model(), datamodule=data)

    yield Case("layouts", "Folder: hidden files", hidden, "hidden files")

    def predicted(name: str) -> Run:
        def run(folder: Path) -> None:
            root = copied(bench, folder)
            write(root / "part/test" / name, image)
            rows = bench.predict(root / "part/test", folder / "out")
            assert len(rows) == (4 if Path(name).parts[0].startswith(".") else 5), sorted(rows)

        return run

    for name in ("overview.png", ".ipynb_checkpoints/0.png"):
        yield Case("layouts", f"predict: {name} beside the kinds", predicted(name))

    def here(folder: Path) -> None:
        before = Path.cwd()
        os.chdir(copied(bench, folder) / "part/test")
        try:
            printed = run_command(
                "predict", str(bench.exports["ONNX"].absolute()), ".", "--output", str(folder / "out")
            )
        finally:
            os.chdir(before)
        assert "P-AP" in printed, "no pixel metrics: the masks were not found"

    yield Case("layouts", "predict: the folder given as .", here)


def _rename(part: Path, old: str, new: str) -> None:
    (part / old).rename(part / new)


def _remove(part: Path, name: str) -> None:
    for path in part.glob(name):
        path.unlink()


def links(bench: Bench) -> Iterator[Case]:
    """Images and folders that are links."""

    def linked(part: Path, name: str) -> None:
        store = part.parent.parent / "store"
        store.mkdir(exist_ok=True)
        moved = (part / name).rename(store / Path(name).name)
        (part / name).symlink_to(moved, target_is_directory=moved.is_dir())

    out = "which MVTecAD leaves out"
    image = partial(linked, name="train/good/003.png")
    yield Case("links", "train: an image out of the data set", trains(bench, image, out))
    within = lambda part: (part / "train/good/9.png").symlink_to(part / "train/good/000.png")  # noqa: E731
    yield Case("links", "train: an image within the data set", trains(bench, within))
    kind = partial(linked, name="test/dent")
    yield Case("links", "train: a kind out of the data set", trains(bench, kind), "has no image")

    def whole(folder: Path) -> None:
        (folder / "link").symlink_to(bench.data, target_is_directory=True)
        bench.engine(folder / "out").fit(bench.model(), datamodule=bench.module(folder / "link"))

    yield Case("links", "train: the data set itself", whole)

    def predicted(change: Callable[[Path], object], count: int) -> Run:
        def run(folder: Path) -> None:
            for index in range(4):
                write(folder / f"images/{index}.png", photograph(index))
                write(folder / f"store/{index}.png", photograph(index))
            change(folder)
            rows = bench.predict(folder / "images", folder / "out")
            assert len(rows) == count, f"{len(rows)} of {count} images"
            for name, row in rows.items():
                near(float(row["raw_score"]), bench.score(photograph(int(Path(name).stem))))

        return run

    folders = {"a folder": ("images/store", "store", 8), "to itself": ("images/loop", "images", 4)}
    for name, (link, target, count) in folders.items():
        change = partial(_link, link=link, target=target)
        yield Case("links", f"predict: {name}", predicted(change, count))

    def round_about(folder: Path) -> None:
        _link(folder, "images/store", "store")
        _link(folder, "store/back", "images")

    yield Case("links", "predict: two folders to each other", predicted(round_about, 8))
    yield Case("links", "predict: an image", predicted(partial(_link, link="images/0 .png", target="store/0.png"), 5))


def _link(folder: Path, link: str, target: str) -> None:
    (folder / link).symlink_to(folder / target, target_is_directory=(folder / target).is_dir())


def names(bench: Bench) -> Iterator[Case]:
    """Names of images and folders that are no plain words."""
    for name in (
        *(
            "ä ö ü.png",
            "部品.png",
            "a[red]b.png",
            "[bold].png",
            "a b.png",
            "a,b.png",
            'quote".png',
            "100%.png",
            "-x.png",
        ),
        *(
            "#1.png",
            "emoji 🙂.png",
            "two.dots.png",
            "new\nline.png",
            "x" * 200 + ".png",
            "{0}.png",
            "$HOME.png",
            "~.png",
        ),
        *(os.fsdecode(b"caf\xe9.png"), "scores.csv.png", "gallery.png", "con.png", "a;b.png", "tab\t.png"),
    ):

        def run(folder: Path, name: str = name) -> None:
            write(folder / "images" / name, photograph(2))
            ((found, row),) = bench.predict(folder / "images", folder / "out").items()
            assert name.encode("utf-8", "surrogateescape") == found.encode("utf-8", "surrogateescape"), found
            near(float(row["raw_score"]), bench.score(photograph(2)))
            assert len(list((folder / "out").glob("*.png"))) == 2, "no picture"

        yield Case("names", f"predict: {ascii(name)[:40]}", run)
    for name in ("ä ö", "a[red]b", "a b", "%s", "{0}"):

        def train(folder: Path, name: str = name) -> None:
            root = Path(shutil.copytree(bench.data, folder / name))
            bench.engine(folder / name / "out").train(bench.model(visualizer=True), datamodule=bench.module(root))
            assert len(list((folder / name).rglob("images/*/*.png"))) == 4, "pictures are missing"

        yield Case("names", f"train: a folder {name}", train, None if name.isascii() else "beyond ASCII")

    def same(folder: Path) -> None:
        for index, name in enumerate(("a/c/0.png", "b/c/0.png", "a/c/0.bmp")):
            write(folder / "images" / name, photograph(index))
        bench.predict(folder / "images", folder / "one")
        bench.engine(folder / "two").predict(bench.model(visualizer=True), data_path=folder / "images")
        for run in ("one", "two"):
            found = {path.relative_to(folder / run).name for path in (folder / run).rglob("c/*.png")}
            assert len(list((folder / run).rglob("c/*.png"))) == 3, f"{run}: {sorted(found)}"

    yield Case("names", "the same name in two folders, and with two suffixes", same)


# --- checkpoints, exports, disks --------------------------------------------------------------------------------------


class _Harm:
    """Pickled, this writes a file where it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def checkpoints(bench: Bench) -> Iterator[Case]:
    """Checkpoints that are none, of another model, or with arguments that are no plain data."""
    whole = bench.checkpoint.read_bytes()

    def loads(change: Callable[[Path], object]) -> Run:
        def run(folder: Path) -> None:
            shutil.copy(bench.checkpoint, folder / "model.ckpt")
            change(folder / "model.ckpt")
            model = InpFormer.load_from_checkpoint(folder / "model.ckpt").eval()
            with torch.inference_mode():
                score = model.model(model.pre_processor(torch.from_numpy(bench.image).permute(2, 0, 1)[None] / 255))
            near(float(score.pred_score), bench.score(bench.image))

        return run

    def edited(**changes: Any) -> Callable[[Path], object]:
        def change(path: Path) -> None:
            content = torch.load(path, weights_only=True)
            torch.save({**content, **changes}, path)

        return change

    yield Case("checkpoints", "as it is", loads(lambda _: None))
    for share in (0, 0.1, 0.5, 0.99):
        cut = lambda path, share=share: path.write_bytes(whole[: int(share * len(whole))])  # noqa: E731
        yield Case("checkpoints", f"{share:.0%} of one", loads(cut), "is no checkpoint")
    yield Case("checkpoints", "a text", loads(lambda path: path.write_text("text")), "is no checkpoint")
    yield Case("checkpoints", "none", loads(lambda path: path.unlink()), "There is no checkpoint")
    yield Case("checkpoints", "of another model", loads(edited(model="InpFormerPlusPlus")), "InpFormerPlusPlus")
    yield Case("checkpoints", "of another encoder", loads(edited(encoder_digest="0")), "encoder")

    def harmful(path: Path) -> None:
        torch.save({**torch.load(path, weights_only=True), "more": _Harm(path.with_suffix(".harm"))}, path)

    yield Case("checkpoints", "with code in it", loads(harmful), "could run code")

    def pickled(path: Path) -> None:
        path.write_bytes(pickle.dumps(_Harm(path.with_suffix(".harm"))))

    yield Case("checkpoints", "a pickle", loads(pickled), "is no checkpoint")
    arguments: dict[str, dict[str, Any]] = {
        "np.float64": {"learning_rate": np.logspace(-4, -3, 3)[1]},
        "np.int64": {"image_size": np.int64(64)},
        "an array": {"image_size": np.array([64, 64])},
        "np.bool": {"compile": np.bool_(False)},
        "a tuple": {"image_size": (64, 64)},
    }
    for name, own in arguments.items():

        def run(folder: Path, own: dict[str, Any] = own) -> None:
            bench.engine(folder).fit(bench.model(**own), datamodule=bench.module())
            InpFormer.load_from_checkpoint(next(folder.rglob("finished.ckpt")))

        yield Case("checkpoints", f"arguments: {name}", run)

    def resumed(path: Path) -> Run:
        def run(folder: Path) -> None:
            engine = bench.engine(folder, max_epochs=3)
            engine.fit(bench.model(), datamodule=bench.module(), ckpt_path=path)

        return run

    yield Case("checkpoints", "resumed", resumed(bench.resumable))
    yield Case(
        "checkpoints", "resumed from a finished one", resumed(bench.checkpoint), "Training is resumed from model.ckpt"
    )

    def windows(folder: Path) -> None:
        content = torch.load(bench.checkpoint, weights_only=True)
        content["hyper_parameters"]["encoder_weights"] = "C:\\models\\encoder.safetensors"
        torch.save(content, folder / "model.ckpt")
        shutil.copy(bench.encoder, folder)
        InpFormer.load_from_checkpoint(folder / "model.ckpt")

    yield Case("checkpoints", "trained on Windows", windows)

    def rare(folder: Path) -> None:
        engine = bench.engine(folder, max_epochs=3, check_val_every_n_epoch=2)
        engine.fit(bench.model(), datamodule=bench.module())
        model = InpFormer.load_from_checkpoint(next(folder.rglob("finished.ckpt")))
        kept = float(model.post_processor.image_threshold)
        bench.engine(folder / "again").validate(model, datamodule=bench.module())
        near(kept, float(model.post_processor.image_threshold), 1e-6)

    yield Case("checkpoints", "validated every second of three epochs", rare)


def exports(bench: Bench) -> Iterator[Case]:
    """Exports that are none, half of one, or for one size."""
    files = {"ONNX": ("model.onnx",), "OpenVINO": ("model.xml", "model.bin")}
    for runtime, (first, *others) in files.items():

        def runs(change: Callable[[Path], object], first: str = first, runtime: str = runtime) -> Run:
            def run(folder: Path) -> None:
                for path in bench.exports[runtime].parent.glob("model.*"):
                    shutil.copy(path, folder)
                change(folder / first)
                model = ExportedModel(folder / first)
                near(float(model.metadata.to_raw(model(bench.image).pred_score)[0]), bench.score(bench.image))

            return run

        yield Case("exports", f"{runtime}: as it is", runs(lambda _: None))
        for share in (0, 0.5, 0.99):
            cut = partial(_cut_file, share=share)
            yield Case("exports", f"{runtime}: {share:.0%} of one", runs(cut), first)
        yield Case("exports", f"{runtime}: a text", runs(lambda path: path.write_text("text")), first)
        yield Case("exports", f"{runtime}: none", runs(lambda path: path.unlink()), first)
        for other in others:
            yield Case(
                "exports", f"{runtime}: without {other}", runs(lambda path: path.with_suffix(".bin").unlink()), ".bin"
            )
            cut = lambda path: _cut_file(path.with_suffix(".bin"), 0.5)  # noqa: E731
            yield Case("exports", f"{runtime}: half of {other}", runs(cut), "model")

    def foreign(folder: Path) -> None:
        model = onnx.load(bench.exports["ONNX"])
        del model.metadata_props[:]
        onnx.save(model, folder / "model.onnx")
        ExportedModel(folder / "model.onnx")

    yield Case("exports", "ONNX: of something else", foreign, "model.onnx")

    def fixed(runtime: str, size: tuple[int, int]) -> Run:
        def run(folder: Path) -> None:
            if runtime == "OpenVINO":
                path = bench.trained.to_openvino(folder, input_size=(90, 120))
            else:
                model = onnx.load(bench.exports["ONNX"])
                for place, length in enumerate((1, 3, 90, 120)):
                    model.graph.input[0].type.tensor_type.shape.dim[place].dim_value = length
                path = folder / "model.onnx"
                onnx.save(model, path)
            model = ExportedModel(path)
            found = model.metadata.to_raw(model(photograph(7, size)).pred_score)
            near(float(found[0]), bench.score(photograph(7, size)))

        return run

    for runtime in files:
        yield Case("exports", f"{runtime}: for one size", fixed(runtime, (90, 120)))
        yield Case("exports", f"{runtime}: for another size", fixed(runtime, (120, 90)), "3 x 90 x 120")


def _cut_file(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


@contextlib.contextmanager
def full(size: int = 2000) -> Iterator[None]:
    """Let the system refuse files of more than so many bytes, as a full disk does."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def disks(bench: Bench) -> Iterator[Case]:
    """Disks that are full, and folders that take no files."""

    def trained(**arguments: Any) -> Run:
        def run(folder: Path) -> None:
            with full():
                bench.engine(folder).fit(bench.model(**arguments), datamodule=bench.module())

        return run

    yield Case("disks", "full: training", trained(), "finished.ckpt cannot be written")
    yield Case("disks", "full: feature cache", trained(feature_cache="disk"), "--model.feature_cache off")

    def no_folder(folder: Path) -> None:
        (folder / "file").touch()
        model = bench.model(feature_cache="disk", feature_cache_dir=str(folder / "file/cache"))
        bench.engine(folder).fit(model, datamodule=bench.module())

    yield Case("disks", "no folder for the feature cache", no_folder, "takes no feature cache")

    def threshold(path: Path) -> Run:
        def run(folder: Path) -> None:
            for file in path.parent.glob(f"{path.stem}.*"):
                shutil.copy(file, folder)
            before = (folder / path.name).read_bytes()
            try:
                with full(500):
                    run_command("threshold", str(folder / path.name), "--image", "0.5")
            finally:
                assert (folder / path.name).read_bytes() == before, "the file has changed"

        return run

    for name, path in {"checkpoint": bench.checkpoint, **bench.exports}.items():
        yield Case("disks", f"full: threshold of a {name}", threshold(path), "cannot be written")

    def predicted(place: str) -> Run:
        def run(folder: Path) -> None:
            (folder / "file").touch()
            before = os.environ.get("ANOMALIB_INP_CACHE")
            os.environ["ANOMALIB_INP_CACHE"] = str(folder / place)
            try:
                (row,) = bench.predict(write(folder / "0.png", bench.image), folder / "out").values()
            finally:
                os.environ.pop("ANOMALIB_INP_CACHE")
                if before:
                    os.environ["ANOMALIB_INP_CACHE"] = before
            near(float(row["raw_score"]), bench.score(bench.image))

        return run

    yield Case("disks", "no folder for what is compiled", predicted("file/cache"))
    yield Case("disks", "a new folder for what is compiled", predicted("new/cache"))

    def results(folder: Path) -> None:
        image = write(folder / "0.png", bench.image)
        with full():
            bench.predict(image, folder / "out")

    yield Case("disks", "full: predict", results, "0.png")

    def output(folder: Path) -> None:
        (folder / "file").touch()
        bench.predict(write(folder / "0.png", bench.image), folder / "file")

    yield Case("disks", "predict: the output is a file", output, "file")


# --- stopped ----------------------------------------------------------------------------------------------------------


def stopped(bench: Bench) -> Iterator[Case]:
    """Commands that are killed or interrupted, and gone on with."""
    images = bench.root / "many"
    for index in range(150):
        write(images / f"{index:03}.png", photograph(index % 10, (200, 300)))
    command = [sys.executable, "-m", "anomalib_inp.cli", "predict", str(bench.exports["OpenVINO"]), str(images)]

    def run_and(signal_number: int, wanted: int) -> Run:
        def run(folder: Path) -> None:
            output = folder / "out"
            process = subprocess.Popen(
                [*command, "--output", str(output)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            table = output / "scores.csv"
            while process.poll() is None and not (table.exists() and table.read_bytes().count(b"\n") > 30):
                time.sleep(0.01)
            process.send_signal(signal_number)
            printed = process.communicate()[0].decode()
            assert process.returncode == wanted, f"exit code {process.returncode}"
            assert "Traceback" not in printed, "a traceback"
            rows = table.read_text(encoding="utf-8").splitlines()
            assert 30 < len(rows) <= 151, f"{len(rows)} rows"
            if signal_number == signal.SIGINT:
                assert (output / "gallery.png").exists(), "no gallery"
            after = bench.predict(images, output, "--resume", "true")
            assert sorted(after) == [f"{index:03}.png" for index in range(150)], f"{len(after)} images"
            assert len(table.read_text(encoding="utf-8").splitlines()) == 151, "rows twice"
            assert len(list(output.glob("*.png"))) == 151, "pictures are missing"
            for name, row in after.items():
                near(float(row["raw_score"]), bench.score(photograph(int(name[:3]) % 10, (200, 300))))

        return run

    yield Case("stopped", "predict: killed, resumed", run_and(signal.SIGKILL, -signal.SIGKILL))
    yield Case("stopped", "predict: Ctrl-C, resumed", run_and(signal.SIGINT, 130))
    yield Case("stopped", "predict: terminated, resumed", run_and(signal.SIGTERM, -signal.SIGTERM))

    def of_another(folder: Path) -> None:
        image = write(folder / "0.png", bench.image)
        bench.predict(image, folder / "out")
        run_command(
            "predict", str(bench.exports["ONNX"]), str(image), "--output", str(folder / "out"), "--resume", "true"
        )

    yield Case("stopped", "predict: resumed with another model", of_another, "results of another model")

    def latest(folder: Path) -> None:
        bench.engine(folder).fit(bench.model(), datamodule=bench.module())
        root = copied(bench, folder)
        (root / "part/train/good/000.png").write_text("no image")
        with contextlib.suppress(ValueError):
            bench.engine(folder).fit(bench.model(), datamodule=bench.module(root))
        (link,) = folder.rglob("latest")
        assert not link.readlink().is_absolute(), "an absolute link"
        assert (link / "weights/lightning/finished.ckpt").exists(), f"latest is {link.readlink()}"

    yield Case("stopped", "latest after a failed training", latest)


def settings(bench: Bench) -> Iterator[Case]:
    """Arguments that do not fit."""

    def fits(trainer: dict[str, Any] | None = None, **arguments: Any) -> Run:
        def run(folder: Path) -> None:
            bench.engine(folder, **(trainer or {})).fit(bench.model(**arguments), datamodule=bench.module())

        return run

    for precision in ("16-true", "bf16-true"):
        instead = precision.replace("true", "mixed")
        yield Case("arguments", f"precision {precision}", fits({"precision": precision}), f"Use {instead}")
    yield Case("arguments", "precision bf16-mixed", fits({"precision": "bf16-mixed"}))
    wrong: dict[str, tuple[dict[str, Any], str]] = {
        "image_size 65": ({"image_size": 65}, "multiple of the encoder's patch size 16"),
        "image_size 0": ({"image_size": 0}, "image_size"),
        "image_size of three": ({"image_size": (64, 64, 64)}, "image_size"),
        "crop_size larger": ({"image_size": 64, "crop_size": 96}, "must fit"),
        "an unknown map": ({"map": "heat"}, "must be one of"),
        "an unknown recipe": ({"recipe": "long"}, "recipe must be one of"),
        "no file of weights": ({"encoder_weights": "nothing.pth"}, "nothing.pth"),
        "an object": ({"encoder_kwargs": {"act_layer": object()}}, "Checkpoints hold"),
    }
    for name, (arguments, said) in wrong.items():
        yield Case("arguments", name, fits(**arguments), said)
    for name, steps, said in (
        ("Resize, CenterCrop", [v2.Resize((96, 96)), v2.CenterCrop(64)], None),
        ("Resize of the shorter side, CenterCrop", [v2.Resize(96), v2.CenterCrop(64)], "CenterCrop cannot be told"),
        ("RandomCrop", [v2.Resize((96, 96)), v2.RandomCrop(64)], "RandomCrop cannot be told"),
        ("Pad", [v2.Pad(8), v2.Resize((64, 64))], "Pad cannot be told"),
        ("a flip", [v2.RandomHorizontalFlip(), v2.Resize((64, 64))], "cannot be told"),
    ):
        pre_processor = PreProcessor(v2.Compose([*steps, v2.Normalize([0.485] * 3, [0.229] * 3)]))
        yield Case("arguments", f"a pre-processor: {name}", fits(pre_processor=pre_processor), said)

    def many(**arguments: Any) -> Run:
        return lambda _: MultiCategory("MVTecAD", str(bench.data), **arguments).setup()

    yield Case("arguments", "an unknown category", many(categories=["nothing"]), "nothing")
    yield Case("arguments", "more shots than images", many(shots=9), "shots=9")
    yield Case("arguments", "an unknown data set", lambda _: MultiCategory("Nothing"), "no image data module Nothing")
    plus = partial(bench.model, InpFormerPlusPlus)
    yield Case("arguments", "more labelled anomalies than there are", lambda folder: bench.engine(folder).fit(
        plus(labelled_anomalies=9), datamodule=bench.module()), "labelled_anomalies=9")  # fmt: skip


# --- the table --------------------------------------------------------------------------------------------------------

KINDS = (arrays, image_files, parity, broken_files, masks, layouts, links, names, checkpoints, exports, disks, stopped)


def report(counts: Counter[tuple[str, str]], bench: Bench) -> str:
    """Set the counts out as a table, a row for a kind."""
    kinds = list(dict.fromkeys(kind for kind, _ in counts))
    rows = [[kind, *(str(counts[kind, outcome]) for outcome in ("right", "refused", "fault"))] for kind in kinds]
    totals = [sum(counts[kind, outcome] for kind in kinds) for outcome in ("right", "refused", "fault")]
    rows.append([f"**{sum(totals)} inputs**", *(f"**{total}**" for total in totals)])
    table = pages.table(["kind", "right result", "refused by one sentence", "fault"], rows, " rrr")
    return (
        f"{table}\n\nExports beside the Engine, images of {len(SIZES)} sizes in colour and grey: the largest "
        f"difference of a raw map is {bench.parity:.1e}.\n\nMeasured with {pages.machine()}."
    )


def run_all(root: Path, only: str) -> tuple[Counter[tuple[str, str]], Bench]:
    """Run all cases whose kind or name holds a text, and print the faults."""
    os.environ["ANOMALIB_INP_CACHE"] = str(root / "cache")
    bench, counts, number = Bench(root), Counter[tuple[str, str]](), 0
    for make in (*KINDS, settings):
        for case in make(bench):
            if only and only not in f"{case.kind}: {case.name}":
                continue
            number += 1
            folder = root / f"case{number}"
            outcome, said = judge(case, folder)
            counts[case.kind, outcome] += 1
            if outcome == "fault":
                print(f"{case.kind}: {case.name}: {said}", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
    return counts, bench


if __name__ == "__main__":
    parser = pages.parser(__doc__, PAGE.name)
    parser.add_argument(
        "--only", default="", help="run the cases whose kind or name holds this text, and write no page"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        counts, bench = run_all(Path(name), given.only)
        page = report(counts, bench)
    print(page)
    if not given.only:
        pages.replace(given.out, "hostile", page)
    sys.exit(any(outcome == "fault" for _, outcome in counts))
