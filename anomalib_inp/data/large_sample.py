# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Large photographs with small simulated defects of known area, written in the folder layout of MVTec AD."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from anomalib_inp.data.sample import (
    CATEGORIES,
    TEST_ROWS,
    TRAIN_ROWS,
    Float,
    Image8,
    Mask,
    apply_change,
    blob_depth,
    photograph,
    vary_exposure,
    write_once,
)

SIZE = (1536, 2048)
"""Height and width of the images."""
AREAS = (0.01, 0.05, 0.2, 1.0)
"""Areas of the defects, in per cent of the image."""
SHAPES = ("scratch", "stain", "hole", "patch")
TRAIN_GOOD, TEST_GOOD, PER_AREA = 12, 16, 8
VERSION = 1
LONG = 15
"""Times that a scratch is as long as it is wide."""

README = f"""\
Small simulated defects on large images
=======================================

Written by anomalib-inp (anomalib_inp.data.large_sample) in the folder layout of MVTec AD.

Images of {SIZE[1]} x {SIZE[0]} pixels, composed of the photographs of scikit-image (brick, grass, gravel; all CC0)
at their native size: mirrored on, from a random place, the exposure varied by a few per cent. Training and test images
come from separate parts of each photograph. Every defective image has one defect (scratch, stain, hole or patch) of
exactly the area that its folder names, in per cent of the image.

The data show what becomes of small defects. Numbers measured on them say nothing about real ones.
"""


def write_large_sample_data(root: Path | str, *, seed: int = 0) -> Path:
    """Write large images with small defects in the folder layout of MVTec AD.

    Every category has 12 training images, 16 normal test images and 8 test images with a defect of each of 4 areas, in
    folders that are named by the area in per cent. Images are 8-bit grey PNG files of 2048 x 1536 pixels.

    Args:
        root: Folder for the data; it may be missing or empty. Load with ``MVTecAD(root=root, category="gravel")``.
        seed: Chooses places, exposures and defects; 0 or larger.

    Returns:
        ``root`` as a path.

    Raises:
        FileExistsError: If ``root`` is not empty and holds anything but the data asked for.
    """
    wanted = {"version": VERSION, "seed": seed, "categories": list(CATEGORIES), "size": list(SIZE)}
    return write_once(root, wanted, lambda category: _files(category, seed), README)


def _files(category: str, seed: int) -> Iterator[tuple[str, Image8]]:
    """Yield the path below the category's folder and the pixels of every file."""
    for index in range(TRAIN_GOOD):
        yield f"train/good/{index:03}.png", _surface(category, TRAIN_ROWS, _generator(seed, category, 0, index))
    for index in range(TEST_GOOD):
        yield f"test/good/{index:03}.png", _surface(category, TEST_ROWS, _generator(seed, category, 1, index))
    for area in AREAS:
        for index in range(PER_AREA):
            defective, mask = _defect_sample(category, area, index, seed)[1:]
            yield f"test/{area:g}/{index:03}.png", defective
            yield f"ground_truth/{area:g}/{index:03}_mask.png", mask.astype(np.uint8) * 255


def _defect_sample(category: str, area: float, index: int, seed: int) -> tuple[Image8, Image8, Mask]:
    """One test image without and with a defect, and the mask of the pixels that differ."""
    rng = _generator(seed, category, 2 + AREAS.index(area), index)
    clean = _surface(category, TEST_ROWS, rng)
    count = round(area / 100 * clean.size)
    side = int(4 * np.sqrt(count)) + 16  # of a window that the defect lies in
    row, column = (int(rng.integers(0, length - side)) for length in clean.shape)
    place = np.s_[row : row + side, column : column + side]
    defective, mask = clean.copy(), np.zeros(clean.shape, dtype=bool)
    shape = SHAPES[index % len(SHAPES)]
    defective[place], mask[place] = _paint(category, shape, clean[place], count, index, rng)
    return clean, defective, mask


def _generator(seed: int, category: str, group: int, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, CATEGORIES.index(category), group, index, SIZE[0]])


def _surface(category: str, rows: slice, rng: np.random.Generator, size: tuple[int, int] | None = None) -> Image8:
    """A part of a photograph, mirrored on in both directions from a random place, its exposure varied by 4 per cent."""
    plane = photograph(category)[rows]
    chosen = []
    for length, wanted in zip(plane.shape, size or SIZE, strict=True):
        places = (int(rng.integers(2 * length)) + np.arange(wanted)) % (2 * length)
        chosen.append(np.minimum(places, 2 * length - 1 - places))
    return vary_exposure(plane[np.ix_(*chosen)], rng)


def _paint(
    category: str, shape: str, window: Image8, count: int, index: int, rng: np.random.Generator
) -> tuple[Image8, Mask]:
    """Paint a defect of exactly so many pixels into the middle of a window; it and its mask."""
    clean, side = window.astype(np.float64), len(window)
    radius = np.sqrt(count / np.pi)
    if shape == "scratch":
        depth = _line_depth(side, np.sqrt(LONG * count), rng)
    else:
        depth = blob_depth(rng, radius, side, (side / 2, side / 2))
    footprint = _exactly(depth, count)
    depth -= depth[footprint].min()
    bright = (index // len(SHAPES)) % 2 == 1
    if shape == "scratch":
        painted = clean + 0.85 * ((220 if bright else 30) - clean)
    elif shape == "stain":
        fade = np.clip(depth / (0.4 * radius), 0, 1)
        ink, strength = (240, 0.5) if bright else (25, 0.6)
        painted = clean + strength * fade * fade * (3 - 2 * fade) * (ink - clean)
    elif shape == "hole":
        painted = _hole(clean, depth / radius)
    else:
        other = rng.choice([name for name in CATEGORIES if name != category])
        texture = _surface(other, TEST_ROWS, rng, window.shape).astype(np.float64)
        painted = texture + clean[depth >= 0].mean() - texture[depth >= 0].mean()
    return apply_change(window, painted, footprint), footprint


def _exactly(depth: Float, count: int) -> Mask:
    """The deepest pixels, so many, equal ones in their order."""
    footprint = np.zeros(depth.size, dtype=bool)
    footprint[np.argsort(-depth.ravel(), kind="stable")[:count]] = True
    return footprint.reshape(depth.shape)


def _hole(clean: Float, depth: Float) -> Float:
    """A dark pit with a rim that is lit from the upper left; the depth in radii."""
    pit = clean * np.interp(depth, [0.15, 0.6], [0.4, 0.15])
    slope_y, slope_x = np.gradient(depth * len(depth) / 4)
    rim = clean * 0.7 - 70 * (slope_x + slope_y) / np.sqrt(2)
    return np.where(depth > 0.2, pit, rim)


def _line_depth(side: int, length: float, rng: np.random.Generator) -> Float:
    """Distance to a bent line in the middle of a window, in pixels and negative."""
    headings = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.2, size=7))
    steps = np.stack([np.sin(headings), np.cos(headings)], axis=1) * length / 7
    points = np.concatenate([[[0, 0]], np.cumsum(steps, axis=0)])
    points += side / 2 - (points.min(axis=0) + points.max(axis=0)) / 2
    pixels = np.moveaxis(np.mgrid[:side, :side], 0, -1).astype(np.float64)
    distances = []
    for start, end in pairwise(points):
        along = np.clip(((pixels - start) @ (end - start)) / ((end - start) @ (end - start)), 0, 1)
        distances.append(np.linalg.norm(pixels - start - along[..., None] * (end - start), axis=-1))
    return -np.min(distances, axis=0)
