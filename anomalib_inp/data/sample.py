# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Simulated defects on real photographs, written in the folder layout of MVTec AD.

The photographs (brick wall, grass, gravel) are installed with scikit-image, so nothing is downloaded. The data are
small enough for a demo and for tests; results on them say nothing about real defects.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from skimage import data as photographs
from skimage.filters import gaussian

CATEGORIES = ("brick", "grass", "gravel")
"""Categories of the sample data; each is one photograph."""

DEFECTS = ("scratch", "stain", "hole", "patch")
"""Kinds of simulated defect in every category."""

TRAIN_GOOD = 40
TEST_GOOD = 12
PER_DEFECT = 6

# Part of the marker: raise it with every change that alters a pixel, so that old data are not taken for new ones.
VERSION = 1
MARKER = "sample_data.json"

# A third of a photograph's side, which leaves room for many different windows yet shows several bricks in each; and a
# multiple of both 14 and 8, so that encoders with either patch size take the images without resizing.
WINDOW = 168

# Training windows come from the rows above, test windows from the rows below. Rows and not columns: the brick wall is
# seen in perspective, and only a horizontal cut leaves both slants of its joints on either side. Above and not below:
# the weeds among the grass are in the upper half, and as training data they are no false alarms.
TRAIN_ROWS = slice(0, 320)
TEST_ROWS = slice(320, 512)

# Smallest change that counts as a defect, in grey levels: well above rounding, barely visible.
MIN_CHANGE = 4

README = f"""\
Simulated defects on real photographs
=====================================

Written by anomalib-inp (anomalib_inp.data.sample) in the folder layout of MVTec AD. No image of MVTec AD is in here.

The normal images are windows of {WINDOW} x {WINDOW} pixels cut from real photographs, with their exposure varied by a
few per cent. Windows of one split overlap each other; training and test windows come from separate parts of each
photograph. The defects (scratch, stain, hole, patch) are drawn by a program. A mask marks exactly the pixels that
the defect changed, each by at least {MIN_CHANGE} grey levels of 255.

The data show that the software runs. Numbers measured on them say nothing about real defects: do not quote them as
the accuracy of a method.

Photographs, all under the Creative Commons CC0 licence, as distributed with scikit-image (skimage.data):

  brick   CC0Textures, Bricks25: https://cc0textures.com/view.php?tex=Bricks25
  grass   linolafett, Grass 01: https://www.deviantart.com/linolafett/art/Grass-01-434853879
  gravel  CC0Textures, Gravel04: https://cc0textures.com/view.php?tex=Gravel04
"""

Image8 = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Float = NDArray[np.float64]


def write_sample_data(root: Path | str, *, categories: Sequence[str] = CATEGORIES, seed: int = 0) -> Path:
    """Write simulated defects on real photographs in the folder layout of MVTec AD.

    Every category has 40 training images, 12 normal test images and 6 test images with each of 4 kinds of defect.
    Images are 8-bit grey PNG files of 168x168 pixels, masks likewise with the values 0 and 255. The same seed gives
    the same bytes as long as the versions of NumPy, Pillow and scikit-image stay the same.

    The data appear at ``root`` only once complete. If they are there already, nothing is written; nothing is ever
    deleted or overwritten.

    Args:
        root: Folder for the data; it may be missing or empty. Load with ``MVTecAD(root=root, category="brick")``.
        categories: Which of ``CATEGORIES`` to write. What is written for one does not depend on the others.
        seed: Chooses windows, exposures and defects; 0 or larger.

    Returns:
        ``root`` as a path.

    Raises:
        ValueError: If ``categories`` is empty or names an unknown category.
        FileExistsError: If ``root`` is not empty and holds anything but the data asked for.
    """
    unknown = [category for category in categories if category not in CATEGORIES]
    if unknown or not categories:
        msg = f"Categories of the sample data must be some of {CATEGORIES}, got {categories!r}."
        raise ValueError(msg)
    # Sorted: the order in which categories are named makes no difference to the files.
    wanted: dict[str, Any] = {"version": VERSION, "seed": seed, "categories": sorted(set(categories))}
    return write_once(root, wanted, lambda category: _files(category, seed), README)


def write_once(
    root: Path | str, wanted: dict[str, Any], files: Callable[[str], Iterator[tuple[str, Image8]]], readme: str
) -> Path:
    """Write sample data, which appear only once complete; where they are already, nothing is written.

    Args:
        root: Folder for the data.
        wanted: What they are made by: their version, seed and categories.
        files: Makes the files of a category: path below its folder, and pixels.
        readme: What is said of them.

    Raises:
        FileExistsError: The folder holds something else.
    """
    root = Path(root)
    if root.exists() and any(root.iterdir()):
        _check_holds(root, wanted)
        return root

    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as scratch:
        # Inside the temporary folder and not the folder itself, which only its owner may read.
        unfinished = Path(scratch) / "data"
        for category in wanted["categories"]:
            for path, image in files(category):
                target = unfinished / category / path
                target.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(target)
        (unfinished / "README.txt").write_text(readme, encoding="utf-8")
        (unfinished / MARKER).write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
        if root.exists():
            # Renaming onto an empty folder works on POSIX only.
            root.rmdir()
        unfinished.rename(root)
    return root


def _check_holds(root: Path, wanted: dict[str, Any]) -> None:
    """Raise unless the folder holds the wanted data, perhaps with further categories."""
    marker = root / MARKER
    if not marker.is_file():
        msg = (
            f"Expected no folder, an empty one or sample data at {root}, but it holds other files. "
            "Nothing was written: name another folder."
        )
        raise FileExistsError(msg)
    found = json.loads(marker.read_text(encoding="utf-8"))
    same = all(found.get(key) == wanted.get(key) for key in (found.keys() | wanted.keys()) - {"categories"})
    if not same or not set(wanted["categories"]) <= set(found["categories"]):
        msg = (
            f"Asked for sample data {wanted}, but {root} holds {found}. "
            "Nothing was written: name another folder, or delete this one if it is no longer needed."
        )
        raise FileExistsError(msg)


def _files(category: str, seed: int) -> Iterator[tuple[str, Image8]]:
    """Yield the path below the category's folder and the pixels of every file."""
    for index in range(TRAIN_GOOD):
        yield f"train/good/{index:03}.png", _window(category, TRAIN_ROWS, _generator(seed, category, "train", index))
    for index in range(TEST_GOOD):
        yield f"test/good/{index:03}.png", _window(category, TEST_ROWS, _generator(seed, category, "test", index))
    for kind in DEFECTS:
        for index in range(PER_DEFECT):
            _, defective, mask = _defect_sample(category, kind, index, seed)
            yield f"test/{kind}/{index:03}.png", defective
            yield f"ground_truth/{kind}/{index:03}_mask.png", mask.astype(np.uint8) * 255


def _defect_sample(category: str, kind: str, index: int, seed: int) -> tuple[Image8, Image8, Mask]:
    """One test window without and with a defect, and the mask of the pixels that differ; each ``(168, 168)``."""
    rng = _generator(seed, category, kind, index)
    window = _window(category, TEST_ROWS, rng)
    clean = window.astype(np.float64)  # differences of 8-bit numbers would wrap around
    if kind == "scratch":
        painted, footprint = _scratch(clean, index, rng)
    elif kind == "stain":
        painted, footprint = _stain(clean, index, rng)
    elif kind == "hole":
        painted, footprint = _hole(clean, rng)
    else:
        painted, footprint = _patch(clean, _patch_texture(category, clean, index, rng), rng)
    return window, apply_change(window, painted, footprint), footprint


def _generator(seed: int, category: str, group: str, index: int) -> np.random.Generator:
    """A generator for one image, so that no image depends on how many were drawn before it."""
    group_number = ("train", "test", *DEFECTS).index(group)
    return np.random.default_rng([seed, CATEGORIES.index(category), group_number, index])


@cache
def photograph(category: str) -> Image8:
    """The photograph of a category, ``(512, 512)``, from the files installed with scikit-image."""
    return getattr(photographs, category)()


def _corner(rows: slice, rng: np.random.Generator) -> tuple[int, int]:
    """Row and column of the upper left pixel of a random window that lies within the rows."""
    row = int(rng.integers(rows.start, rows.stop - WINDOW, endpoint=True))
    column = int(rng.integers(0, 512 - WINDOW, endpoint=True))
    return row, column


def _window(category: str, rows: slice, rng: np.random.Generator) -> Image8:
    """A random window ``(168, 168)`` of a photograph within the rows, its exposure varied by up to 4 per cent."""
    row, column = _corner(rows, rng)
    return vary_exposure(photograph(category)[row : row + WINDOW, column : column + WINDOW], rng)


def vary_exposure(image: Image8, rng: np.random.Generator) -> Image8:
    """Make an image brighter or darker by up to 4 per cent."""
    return np.clip(np.rint(image * rng.uniform(0.96, 1.04)), 0, 255).astype(np.uint8)


def apply_change(clean: Image8, painted: Float, footprint: Mask) -> Image8:
    """Take the painted pixels inside the footprint and make it the exact set of changed pixels.

    A defect sometimes has the grey value of what it covers. Such pixels are moved by ``MIN_CHANGE``, so that the
    mask is free of speckle and still true.
    """
    before = clean.astype(np.int16)
    change = np.clip(np.rint(painted), 0, 255).astype(np.int16) - before
    # Towards mid-grey, where there is always room.
    nudge = np.where(before < 128, MIN_CHANGE, -MIN_CHANGE)
    change = np.where(np.abs(change) < MIN_CHANGE, nudge, change)
    return (before + np.where(footprint, change, 0)).astype(np.uint8)


def _scratch(clean: Float, index: int, rng: np.random.Generator) -> tuple[Float, Mask]:
    """A thin bent line of 2 to 4 pixels width, bright and dark in turn."""
    steps = rng.uniform(9, 15, size=8)
    headings = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.2, size=8))
    points = np.cumsum(np.stack([steps * np.cos(headings), steps * np.sin(headings)], axis=1), axis=0)
    # The 7 segments measure at most 105 pixels from end to end, so the line stays inside the window.
    points += rng.uniform(64, 104, size=2) - (points.min(axis=0) + points.max(axis=0)) / 2

    # Drawn four times larger and averaged down: Pillow's own lines have no smooth edge.
    scale = 4
    canvas = Image.new("L", (WINDOW * scale, WINDOW * scale))
    line = [(float(x) * scale, float(y) * scale) for x, y in points]
    ImageDraw.Draw(canvas).line(line, fill=255, width=round(rng.uniform(2, 4) * scale), joint="curve")
    alpha = np.asarray(canvas.resize((WINDOW, WINDOW), Image.Resampling.BOX)) / 255

    ink = rng.uniform(205, 235) if index % 2 == 0 else rng.uniform(15, 40)
    return clean + 0.85 * alpha * (ink - clean), alpha >= 0.25


def _stain(clean: Float, index: int, rng: np.random.Generator) -> tuple[Float, Mask]:
    """A smooth spot through which the texture still shows, dark and bright in turn."""
    depth = _blob(rng, radius=rng.uniform(18, 28))
    fade = np.clip(depth / 12, 0, 1)
    alpha = fade * fade * (3 - 2 * fade)  # smoothstep: no visible line where the fade begins or ends
    ink, strength = (25, 0.6) if index % 2 == 0 else (240, 0.5)
    return clean + strength * alpha * (ink - clean), alpha >= 0.15


def _hole(clean: Float, rng: np.random.Generator) -> tuple[Float, Mask]:
    """A dark pit with a rim, lit from the upper left."""
    depth = _blob(rng, radius=rng.uniform(9, 15))
    pit = clean * np.interp(depth, [2, 8], [0.4, 0.15])
    slope_y, slope_x = np.gradient(depth)
    # Where the depth falls towards the lower right, the wall faces the light.
    rim = clean * 0.7 - 70 * (slope_x + slope_y) / np.sqrt(2)
    return np.where(depth > 2.5, pit, rim), depth >= 0


def _patch(clean: Float, texture: Float, rng: np.random.Generator) -> tuple[Float, Mask]:
    """A piece of another texture with a hard edge, matched to the brightness of what it covers."""
    footprint = _blob(rng, radius=rng.uniform(17, 25)) >= 0
    return texture + clean[footprint].mean() - texture[footprint].mean(), footprint


def _patch_texture(category: str, clean: Float, index: int, rng: np.random.Generator) -> Float:
    """Texture for a patch: another photograph and the same one, turned and blurred, in turn."""
    if index % 2 == 1:
        return gaussian(np.rot90(clean), sigma=2)
    other = rng.choice([name for name in CATEGORIES if name != category])
    # Test rows, so that no pixel of any category's training data is in a test image.
    return _window(other, TEST_ROWS, rng).astype(np.float64)


def _blob(rng: np.random.Generator, radius: float) -> Float:
    """Depth of a round shape somewhere in a window."""
    centre_y, centre_x = rng.uniform(52, 116, size=2)
    return blob_depth(rng, radius, WINDOW, (centre_y, centre_x))


def blob_depth(rng: np.random.Generator, radius: float, side: int, centre: tuple[float, float]) -> Float:
    """Approximate depth in pixels below the edge of an irregular round shape; negative outside it."""
    y, x = np.mgrid[:side, :side]
    angle = np.arctan2(y - centre[0], x - centre[1])
    waves = [rng.uniform(0, 0.3) / k * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in range(1, 8)]
    return radius * (1 + np.sum(waves, axis=0)) - np.hypot(y - centre[0], x - centre[1])
