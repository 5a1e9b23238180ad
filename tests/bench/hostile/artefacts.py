# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Checkpoints, exports, disks, commands that are stopped, and arguments."""

import contextlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from anomalib.pre_processing import PreProcessor
from torchvision.transforms import v2

from anomalib_inp import ExportedModel, InpFormer, InpFormerPlusPlus
from anomalib_inp.data import MultiCategory
from hostile.bench import Bench, Case, Run, near, photograph, run_command, write
from hostile.data_sets import copied


class _Harm:
    """Pickled, this writes a file where it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def checkpoints(bench: Bench) -> Iterator[Case]:
    """Checkpoints that are none, of another model, or with arguments that are no plain data."""
    whole = bench.checkpoint.read_bytes()

    def loads(change: Callable[[Path], object]) -> Run:
        def run(folder: Path) -> None:
            shutil.copy(bench.checkpoint, folder / "model.ckpt")
            change(folder / "model.ckpt")
            model = InpFormer.load_from_checkpoint(folder / "model.ckpt").eval()
            with torch.inference_mode():
                score = model.model(model.pre_processor(torch.from_numpy(bench.image).permute(2, 0, 1)[None] / 255))
            near(float(score.pred_score), bench.score(bench.image))

        return run

    def edited(**changes: Any) -> Callable[[Path], object]:
        def change(path: Path) -> None:
            content = torch.load(path, weights_only=True)
            torch.save({**content, **changes}, path)

        return change

    yield Case("checkpoints", "as it is", loads(lambda _: None))
    for share in (0, 0.1, 0.5, 0.99):
        cut = lambda path, share=share: path.write_bytes(whole[: int(share * len(whole))])  # noqa: E731
        yield Case("checkpoints", f"{share:.0%} of one", loads(cut), "is no checkpoint")
    yield Case("checkpoints", "a text", loads(lambda path: path.write_text("text")), "is no checkpoint")
    yield Case("checkpoints", "none", loads(lambda path: path.unlink()), "There is no checkpoint")
    yield Case("checkpoints", "of another model", loads(edited(model="InpFormerPlusPlus")), "InpFormerPlusPlus")
    yield Case("checkpoints", "of another encoder", loads(edited(encoder_digest="0")), "encoder")

    def harmful(path: Path) -> None:
        torch.save({**torch.load(path, weights_only=True), "more": _Harm(path.with_suffix(".harm"))}, path)

    yield Case("checkpoints", "with code in it", loads(harmful), "could run code")

    def pickled(path: Path) -> None:
        path.write_bytes(pickle.dumps(_Harm(path.with_suffix(".harm"))))

    yield Case("checkpoints", "a pickle", loads(pickled), "is no checkpoint")
    arguments: dict[str, dict[str, Any]] = {
        "np.float64": {"learning_rate": np.logspace(-4, -3, 3)[1]},
        "np.int64": {"image_size": np.int64(64)},
        "an array": {"image_size": np.array([64, 64])},
        "np.bool": {"compile": np.bool_(False)},
        "a tuple": {"image_size": (64, 64)},
    }
    for name, own in arguments.items():

        def run(folder: Path, own: dict[str, Any] = own) -> None:
            bench.engine(folder).fit(bench.model(**own), datamodule=bench.module())
            InpFormer.load_from_checkpoint(next(folder.rglob("finished.ckpt")))

        yield Case("checkpoints", f"arguments: {name}", run)

    def resumed(path: Path) -> Run:
        def run(folder: Path) -> None:
            engine = bench.engine(folder, max_epochs=3)
            engine.fit(bench.model(), datamodule=bench.module(), ckpt_path=path)

        return run

    yield Case("checkpoints", "resumed", resumed(bench.resumable))
    yield Case(
        "checkpoints", "resumed from a finished one", resumed(bench.checkpoint), "Training is resumed from model.ckpt"
    )

    def windows(folder: Path) -> None:
        content = torch.load(bench.checkpoint, weights_only=True)
        content["hyper_parameters"]["encoder_weights"] = "C:\\models\\encoder.safetensors"
        torch.save(content, folder / "model.ckpt")
        shutil.copy(bench.encoder, folder)
        InpFormer.load_from_checkpoint(folder / "model.ckpt")

    yield Case("checkpoints", "trained on Windows", windows)

    def rare(folder: Path) -> None:
        engine = bench.engine(folder, max_epochs=3, check_val_every_n_epoch=2)
        engine.fit(bench.model(), datamodule=bench.module())
        model = InpFormer.load_from_checkpoint(next(folder.rglob("finished.ckpt")))
        kept = float(model.post_processor.image_threshold)
        bench.engine(folder / "again").validate(model, datamodule=bench.module())
        near(kept, float(model.post_processor.image_threshold), 1e-6)

    yield Case("checkpoints", "validated every second of three epochs", rare)


def exports(bench: Bench) -> Iterator[Case]:
    """Exports that are none, half of one, or for one size."""
    files = {"ONNX": ("model.onnx",), "OpenVINO": ("model.xml", "model.bin")}
    for runtime, (first, *others) in files.items():

        def runs(change: Callable[[Path], object], first: str = first, runtime: str = runtime) -> Run:
            def run(folder: Path) -> None:
                for path in bench.exports[runtime].parent.glob("model.*"):
                    shutil.copy(path, folder)
                change(folder / first)
                model = ExportedModel(folder / first)
                near(float(model.metadata.to_raw(model(bench.image).pred_score)[0]), bench.score(bench.image))

            return run

        yield Case("exports", f"{runtime}: as it is", runs(lambda _: None))
        for share in (0, 0.5, 0.99):
            cut = partial(_cut_file, share=share)
            yield Case("exports", f"{runtime}: {share:.0%} of one", runs(cut), first)
        yield Case("exports", f"{runtime}: a text", runs(lambda path: path.write_text("text")), first)
        yield Case("exports", f"{runtime}: none", runs(lambda path: path.unlink()), first)
        for other in others:
            yield Case(
                "exports", f"{runtime}: without {other}", runs(lambda path: path.with_suffix(".bin").unlink()), ".bin"
            )
            cut = lambda path: _cut_file(path.with_suffix(".bin"), 0.5)  # noqa: E731
            yield Case("exports", f"{runtime}: half of {other}", runs(cut), "model")

    def foreign(folder: Path) -> None:
        model = onnx.load(bench.exports["ONNX"])
        del model.metadata_props[:]
        onnx.save(model, folder / "model.onnx")
        ExportedModel(folder / "model.onnx")

    yield Case("exports", "ONNX: of something else", foreign, "model.onnx")

    def fixed(runtime: str, size: tuple[int, int]) -> Run:
        def run(folder: Path) -> None:
            if runtime == "OpenVINO":
                path = bench.trained.to_openvino(folder, input_size=(90, 120))
            else:
                model = onnx.load(bench.exports["ONNX"])
                for place, length in enumerate((1, 3, 90, 120)):
                    model.graph.input[0].type.tensor_type.shape.dim[place].dim_value = length
                path = folder / "model.onnx"
                onnx.save(model, path)
            model = ExportedModel(path)
            found = model.metadata.to_raw(model(photograph(7, size)).pred_score)
            near(float(found[0]), bench.score(photograph(7, size)))

        return run

    for runtime in files:
        yield Case("exports", f"{runtime}: for one size", fixed(runtime, (90, 120)))
        yield Case("exports", f"{runtime}: for another size", fixed(runtime, (120, 90)), "3 x 90 x 120")


def _cut_file(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


@contextlib.contextmanager
def full(size: int = 2000) -> Iterator[None]:
    """Let the system refuse files of more than so many bytes, as a full disk does."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def disks(bench: Bench) -> Iterator[Case]:
    """Disks that are full, and folders that take no files."""

    def trained(**arguments: Any) -> Run:
        def run(folder: Path) -> None:
            with full():
                bench.engine(folder).fit(bench.model(**arguments), datamodule=bench.module())

        return run

    yield Case("disks", "full: training", trained(), "finished.ckpt cannot be written")
    yield Case("disks", "full: feature cache", trained(feature_cache="disk"), "--model.feature_cache off")

    def no_folder(folder: Path) -> None:
        (folder / "file").touch()
        model = bench.model(feature_cache="disk", feature_cache_dir=str(folder / "file/cache"))
        bench.engine(folder).fit(model, datamodule=bench.module())

    yield Case("disks", "no folder for the feature cache", no_folder, "takes no feature cache")

    def threshold(path: Path) -> Run:
        def run(folder: Path) -> None:
            for file in path.parent.glob(f"{path.stem}.*"):
                shutil.copy(file, folder)
            before = (folder / path.name).read_bytes()
            try:
                with full(500):
                    run_command("threshold", str(folder / path.name), "--image", "0.5")
            finally:
                assert (folder / path.name).read_bytes() == before, "the file has changed"

        return run

    for name, path in {"checkpoint": bench.checkpoint, **bench.exports}.items():
        yield Case("disks", f"full: threshold of a {name}", threshold(path), "cannot be written")

    def predicted(place: str) -> Run:
        def run(folder: Path) -> None:
            (folder / "file").touch()
            before = os.environ.get("ANOMALIB_INP_CACHE")
            os.environ["ANOMALIB_INP_CACHE"] = str(folder / place)
            try:
                (row,) = bench.predict(write(folder / "0.png", bench.image), folder / "out").values()
            finally:
                os.environ.pop("ANOMALIB_INP_CACHE")
                if before:
                    os.environ["ANOMALIB_INP_CACHE"] = before
            near(float(row["raw_score"]), bench.score(bench.image))

        return run

    yield Case("disks", "no folder for what is compiled", predicted("file/cache"))
    yield Case("disks", "a new folder for what is compiled", predicted("new/cache"))

    def results(folder: Path) -> None:
        image = write(folder / "0.png", bench.image)
        with full():
            bench.predict(image, folder / "out")

    yield Case("disks", "full: predict", results, "0.png")

    def output(folder: Path) -> None:
        (folder / "file").touch()
        bench.predict(write(folder / "0.png", bench.image), folder / "file")

    yield Case("disks", "predict: the output is a file", output, "file")


def stopped(bench: Bench) -> Iterator[Case]:
    """Commands that are killed or interrupted, and gone on with."""
    images = bench.root / "many"
    for index in range(150):
        write(images / f"{index:03}.png", photograph(index % 10, (200, 300)))
    command = [sys.executable, "-m", "anomalib_inp.cli", "predict", str(bench.exports["OpenVINO"]), str(images)]

    def run_and(signal_number: int, wanted: int) -> Run:
        def run(folder: Path) -> None:
            output = folder / "out"
            process = subprocess.Popen(
                [*command, "--output", str(output)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            table = output / "scores.csv"
            while process.poll() is None and not (table.exists() and table.read_bytes().count(b"\n") > 30):
                time.sleep(0.01)
            process.send_signal(signal_number)
            printed = process.communicate()[0].decode()
            assert process.returncode == wanted, f"exit code {process.returncode}"
            assert "Traceback" not in printed, "a traceback"
            rows = table.read_text(encoding="utf-8").splitlines()
            assert 30 < len(rows) <= 151, f"{len(rows)} rows"
            if signal_number == signal.SIGINT:
                assert (output / "gallery.png").exists(), "no gallery"
            after = bench.predict(images, output, "--resume", "true")
            assert sorted(after) == [f"{index:03}.png" for index in range(150)], f"{len(after)} images"
            assert len(table.read_text(encoding="utf-8").splitlines()) == 151, "rows twice"
            assert len(list(output.glob("*.png"))) == 151, "pictures are missing"
            for name, row in after.items():
                near(float(row["raw_score"]), bench.score(photograph(int(name[:3]) % 10, (200, 300))))

        return run

    yield Case("stopped", "predict: killed, resumed", run_and(signal.SIGKILL, -signal.SIGKILL))
    yield Case("stopped", "predict: Ctrl-C, resumed", run_and(signal.SIGINT, 130))
    yield Case("stopped", "predict: terminated, resumed", run_and(signal.SIGTERM, -signal.SIGTERM))

    def of_another(folder: Path) -> None:
        image = write(folder / "0.png", bench.image)
        bench.predict(image, folder / "out")
        run_command(
            "predict", str(bench.exports["ONNX"]), str(image), "--output", str(folder / "out"), "--resume", "true"
        )

    yield Case("stopped", "predict: resumed with another model", of_another, "results of another model")

    def latest(folder: Path) -> None:
        bench.engine(folder).fit(bench.model(), datamodule=bench.module())
        root = copied(bench, folder)
        (root / "part/train/good/000.png").write_text("no image")
        with contextlib.suppress(ValueError):
            bench.engine(folder).fit(bench.model(), datamodule=bench.module(root))
        (link,) = folder.rglob("latest")
        assert not link.readlink().is_absolute(), "an absolute link"
        assert (link / "weights/lightning/finished.ckpt").exists(), f"latest is {link.readlink()}"

    yield Case("stopped", "latest after a failed training", latest)


def settings(bench: Bench) -> Iterator[Case]:
    """Arguments that do not fit."""

    def fits(trainer: dict[str, Any] | None = None, **arguments: Any) -> Run:
        def run(folder: Path) -> None:
            bench.engine(folder, **(trainer or {})).fit(bench.model(**arguments), datamodule=bench.module())

        return run

    for precision in ("16-true", "bf16-true"):
        instead = precision.replace("true", "mixed")
        yield Case("arguments", f"precision {precision}", fits({"precision": precision}), f"Use {instead}")
    yield Case("arguments", "precision bf16-mixed", fits({"precision": "bf16-mixed"}))
    wrong: dict[str, tuple[dict[str, Any], str]] = {
        "image_size 65": ({"image_size": 65}, "multiple of the encoder's patch size 16"),
        "image_size 0": ({"image_size": 0}, "image_size"),
        "image_size of three": ({"image_size": (64, 64, 64)}, "image_size"),
        "crop_size larger": ({"image_size": 64, "crop_size": 96}, "must fit"),
        "an unknown map": ({"map": "heat"}, "must be one of"),
        "an unknown recipe": ({"recipe": "long"}, "recipe must be one of"),
        "no file of weights": ({"encoder_weights": "nothing.pth"}, "nothing.pth"),
        "an object": ({"encoder_kwargs": {"act_layer": object()}}, "Checkpoints hold"),
    }
    for name, (arguments, said) in wrong.items():
        yield Case("arguments", name, fits(**arguments), said)
    for name, steps, said in (
        ("Resize, CenterCrop", [v2.Resize((96, 96)), v2.CenterCrop(64)], None),
        ("Resize of the shorter side, CenterCrop", [v2.Resize(96), v2.CenterCrop(64)], "CenterCrop cannot be told"),
        ("RandomCrop", [v2.Resize((96, 96)), v2.RandomCrop(64)], "RandomCrop cannot be told"),
        ("Pad", [v2.Pad(8), v2.Resize((64, 64))], "Pad cannot be told"),
        ("a flip", [v2.RandomHorizontalFlip(), v2.Resize((64, 64))], "cannot be told"),
    ):
        pre_processor = PreProcessor(v2.Compose([*steps, v2.Normalize([0.485] * 3, [0.229] * 3)]))
        yield Case("arguments", f"a pre-processor: {name}", fits(pre_processor=pre_processor), said)

    def many(**arguments: Any) -> Run:
        return lambda _: MultiCategory("MVTecAD", str(bench.data), **arguments).setup()

    yield Case("arguments", "an unknown category", many(categories=["nothing"]), "nothing")
    yield Case("arguments", "more shots than images", many(shots=9), "shots=9")
    yield Case("arguments", "an unknown data set", lambda _: MultiCategory("Nothing"), "no image data module Nothing")
    plus = partial(bench.model, InpFormerPlusPlus)
    yield Case("arguments", "more labelled anomalies than there are", lambda folder: bench.engine(folder).fit(
        plus(labelled_anomalies=9), datamodule=bench.module()), "labelled_anomalies=9")  # fmt: skip
