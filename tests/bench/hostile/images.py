# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Images in files, of all modes and sizes, and files that are none."""

import io
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from anomalib.data import Folder
from anomalib.data.utils import read_image
from PIL import Image

from hostile.bench import NO_SPLITS, PARITY, Bench, Case, near, photograph, write

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
