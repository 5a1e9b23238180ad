# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Data sets: masks, layouts, links, names."""

import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from anomalib.data import Folder
from PIL import Image

from hostile.bench import NO_SPLITS, Bench, Case, Run, mask, near, photograph, run_command, write


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
