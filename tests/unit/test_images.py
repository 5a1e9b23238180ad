# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Images as they come, compared with anomalib's reader and with values known by construction."""

import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL
import pytest
from anomalib.data.utils import read_image
from PIL import Image

from anomalib_inp.files import IMAGE_SUFFIXES
from anomalib_inp.images import as_batch, decode_pixels, image_fault, is_deep_file, read_pixels

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
COLOURS[0, 0] = 0, 128, 255
DEEP = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "1", "CMYK", "YCbCr", "HSV"])
def test_images_of_eight_bits_are_read_as_anomalib_reads_them(tmp_path: Path, mode: str) -> None:
    if mode == "YCbCr" and int(PIL.__version__.partition(".")[0]) < 13:
        pytest.skip("Pillow before 13 cannot read what it writes of this kind")
    path = tmp_path / ("image.tif" if mode in {"CMYK", "YCbCr"} else "image.png")
    image = Image.fromarray(COLOURS).convert(mode)
    (image.convert("RGB") if mode == "HSV" else image).save(path)
    assert not is_deep_file(path)
    np.testing.assert_array_equal(as_batch(read_pixels(path))[0], read_image(path, as_tensor=True).numpy())


def write_big_endian_tiff(path: Path) -> None:
    Image.frombytes("I;16B", (7, 5), DEEP.astype(">u2").tobytes()).save(path)


def write_pgm(path: Path) -> None:
    path.write_bytes(b"P5 7 5 65535\n" + DEEP.astype(">u2").tobytes())


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("deep.png", lambda path: Image.fromarray(DEEP).save(path)),
        ("deep.tif", lambda path: Image.fromarray(DEEP).save(path)),
        ("big.tif", write_big_endian_tiff),
        ("deep.pgm", write_pgm),
    ],
)
def test_grey_images_of_sixteen_bits_are_scaled_by_their_range(tmp_path: Path, name: str, write: object) -> None:
    write(tmp_path / name)  # type: ignore[operator]
    assert is_deep_file(tmp_path / name)
    pixels = read_pixels(tmp_path / name)
    assert pixels.dtype == np.uint16
    np.testing.assert_array_equal(pixels, np.stack([DEEP] * 3, axis=-1))
    np.testing.assert_allclose(as_batch(pixels)[0, 1], DEEP / 65535, rtol=1e-6)


@pytest.mark.parametrize("suffix", [*IMAGE_SUFFIXES, ".mpo"])
def test_what_is_read_from_files_is_read_from_their_content(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image{suffix}"
    image = Image.fromarray(COLOURS)
    image.save(path, **({"save_all": True, "append_images": [image]} if suffix == ".mpo" else {}))
    np.testing.assert_array_equal(decode_pixels(path.read_bytes(), "image", 35), read_pixels(path))
    with pytest.raises(ValueError, match="7 x 5 pixels are more than the 34 that are taken"):
        decode_pixels(path.read_bytes(), "image", 34)


def test_what_no_folder_gives_is_not_decoded_either() -> None:
    """In a process of its own, where nothing has made Pillow load its formats yet."""
    content = io.BytesIO()
    Image.fromarray(COLOURS).save(content, "ICO")
    code = (
        "import sys; from anomalib_inp.images import decode_pixels; decode_pixels(sys.stdin.buffer.read(), 'a.ico', 99)"
    )
    ran = subprocess.run([sys.executable, "-c", code], input=content.getvalue(), capture_output=True, check=False)
    assert b"ValueError: a.ico is no readable image: cannot identify image file its content" in ran.stderr


@pytest.mark.parametrize("bits", [8, 16])
def test_a_tiff_whose_zero_is_white_is_turned_around(tmp_path: Path, bits: int) -> None:
    grey = DEEP if bits == 16 else COLOURS[..., 0]
    Image.fromarray(grey).save(tmp_path / "black.tif")
    written = (tmp_path / "black.tif").read_bytes()
    (tag,) = [place for place in range(len(written)) if written[place : place + 8] == TAG]
    (tmp_path / "white.tif").write_bytes(written[: tag + 8] + b"\0" + written[tag + 9 :])
    black, white = (read_pixels(tmp_path / f"{name}.tif") for name in ("black", "white"))
    np.testing.assert_array_equal(white, (2**bits - 1) - black)


TAG = b"\x06\x01\x03\x00\x01\x00\x00\x00"
"""Tag 262 of a TIFF, one value of 16 bits: what a grey of 0 means."""


def test_sixteen_bits_show_what_eight_bits_show(tmp_path: Path) -> None:
    Image.fromarray(COLOURS[..., 0]).save(tmp_path / "8.png")
    Image.fromarray(COLOURS[..., 0].astype(np.uint16) * 257).save(tmp_path / "16.png")
    eight, sixteen = (as_batch(read_pixels(tmp_path / name)) for name in ("8.png", "16.png"))
    np.testing.assert_allclose(sixteen, eight, atol=1e-7)


@pytest.mark.parametrize(
    ("values", "mode"), [(np.ones((4, 4), np.float32), "F"), (np.full((4, 4), 70000, np.int32), "I")]
)
def test_values_of_unknown_range_are_refused(tmp_path: Path, values: np.ndarray, mode: str) -> None:
    path = tmp_path / "image.tif"
    Image.fromarray(values).save(path)
    fault = (
        rf"image\.tif .*mode {mode}; expected 8 bits per channel, or grey of 16 bits: scale the values to 0\.\.65535"
    )
    assert re.search(fault, image_fault(path) or "")
    with pytest.raises(ValueError, match=fault):
        read_pixels(path)


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    text, missing, broken = (tmp_path / name for name in ("text.png", "missing.png", "broken.png"))
    text.write_text("no image")
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(broken)
    broken.write_bytes(broken.read_bytes()[:5000])
    assert image_fault(text) == f"{text} (UnidentifiedImageError)"
    assert image_fault(missing) == f"{missing} (FileNotFoundError)"
    assert image_fault(broken) is None  # the header alone does not tell
    for path in (text, missing, broken):
        with pytest.raises(ValueError, match=path.name):
            read_pixels(path)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (COLOURS, COLOURS / 255),
        (COLOURS.transpose(2, 0, 1), COLOURS / 255),
        (COLOURS[None], COLOURS / 255),
        (COLOURS.transpose(2, 0, 1)[None], COLOURS / 255),
        (COLOURS.astype(np.uint16) * np.uint16(257), COLOURS / 255),
        (COLOURS / 255, COLOURS / 255),
        ((COLOURS / 255).astype(np.float16), (COLOURS / 255).astype(np.float16)),
        (COLOURS.astype(">u2") * np.uint16(257), COLOURS / 255),
        (np.ones((3, 3, 3)) * [[[0.1]], [[0.2]], [[0.3]]], np.ones((3, 3, 3)) * [0.1, 0.2, 0.3]),  # channels first
    ],
)
def test_arrays_become_batches(images: np.ndarray, expected: np.ndarray) -> None:
    batch = as_batch(images)
    assert batch.dtype == np.float32
    np.testing.assert_allclose(batch, expected.transpose(2, 0, 1)[None], atol=1e-7)


def test_a_batch_of_several_keeps_its_order() -> None:
    several = np.stack([COLOURS, COLOURS[::-1], COLOURS[:, ::-1]])
    batch = as_batch(several)
    for image, array in zip(batch, several, strict=True):
        np.testing.assert_array_equal(image, as_batch(array)[0])


def test_blue_comes_first_where_it_is_said() -> None:
    np.testing.assert_array_equal(as_batch(COLOURS[..., ::-1], "bgr"), as_batch(COLOURS))
    np.testing.assert_array_equal(as_batch(COLOURS[..., ::-1].transpose(2, 0, 1), "bgr"), as_batch(COLOURS))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((5, 7)), r"\(5, 7\)"),
        (np.zeros((5, 7, 4)), r"\(5, 7, 4\).*transparency"),
        (np.zeros((1, 5, 7)), r"\(1, 5, 7\)"),
        (np.zeros((1, 1, 3, 5, 7)), r"shape \(1, 1, 3, 5, 7\)"),
        (np.zeros((0, 3, 5, 7)), r"\(0, 3, 5, 7\)"),
        (np.zeros((3, 0, 7)), r"\(3, 0, 7\)"),
        (np.float32(1), r"\(\)"),
        (COLOURS.astype(np.int64), "int64"),
        (COLOURS.astype(np.int8), "int8"),
        (COLOURS > 9, "bool"),
        (COLOURS.astype(complex), "complex128"),
        (np.array([[["a"] * 3] * 2] * 2), "<U1|str"),
        (np.full((2, 2, 3), None), "object"),
        (COLOURS.astype(np.float32), r"\[0, 1\], got 0 to 255"),
        (COLOURS / 255 * 1.01, "got 0"),
        (COLOURS / 255 - 0.5, "got -0.5 to 0.5"),
        (np.where(COLOURS > 250, np.nan, COLOURS / 255), "nan to nan"),
        (np.where(COLOURS > 250, np.inf, COLOURS / 255), "to inf"),
    ],
)
def test_what_is_no_image_is_refused(images: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_batch(images)


def test_overshoot_of_a_filter_passes() -> None:
    assert as_batch(np.full((2, 2, 3), 1.0005)).max() > 1
