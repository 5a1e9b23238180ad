# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Masks that do not fit their images, or mark nothing that could be a defect."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anomalib.data import Folder
from part import mask, pixels, write
from PIL import Image, ImageFilter

from anomalib_inp.data.file_checks import EVERYTHING, NOTHING, DataError, check_mask_values, mask_fault

Make = Callable[..., Any]
EXIF_ORIENTATION = 274


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    return exif


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Folder]:
    """Builds a data module of an image (60 rows, 96 columns) and its mask."""
    for index in range(2):
        write(tmp_path / f"good/{index}.png", pixels(index))

    def build(image: Image.Image, marked: Image.Image, **saved: Any) -> Folder:
        (tmp_path / "bad").mkdir()
        (tmp_path / "masks").mkdir()
        image.save(tmp_path / "bad/0.jpg", **saved)
        marked.save(tmp_path / "masks/0.png")
        return Folder(
            "part", "good", tmp_path, "bad", None, "masks", num_workers=0, train_batch_size=1,
            val_split_mode="same_as_test", test_split_mode="from_dir",
        )  # fmt: skip

    return build


IMAGE = Image.fromarray(pixels()[:60])
FITTING = Image.fromarray(mask(slice(0, 30), slice(0, 30))[:60])


@pytest.mark.parametrize("stage", ["fit", "test"])
def test_a_mask_of_another_size_is_named(folder: Make, tiny_model: Make, quiet_engine: Make, stage: str) -> None:
    module = folder(IMAGE, FITTING.resize((48, 30)))
    message = r"masks/0\.png has 48 x 30 pixels, its image .*bad/0\.jpg 96 x 60"
    with pytest.raises(DataError, match=message):
        getattr(quiet_engine(), stage)(tiny_model(), datamodule=module)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_mask_that_was_drawn_upright_is_named(
    folder: Make, tiny_model: Make, quiet_engine: Make, orientation: int
) -> None:
    module = folder(IMAGE, FITTING.transpose(Image.Transpose.ROTATE_90), exif=turned(orientation))
    message = rf"0\.jpg 96 x 60, turned by EXIF orientation {orientation} in a viewer only.*exif_transpose"
    with pytest.raises(DataError, match=message):
        quiet_engine().fit(tiny_model(), datamodule=module)


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_turned_image_with_a_mask_of_its_size_is_called_out(
    folder: Make, tiny_model: Make, quiet_engine: Make, orientation: int
) -> None:
    module = folder(IMAGE, FITTING, exif=turned(orientation))
    with pytest.warns(UserWarning, match=rf"A viewer turns 1 images .*0\.jpg \(orientation {orientation}\)"):
        quiet_engine().test(tiny_model(), datamodule=module)


def test_masks_that_fit_are_no_fault(
    folder: Make, tiny_model: Make, quiet_engine: Make, recwarn: pytest.WarningsRecorder
) -> None:
    quiet_engine().test(tiny_model(), datamodule=folder(IMAGE, FITTING, exif=turned(1)))
    said = [str(warning.message) for warning in recwarn]
    assert not [text for text in said if "look wrong" in text or "A viewer turns" in text]


NUMBERED = np.zeros((60, 96), np.uint8)
NUMBERED[:10], NUMBERED[20:30] = 1, 2


@pytest.mark.parametrize(
    ("image", "fault"),
    [
        (FITTING, None),
        (FITTING.convert("1"), None),
        (FITTING.convert("P"), None),
        (FITTING.convert("RGB"), None),
        (Image.fromarray(NUMBERED), None),
        (Image.fromarray(np.asarray(FITTING).astype(np.uint16) * 257), None),
        (FITTING.filter(ImageFilter.GaussianBlur(8)), "grey values: all of them but black count as defect"),
        (Image.new("L", (9, 9)), NOTHING),
        (Image.new("L", (9, 9), 255), EVERYTHING),
        (Image.merge("LA", [Image.new("L", (96, 60)), FITTING]), NOTHING),
        (Image.merge("RGBA", [*[Image.new("L", (96, 60))] * 3, FITTING]), NOTHING),
    ],
)
def test_what_masks_mark_is_looked_at(tmp_path: Path, image: Image.Image, fault: str | None) -> None:
    image.save(tmp_path / "mask.png")
    found = mask_fault(str(tmp_path / "mask.png"))
    assert found is None if fault is None else fault in str(found)


def test_a_compressed_mask_has_too_many_values(tmp_path: Path) -> None:
    FITTING.save(tmp_path / "mask.jpg", quality=60)
    assert "count as defect" in str(mask_fault(str(tmp_path / "mask.jpg")))


def test_masks_of_which_none_is_one_are_refused_and_some_are_called_out(tmp_path: Path) -> None:
    for name, image in {"a": FITTING, "b": Image.new("L", (9, 9)), "c": Image.new("L", (9, 9), 9)}.items():
        image.save(tmp_path / f"{name}.png")
    paths = [str(tmp_path / f"{name}.png") for name in "abc"]
    with pytest.warns(UserWarning, match=r"Of 3 masks, 2 look wrong: .*b\.png marks nothing; .*c\.png marks the whole"):
        check_mask_values(paths)
    with pytest.raises(DataError, match=r"Of 2 masks, 2 look wrong"):
        check_mask_values(paths[1:])
    check_mask_values([])
