# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What all tests share: small encoders, golden numbers, and no network."""

import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

# Before the first import that reads them, here and in the processes that tests start. OpenVINO reports each conversion
# to its makers from a copy of this process, which costs more than the conversion, unless this is a CI job.
os.environ |= {"HF_HUB_OFFLINE": "1", "CI": "true"}
# Tensors are tiny: threads of PyTorch would mostly wait for each other, and several test processes share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import timm
import torch
from anomalib.engine import Engine
from safetensors.torch import save_file

from anomalib_inp import InpFormer
from anomalib_inp.data.sample import write_sample_data
from anomalib_inp.files import VARIABLE
from anomalib_inp.models.encoder_model import EncoderModel

pytest.register_assert_rewrite("model_tester", "reference_metrics")

GOLDEN = Path(__file__).parent / "golden"
MORE_GOLDEN = "ANOMALIB_INP_GOLDEN"


def golden_folders() -> list[Path]:
    """Folders of golden numbers: those of the repository and those in the directory that the environment names."""
    roots = [GOLDEN]
    if more := os.environ.get(MORE_GOLDEN):
        roots.append(Path(more))
    found = [{meta.parent.resolve() for meta in root.glob("*/meta.json")} for root in roots]
    for root, folders in zip(roots, found, strict=True):
        if not folders:
            msg = (
                f"Expected folders of golden numbers (each with a meta.json) in {root}, found none. See {MORE_GOLDEN}."
            )
            raise pytest.UsageError(msg)
    return sorted(set().union(*found))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for ``golden_folder`` once for each."""
    if "golden_folder" in metafunc.fixturenames:
        folders = golden_folders()
        metafunc.parametrize("golden_folder", folders, ids=[folder.name for folder in folders], scope="session")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse connections to other machines, so that a test that needs one fails everywhere."""
    connect = socket.socket.connect

    def connect_locally(self: socket.socket, address: Any) -> None:
        if self.family in {socket.AF_INET, socket.AF_INET6} and address[0] not in {"localhost", "127.0.0.1", "::1"}:
            msg = f"Tests must not use the network, but one connects to {address}."
            raise ConnectionRefusedError(msg)
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_locally)


@pytest.fixture(scope="session", autouse=True)
def _own_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Leave the caches of whoever runs the tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(tmp_path_factory.mktemp("caches")))
        yield


class _InThisProcess:
    """Stands in for a pool of processes."""

    def __init__(self, **_: Any) -> None:
        pass

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*arguments))
        return future


@pytest.fixture
def _measured_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare export formats in this process: each of their own would import PyTorch and anomalib anew."""
    monkeypatch.setattr("anomalib_inp.benchmarks.exports.ProcessPoolExecutor", _InThisProcess)


@pytest.fixture(scope="session")
def write_small_sample() -> Callable[..., Path]:
    """Writes sample data of 8 images to train on and 2 of each kind to test on, with their masks."""

    def write(folder: Path, **kwargs: Any) -> Path:
        root = write_sample_data(folder / "sample", **kwargs)
        for images in root.glob("*/*/*"):
            for file in sorted(images.iterdir())[8 if images.parent.name == "train" else 2 :]:
                file.unlink()
        return root

    return write


@pytest.fixture(scope="session")
def tiny_encoder_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seeded random weights of timm's ``test_vit``: 6 blocks, width 64, patches of 16 pixels, native size 160."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model("test_vit", pretrained=False, num_classes=0)
    path = tmp_path_factory.mktemp("encoder") / "test_vit.safetensors"
    save_file(model.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def tiny_model(tiny_encoder_file: Path) -> Callable[..., EncoderModel]:
    """Builds models on the tiny encoder, of 64 x 64 pixels and without pictures unless a test says otherwise."""

    def build(kind: type[EncoderModel] = InpFormer, spread: float = 1, **arguments: Any) -> EncoderModel:
        """Build a model; ``spread`` multiplies its fresh weights, so that scores of different images differ."""
        encoder = {"encoder": "test_vit", "encoder_weights": str(tiny_encoder_file)}
        model = kind(**{**encoder, "image_size": 64, "map_size": 64, "visualizer": False, **arguments})
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad and parameter.ndim > 1:
                    parameter.mul_(spread)
        return model

    return build


@pytest.fixture(scope="session")
def quiet_engine(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Engine]:
    """Builds engines on the CPU that neither log nor print, train one epoch and write into a new folder."""

    def build(folder: Path | None = None, **arguments: Any) -> Engine:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        folder = folder or tmp_path_factory.mktemp("results")
        return Engine(default_root_dir=folder, **{**quiet, "accelerator": "cpu", "max_epochs": 1, **arguments})

    return build
