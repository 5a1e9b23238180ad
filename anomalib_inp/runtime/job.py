# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""A folder of images that is to be predicted: what is in it, what is known of it, and where the results go."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from anomalib_inp.files import (
    IMAGE_SUFFIXES,
    OTHER_SUFFIXES,
    files_below,
    first_few,
    is_image_name,
    masks_of,
    partial_of,
)
from anomalib_inp.frame import WHOLE_IMAGE, CropBox
from anomalib_inp.images import image_fault
from anomalib_inp.pictures.names import picture_names
from anomalib_inp.results import records
from anomalib_inp.results.score_table import FILE, GOOD
from anomalib_inp.results.writer import HEAT_MAPS, NOTE, keep_records, picture_path, read_note, write_note
from anomalib_inp.runtime.model import ExportedModel

GALLERY = Path("gallery.png")


class Item(NamedTuple):
    """An image to predict.

    Attributes:
        path: The file.
        kind: ``good`` or a kind of defect; empty where the folder does not tell it.
        mask: Where the defect is, if the folder tells that.
    """

    path: Path
    kind: str = ""
    mask: Path | None = None

    @property
    def anomalous(self) -> bool | None:
        """Whether it is of a kind of defect; ``None`` where that is unknown."""
        return self.kind != GOOD if self.kind else None


class Found(NamedTuple):
    """What is in a folder.

    Attributes:
        items: The images.
        left_out: Names of files that are images by their suffixes, but of a kind that is not read.
    """

    items: list[Item]
    left_out: list[str]


@dataclass
class Job:
    """Images, and where the results go.

    Attributes:
        items: The images that are still to be predicted.
        root: Folder that their names begin below.
        output: Folder for the results.
        pictures: The picture of each image, by its path; none where pictures are not drawn.
        raw_scores: What is known of the images so far, by name: raw scores.
        faults: What is wrong with images that cannot be predicted.
        made_by: What the scores depend on besides the images.
        model: File of the model.
        digest: Fingerprint of its files.
        crop_box: The part of the images that the model inspects.
        shift: How far a sensitivity moves what is in force from the threshold.
        left_out: Files that are images by their names, but of a kind that is not read.
    """

    items: list[Item]
    root: Path
    output: Path
    pictures: dict[str, Path] = field(default_factory=dict)
    raw_scores: dict[str, float] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    made_by: str = ""
    model: str = ""
    digest: str = ""
    crop_box: CropBox = WHOLE_IMAGE
    shift: float = 0.0
    left_out: list[str] = field(default_factory=list)

    @property
    def table(self) -> Path:
        """The scores."""
        return self.output / FILE

    @property
    def records(self) -> Path:
        """All that was said."""
        return self.output / records.FILE

    @property
    def note(self) -> Path:
        """What the scores were made by."""
        return self.output / NOTE

    @property
    def sheet(self) -> Path:
        """The gallery."""
        return self.output / GALLERY

    def describe(self, model: Path, exported: ExportedModel, settings: str) -> None:
        """Say what predicts.

        Args:
            model: File of the model.
            exported: The model.
            settings: What else the scores depend on.
        """
        metadata = exported.metadata
        self.model, self.digest, self.crop_box = str(model.resolve()), exported.digest, metadata.crop_box
        self.shift = metadata.image.shift(metadata.image_limit)
        self.made_by = f"{exported.digest} {settings}"

    def note_down(self) -> None:
        """Write what the scores are made by; rows that are kept keep their note, and its time."""
        if not self.raw_scores:
            write_note(self.output, self.root, self.model, self.made_by, self.crop_box, {"": self.shift})

    def is_noted(self) -> bool:
        """Whether the note of an earlier run says that it was made by the same, of the same folder."""
        note = read_note(self.output)
        return (note.get("made_by"), note.get("images")) == (self.made_by, str(self.root.resolve()))

    def name(self, item: Item) -> str:
        """What an image is called in the table and on its picture."""
        return item.path.relative_to(self.root).as_posix()

    def drawn(self, item: Item) -> list[Path]:
        """List what is drawn of an image; nothing where pictures are not."""
        if not self.pictures:
            return []
        return [self.pictures[str(item.path)], picture_path(self.output, HEAT_MAPS, self.name(item))]

    def is_drawn(self, item: Item) -> bool:
        """Whether all of it is there."""
        return all(file.is_file() for file in self.drawn(item))


def find_images(images: Path) -> Found:
    """List an image, or the images below a folder, with the labels and masks that MVTec AD's layout tells.

    An image beside the folders of the kinds is of no kind: nothing is known of it. A folder called ``good`` by itself
    is of normal images.

    Raises:
        FileNotFoundError: There is no such image, or no image in the folder.
    """
    if images.is_file():
        return Found([Item(images)], [])
    if not images.exists():
        msg = f"There is no image or folder {images}."
        raise FileNotFoundError(msg)
    files = files_below(images)
    paths = [path for path in files if is_image_name(path.name)]
    if not paths:
        msg = f"Expected an image or a folder of images ({', '.join(IMAGE_SUFFIXES)}), found none in {images}."
        raise FileNotFoundError(msg)
    others = [path.relative_to(images).as_posix() for path in files if path.suffix.lower() in OTHER_SUFFIXES]
    if not (images / GOOD).is_dir():
        kind = GOOD if images.resolve().name == GOOD else ""
        return Found([Item(path, kind) for path in paths], others)
    # A link to a test folder may lie beside other masks than the folder itself.
    truths = (place.parent / "ground_truth" for place in (images.absolute(), images.resolve()))
    truth = next((place for place in truths if place.is_dir()), None)
    masks: dict[Path, dict[str, Path]] = {}
    items = []
    for path in paths:
        below = path.relative_to(images)
        kind = below.parts[0] if len(below.parts) > 1 else ""
        if truth is not None and kind not in {"", GOOD} and below.parent not in masks:
            masks[below.parent] = masks_of(truth / below.parent)
        items.append(Item(path, kind, masks.get(below.parent, {}).get(path.stem)))
    return Found(items, others)


def plan(images: Path, output: Path, pictures: bool = True, strict: bool = False) -> Job:
    """Look for the images, and name their pictures, before the first is predicted.

    Args:
        images: An image, or a folder of images.
        output: Folder for the results.
        pictures: Whether pictures are drawn.
        strict: Whether the headers of all images must be readable.

    Raises:
        FileNotFoundError: No images.
        ValueError: A picture would replace an image or become one of the next run; or, if strict, a file is no image.
    """
    items, left_out = find_images(images)
    if strict and (faults := [fault for item in items if (fault := image_fault(item.path))]):
        msg = f"Files are no images that can be used: {first_few(faults)}. Replace, convert or remove them."
        raise ValueError(msg)
    root = images if images.is_dir() else images.parent
    job = Job(items, root, output, left_out=left_out)
    if pictures:
        _name_pictures(job, images)
    return job


def resume(job: Job) -> None:
    """Leave out the images of a job that an earlier run has predicted, and keep their rows.

    An image that was written after that run had begun is predicted again.

    Args:
        job: The job.

    Raises:
        ValueError: The rows that are there were made by something else, or of other images.
    """
    if not job.table.exists():
        return
    if not job.is_noted():
        msg = (
            f"{job.output} holds results of another model, threshold, category or precision, or of another folder of "
            "images. Choose another output."
        )
        raise ValueError(msg)
    began = job.note.stat().st_mtime
    # a kill may have left half a row, and rows without their pictures
    done = {job.name(item) for item in job.items if _written(item.path) < began and job.is_drawn(item)}
    kept = keep_records(job.output, done)
    job.raw_scores = {record["path"]: record["raw_score"] for record in kept if record["raw_score"] is not None}
    job.items = [item for item in job.items if job.name(item) not in job.raw_scores]
    for file in (file for item in job.items for file in job.drawn(item)):
        partial_of(file).unlink(missing_ok=True)


def _written(path: Path) -> float:
    """When an image was written, or put where it is: copies keep the time of their content."""
    try:
        times = path.stat()
    except OSError:  # a link to nothing; its row says so
        return 0.0
    return max(times.st_mtime, times.st_ctime)


def _name_pictures(job: Job, images: Path) -> None:
    if images.is_dir() and job.output.resolve().is_relative_to(images.resolve()):
        msg = f"The pictures would become images of the next run. Choose an output outside {images}."
        raise ValueError(msg)
    if any(path.relative_to(job.root).parts[0] == HEAT_MAPS for path in (item.path for item in job.items)):
        msg = f"Heat maps are written to {HEAT_MAPS}: a folder of images needs another name, in {job.root}."
        raise ValueError(msg)
    names = picture_names([item.path for item in job.items], job.root, [GALLERY])
    job.pictures = {path: job.output / name for path, name in names.items()}
    written = {path.resolve() for path in (*job.pictures.values(), job.sheet)}
    if replaced := written & {item.path.resolve() for item in job.items}:
        msg = f"The pictures would replace images, {min(replaced)} for one. Choose an output outside {job.root}."
        raise ValueError(msg)
