# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The command ``anomalib-inp``: what anomalib's own command has no place for."""

import sys
from pathlib import Path
from typing import Any, Literal

from anomalib_inp.data.source import Source


def sample_data(folder: Path, seed: int = 0) -> None:
    """Write the sample data: simulated defects on real photographs, in the layout of MVTec AD.

    Args:
        folder: Where to; a new or empty folder.
        seed: Another seed gives other images.
    """
    from anomalib_inp.data.sample import CATEGORIES, write_sample_data

    print(f"Sample data with the categories {', '.join(CATEGORIES)}: {write_sample_data(folder, seed=seed)}")


def convert(published: Path, checkpoint: Path) -> None:
    """Turn a published checkpoint (model.pth of the reference code) into one that anomalib loads.

    Args:
        published: State dict of the reference code, with its encoder.
        checkpoint: The checkpoint to write; the encoder is written beside it.
    """
    from anomalib_inp.models.convert import convert_reference

    encoder = convert_reference(published, checkpoint)
    print(f"Checkpoint: {checkpoint}\nIts encoder: {encoder} (keep it beside the checkpoint)")


def threshold(
    model: Path,
    image: float | None = None,
    pixel: float | None = None,
    normalized: bool | None = None,
    category: str | None = None,
) -> None:
    """Show or set the thresholds of a checkpoint (.ckpt) or an exported model (.xml, .onnx), in place.

    Args:
        model: The file.
        image: New image threshold, a raw score.
        pixel: New pixel threshold, a raw value of the anomaly map.
        normalized: Of a checkpoint: whether what is exported from it gives normalised scores, or raw ones (false).
        category: Of a model of several categories: the one whose thresholds are meant; by default the common ones.
    """
    from anomalib_inp.checkpoints import edit as checkpoint
    from anomalib_inp.runtime import edit as export

    if model.suffix == ".ckpt":
        shown = checkpoint.set_thresholds(model, image, pixel, normalized, category)
    elif normalized is not None:
        sys.exit("anomalib-inp: --normalized is for checkpoints: set it there and export again.")
    else:
        shown = export.set_thresholds(model, image, pixel, category)
    print(f"Image threshold: {shown.image:.6g}\nPixel threshold: {shown.pixel:.6g}")
    print(f"Scores: {'normalised' if shown.normalized else 'raw'}")
    if category is None and shown.categories:
        print(f"With --category, those of: {', '.join(shown.categories)}")


def choose_map(checkpoint: Path, map: str | None = None) -> None:  # noqa: A002
    """Show or set the anomaly map of a checkpoint, in place: anomalib export takes it from there.

    Args:
        checkpoint: The checkpoint of a finished training.
        map: Name of the map; its thresholds are not chosen anew.
    """
    from anomalib_inp.models.convert import set_map

    print(f"Map: {set_map(checkpoint, map)}")


def predict(
    model: Path,
    images: Path,
    output: Path = Path("predictions"),
    device: str = "CPU",
    precision: str | None = "f32",
    category: str | None = None,
) -> None:
    """Run an exported model on images: a picture of each, scores.csv and, where the folder tells labels, seven metrics.

    Args:
        model: The .xml of an OpenVINO model, or an .onnx file.
        images: An image, or a folder of images; a test folder in the layout of MVTec AD tells labels and masks.
        output: Folder for the results.
        device: OpenVINO device, such as CPU, GPU or NPU.
        precision: OpenVINO's inference precision; null leaves it to the device, which may compute in bfloat16.
        category: Of a model of several categories: the one whose thresholds hold; by default the common ones.
    """
    from anomalib_inp.runtime.predict import predict_images

    predict_images(model, images, output, device, precision, category)


def benchmark_export(
    checkpoint: Path,
    images: Path,
    calibration: Path | None = None,
    output: Path = Path("benchmark-export"),
    runs: int = 30,
    threads: int | None = None,
) -> None:
    """Export a checkpoint in every format and compare: size, latency, throughput, memory, accuracy, score difference.

    OpenVINO formats are run on each of its devices, in float32 and in the device's own precision.

    Args:
        checkpoint: The checkpoint of a finished training.
        images: Folder of test images, in the layout of MVTec AD for the accuracy.
        calibration: Folder of normal images for INT8; by default train/good beside the test folder.
        output: Folder for the exports and formats.csv.
        runs: Images that are timed per format.
        threads: CPU threads; by default the runtime's choice.
    """
    from anomalib_inp.benchmarks import exports

    exports.benchmark_export(checkpoint, images, calibration, output, runs, threads)


def benchmark(
    setting: Literal["single_class", "multi_class", "super_multi_class", "few_shot", "zero_shot", "semi_supervised"],
    source: str = "MVTecAD",
    root: str | None = None,
    categories: list[str] | str = "all",
    sources: tuple[Source, ...] | None = None,
    train_on: list[str] | None = None,
    test_on: list[str] | None = None,
    model: Literal["InpFormer", "InpFormerPlusPlus"] = "InpFormer",
    seeds: list[int] = [0],  # noqa: B006 - the help shows it
    shots: int | None = None,
    labelled_anomalies: int | None = None,
    output: Path = Path("benchmark"),
    model_args: dict[str, Any] | None = None,
    data_args: dict[str, Any] | None = None,
    trainer_args: dict[str, Any] | None = None,
) -> None:
    """Run a setting of the papers on a data set and report it beside the published numbers.

    The paper's protocol (448 pixels, of which the central 392; 200 epochs, batches of 16) unless told otherwise. Runs
    that are done are not done again, and one that was stopped goes on after its last epoch.

    Args:
        setting: Zero-shot leaves one category out at a time, or trains on train_on and tests on test_on.
        source: Image data module of anomalib.
        root: Folder of the data set.
        categories: Names of categories, or all.
        sources: Several data sets at once, each with source, root, categories and arguments.
        train_on: Categories or sources to train on; by default all.
        test_on: Categories or sources to test on; by default all.
        model: The model.
        seeds: A run for each.
        shots: Normal images per category, for few_shot alone; by default 4.
        labelled_anomalies: Labelled anomalies per category, for semi_supervised alone; by default 5.
        output: Folder for the results.
        model_args: Further arguments of the model, such as encoder or recipe.
        data_args: Further arguments of MultiCategory, such as train_batch_size.
        trainer_args: Arguments of the trainer, such as max_steps or precision.
    """
    from anomalib_inp.benchmarks import command

    command.benchmark(
        setting,
        source,
        root,
        categories,
        sources,
        train_on,
        test_on,
        model,
        seeds,
        shots,
        labelled_anomalies,
        output,
        model_args,
        data_args,
        trainer_args,
    )


def main() -> None:
    """Run the command line."""
    from jsonargparse import auto_cli

    commands: dict[str, Any] = {
        "benchmark": benchmark,
        "benchmark-export": benchmark_export,
        "sample-data": sample_data,
        "convert": convert,
        "map": choose_map,
        "predict": predict,
        "threshold": threshold,
    }
    try:
        auto_cli(commands, prog="anomalib-inp", description=__doc__)
    except (ValueError, OSError, ModuleNotFoundError, RuntimeError) as error:
        sys.exit(f"anomalib-inp: {error}")


if __name__ == "__main__":
    main()
