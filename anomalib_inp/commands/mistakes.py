# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Commands that learn from what went wrong, and explain it."""

import sys
from pathlib import Path


def learn(
    checkpoint: Path, images: list[Path] | None = None, exports: list[Path] | None = None, forget: bool = False
) -> None:
    """Learn from false alarms: what is new in these images is remembered, and they alarm no more.

    The checkpoint needs a memory (TokenMemory, or memory true). Its image threshold is chosen anew from the scores that
    it keeps of the validation images, and those of the images that were learnt.

    Args:
        checkpoint: The checkpoint of a finished training; it is changed in place.
        images: Images that are normal, such as false alarms, or folders of them: "learn CHECKPOINT IMAGE...".
        exports: Exports of this checkpoint (.xml, .onnx), which are changed too: "--exports FILE...".
        forget: Take these images out again; without images, all that was learnt.
    """
    from anomalib_inp.files import first_few, image_files
    from anomalib_inp.models import learning

    if not images and not forget:
        sys.exit("anomalib-inp: learn needs images: learn CHECKPOINT IMAGE... To take all out again: --forget true")
    files = [file for path in images or [] for file in (image_files(path) if path.is_dir() else [path])]
    if images and not files:  # without images, everything would be forgotten
        sys.exit(f"anomalib-inp: there are no images in {first_few(list(map(str, images)))}.")
    learnt = learning.learn(checkpoint, files, exports or [], forget)
    print(f"{'Forgotten' if forget else 'Learnt'}: {learnt.changed} images; {learnt.tokens} tokens at each depth.")
    if learnt.images:
        print(f"Learnt in all: {first_few(learnt.images)}")
    if learnt.kept:
        print(f"Image threshold: {learnt.threshold:.6g} as it was, since {learnt.kept}.")
    else:
        print(f"Image threshold: {learnt.before:.6g} -> {learnt.threshold:.6g}")
    if learnt.alarming:
        print(f"Still above the threshold in force: {first_few(learnt.alarming)}")


def feedback(
    folder: Path,
    false_alarms: list[Path] | None = None,
    missed: list[Path] | None = None,
    drop: list[str] | None = None,
    run: Path | None = None,
) -> None:
    """Keep images whose verdict was wrong, as files with where they came from; without images, list what is kept.

    The station of "serve" keeps them in the same way; "retrain" adds the false alarms to the training images.

    Args:
        folder: Where they are kept.
        false_alarms: Images that are normal: "feedback FOLDER --false_alarms IMAGE...".
        missed: Images that have a defect: "--missed IMAGE...".
        drop: Images to take out again, by their names in the folder or where they came from.
        run: Results of a test or of predict that the images are of: they may be named as in its table, and their scores
            are kept too.
    """
    from anomalib_inp.images import image_fault
    from anomalib_inp.results.feedback import FOLDERS, drop_feedback, keep_feedback, read_feedback
    from anomalib_inp.results.records import FILE, read_records
    from anomalib_inp.results.writer import read_note

    said, root = {}, Path()
    if run is not None:
        if not (run / FILE).is_file():
            sys.exit(f"anomalib-inp: there is no {FILE} in {run}.")
        said = {record["path"]: record for record in read_records(run / FILE)}
        root = Path(read_note(run).get("images", ""))
    for mistake, images in (("false_alarm", false_alarms), ("missed", missed)):
        for image in images or []:
            name = str(image)
            path = root / name if name in said else image
            record = said.get(name)
            if fault := image_fault(path):
                sys.exit(f"anomalib-inp: there is no image that can be used: {fault}.")
            scores = (record["raw_score"], record["model"]) if record else (None, "")
            keep_feedback(folder, mistake, path.read_bytes(), str(path.resolve()), *scores)  # type: ignore[arg-type]
    if drop and len(drop_feedback(folder, drop)) == 0:
        sys.exit(f"anomalib-inp: nothing of {', '.join(drop)} is kept in {folder}.")
    kept = list(read_feedback(folder))
    for entry in kept:
        score = "" if entry["score"] is None else f" score {entry['score']:.4f}"
        print(f"{entry['file']}{score} from {entry['origin']}")
    counts = {mistake: sum(entry["mistake"] == mistake for entry in kept) for mistake in FOLDERS}
    print(f"Kept in {folder}: {counts['false_alarm']} false alarms, {counts['missed']} missed.")


def retrain(
    checkpoint: Path,
    feedback: Path,
    output: Path = Path("retrained"),
    extend: bool = False,
    images: Path | None = None,
    seed: int = 0,
    accelerator: str = "auto",
) -> None:
    """Train again with the false alarms of a folder among the normal images, and put old beside new.

    Validation images stay those of the checkpoint, so that its threshold and the new one are of the same images.

    Args:
        checkpoint: The finished checkpoint of a training; it stays as it is.
        feedback: Folder that "feedback" or the station have kept images in.
        output: Folder for the results.
        extend: Add the false alarms to what a model with a memory remembers, in seconds, instead of a training.
        images: Folder that the images of the training are below now, where they were moved.
        seed: Seed of the training.
        accelerator: What trains, as Lightning calls it: auto, cpu, gpu.
    """
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    from anomalib_inp import front

    front.with_what_is_worth_saying()
    from anomalib_inp.models import retraining

    console = Console()
    found = retraining.retrain(
        checkpoint, feedback, output, extend=extend, images=images, seed=seed, accelerator=accelerator,
        progress=lambda items, count, what: track(items, what, count, console=console),
    )  # fmt: skip
    table = Table("above the threshold", "images", "old", "new")
    for kind, (old, new) in found.rates.items():
        table.add_row(kind, str(old.total), str(old.hits), str(new.hits))
    console.print(table)
    print(f"Added: {found.added} false alarms")
    for why in found.left_out:
        print(f"Left out: {why}")
    print(f"Image threshold: {found.thresholds[0]:.6g} -> {found.thresholds[1]:.6g}")
    print(f"New checkpoint: {found.checkpoint}")
    print(f"Scores: anomalib-inp compare {found.tables[0].parent} {found.tables[1].parent}")


def explain(checkpoint: Path, image: Path, output: Path = Path("explained.png")) -> None:
    """Draw which prototype explains which patch of an image, how often each is used, and what is left over.

    Args:
        checkpoint: The checkpoint of a finished training of InpFormer or InpFormerPlusPlus.
        image: The image.
        output: The picture.
    """
    from anomalib_inp.files import replacing
    from anomalib_inp.images import read_pixels
    from anomalib_inp.models.served import CheckpointModel

    picture, shares = CheckpointModel(checkpoint).explain(read_pixels(image), image.name)
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(output) as temporary:
        picture.save(temporary)
    for number, share in enumerate(shares, start=1):
        print(f"Prototype {number}: {share:.1%} of the patches")
    print(f"Picture: {output}")
