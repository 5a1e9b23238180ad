# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.data import MVTecAD
from lightning import Callback, seed_everything
from safetensors.torch import load_file, save_file
from small_disk import small_disk
from torchvision.transforms.v2 import RandomHorizontalFlip, Resize

from anomalib_inp import InpFormer
from anomalib_inp.data.file_checks import DataError
from anomalib_inp.data.sample import write_sample_data
from anomalib_inp.files import VARIABLE
from anomalib_inp.training import feature_cache
from anomalib_inp.training.feature_cache import CachedFeatures
from anomalib_inp.training.training_data import DerivedDataset

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample_data(tmp_path_factory.mktemp("data") / "sample", categories=("brick",))


@pytest.fixture
def datamodule(data: Path) -> Make:
    def make(root: Path = data, **kwargs: Any) -> MVTecAD:
        defaults = {"train_batch_size": 8, "num_workers": 0, "val_split_mode": "from_train", "val_split_ratio": 0.2}
        return MVTecAD(root, "brick", **{**defaults, "seed": 0, **kwargs})

    return make


@pytest.fixture
def model(tiny_model: Make, tmp_path: Path) -> Make:
    def make(**kwargs: Any) -> InpFormer:
        seed_everything(1, verbose=False)
        return tiny_model(**{"warmup_steps": 2, "feature_cache_dir": str(tmp_path / "cache"), **kwargs})

    return make


class Losses(Callback):
    """Notes the loss of every step, and how often the encoder has run by then."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.encoded = 0

    def on_fit_start(self, trainer: Any, pl_module: InpFormer) -> None:
        pl_module.model.network.encoder.register_forward_hook(self.count)

    def count(self, *_: Any) -> None:
        self.encoded += 1

    def on_train_batch_end(self, trainer: Any, pl_module: InpFormer, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.values.append(outputs["loss"].item())


@pytest.fixture
def train(quiet_engine: Make) -> Make:
    """Trains three epochs and notes the losses."""

    def train(trained: InpFormer, data: MVTecAD, **kwargs: Any) -> Losses:
        losses = Losses()
        run = quiet_engine(**{"max_epochs": 3, "limit_val_batches": 0, "callbacks": [losses], **kwargs})
        run.fit(trained, datamodule=data)
        return losses

    return train


@pytest.mark.parametrize("store", ["memory", "disk"])
def test_the_losses_are_those_without_a_cache(model, datamodule, train, store: str) -> None:
    plain = train(model(), datamodule())
    cached = train(model(feature_cache=store), datamodule())
    assert len(cached.values) == 12
    torch.testing.assert_close(torch.tensor(cached.values), torch.tensor(plain.values), rtol=0, atol=1e-5)
    assert (plain.encoded, cached.encoded) == (12, 0)


def test_bfloat16_is_half_the_size_and_nearly_as_good(model, datamodule, train, tmp_path: Path) -> None:
    full = train(model(feature_cache="disk"), datamodule()).values
    half = train(model(feature_cache="disk", feature_cache_dtype="bfloat16"), datamodule()).values
    small, large = sorted(path.stat().st_size for path in (tmp_path / "cache").glob("*.safetensors"))
    assert large == pytest.approx(2 * small, rel=0.02)
    assert half[0] == pytest.approx(full[0], abs=1e-2)
    assert half != full


def test_a_cache_is_filled_once(model, datamodule, train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(model(feature_cache="disk"), datamodule(), max_epochs=1)
    (path,) = (tmp_path / "cache").glob("*.safetensors")
    written = path.stat().st_mtime_ns

    def refuse(*_: Any) -> None:
        pytest.fail("written again")

    monkeypatch.setattr(feature_cache, "write_features", refuse)
    train(model(feature_cache="disk"), datamodule(), max_epochs=1)
    assert path.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    "change", ["encoder", "layers", "size", "crop", "dtype", "precision", "fewer images", "another image"]
)
def test_whatever_changes_the_features_makes_a_new_cache(
    model, datamodule, train, data: Path, tmp_path: Path, tiny_encoder_file: Path, change: str
) -> None:
    root = tmp_path / "data"
    shutil.copytree(data, root)
    train(model(feature_cache="disk"), datamodule(root), max_epochs=1)
    arguments: dict[str, Any] = {}
    trainer: dict[str, Any] = {}
    images = sorted((root / "brick/train/good").iterdir())
    if change == "encoder":
        other = tmp_path / "other.safetensors"
        save_file({name: 1.01 * weight for name, weight in load_file(tiny_encoder_file).items()}, other)
        arguments["encoder_weights"] = str(other)
    elif change == "precision":
        trainer["precision"] = "bf16-mixed"
    elif change == "fewer images":
        images[0].unlink()
    elif change == "another image":
        stat = images[0].stat()
        shutil.copyfile(images[1], images[0])
        os.utime(images[0], ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as if it had been there all the time
    else:
        arguments = {
            "layers": {"target_layers": [1, 2]},
            "size": {"image_size": 80},
            "crop": {"image_size": 80, "crop_size": 64},
            "dtype": {"feature_cache_dtype": "bfloat16"},
        }[change]
    train(model(feature_cache="disk", **arguments), datamodule(root), max_epochs=1, **trainer)
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 2


def test_what_a_kill_leaves_is_not_used(model, datamodule, train, tmp_path: Path) -> None:
    """A cache that is half written has another name; one that was cut short is written again."""
    expected = train(model(feature_cache="disk"), datamodule()).values
    (path,) = (tmp_path / "cache").glob("*.safetensors")
    path.with_name(f".{path.stem}.partial{path.suffix}").write_bytes(b"half")
    path.write_bytes(path.read_bytes()[:1000])
    assert train(model(feature_cache="disk"), datamodule()).values == expected
    assert sorted(file.suffix for file in path.parent.iterdir()) == [".lock", ".safetensors"]


def test_another_process_that_fills_it_is_waited_for(
    model, datamodule, train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(model(feature_cache="disk"), datamodule(), max_epochs=1)
    (path,) = (tmp_path / "cache").glob("*.safetensors")
    filled, seen = tmp_path / "filled", []
    code = (
        "import pathlib, sys, time, filelock\nwith filelock.FileLock(sys.argv[1]):\n"
        " print('held', flush=True)\n input()\n time.sleep(0.5)\n pathlib.Path(sys.argv[2]).touch()"
    )
    command = [sys.executable, "-c", code, str(path.with_suffix(".lock")), str(filled)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:

        def listen(text: str) -> None:
            seen.append(("waiting for it" in text, filled.exists()))
            other.stdin.write("\n")  # only now does the other process go on
            other.stdin.flush()

        assert other.stdout.readline() == "held\n"
        monkeypatch.setattr(feature_cache, "rank_zero_info", listen)
        train(model(feature_cache="disk"), datamodule(), max_epochs=1)
    assert seen == [(True, False), (False, True)]  # it waits before the other one is ready, and finds the file after


def test_images_come_back_after_training(model, datamodule, train) -> None:
    module = datamodule()
    train(model(feature_cache="memory"), module, max_epochs=1)
    assert not isinstance(module.train_data, DerivedDataset)
    assert module.train_data[0].image.shape[0] == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_images_come_back_after_an_interrupted_training(model, datamodule, train, error: type) -> None:
    """Lightning calls no teardown then; the next model would train on the features of this one."""

    class Interrupt(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            assert isinstance(data.train_data, DerivedDataset)
            raise error

    data = datamodule()
    with pytest.raises((error, SystemExit)):
        train(model(feature_cache="memory"), data, callbacks=[Interrupt()])
    assert not isinstance(data.train_data, DerivedDataset)


def test_a_disk_that_fills_up_is_named_and_a_broken_image_is_not_taken_for_one(
    model, datamodule, train, data: Path, tmp_path: Path
) -> None:
    with small_disk(5000), pytest.raises(DataError, match=r"cannot be written: File too large.*feature_cache_dir"):
        train(model(feature_cache="disk"), datamodule())

    copy = shutil.copytree(data, tmp_path / "copy")
    broken = sorted((copy / "brick/train/good").iterdir())[7]
    broken.write_bytes(broken.read_bytes()[:2000])
    with pytest.raises(DataError, match=f"cannot be decoded: {broken}"):
        train(model(feature_cache="disk"), datamodule(copy))


def test_a_folder_that_takes_no_files_is_named_before_anything_is_encoded(
    model, datamodule, train, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        DataError, match=rf"{tmp_path}/file/features takes no feature cache: Not a directory.*{VARIABLE}"
    ):
        train(model(feature_cache="disk", feature_cache_dir=str(tmp_path / "file/features")), datamodule())


def test_a_folder_may_begin_with_a_tilde(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert feature_cache.FeatureCache("disk", folder="~/features").folder == tmp_path / "features"
    monkeypatch.setenv(VARIABLE, "~/caches")
    assert feature_cache.FeatureCache("disk").folder == tmp_path / "caches/features"


def test_images_that_change_every_epoch_are_refused(model, datamodule, train) -> None:
    augmented = datamodule(train_augmentations=RandomHorizontalFlip())
    with pytest.raises(DataError, match=r"(?s)RandomHorizontalFlip.*other images in every epoch.*feature_cache off"):
        train(model(feature_cache="memory"), augmented)
    train(model(feature_cache="memory"), datamodule(train_augmentations=Resize((90, 90))), max_epochs=1)


def test_a_disk_or_memory_that_is_too_small_is_named(
    model, datamodule, train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage, free = shutil.disk_usage(tmp_path), {tmp_path / "cache": 1000}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free.get(path, usage.free)))
    with pytest.raises(DataError, match=r"32 images take 0\.3 MB in float32, but .* has 0\.0 MB left.*bfloat16"):
        train(model(feature_cache="disk"), datamodule())
    monkeypatch.setattr(feature_cache, "_memory", lambda: 1000)
    with pytest.raises(DataError, match=r"more than the memory of this machine.*feature_cache disk"):
        train(model(feature_cache="memory"), datamodule())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"feature_cache": "tape"}, "feature_cache must be one of off, memory, disk, got 'tape'"),
        ({"feature_cache": "disk", "feature_cache_dtype": "int8"}, "feature_cache_dtype must be one of"),
    ],
)
def test_unknown_values_are_refused(model, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(**arguments)


def test_what_cannot_be_cached_is_refused(model, datamodule, train) -> None:
    module = datamodule()
    module.external_collate_fn = lambda items: items
    with pytest.raises(DataError, match="no collate function of its own"):
        train(model(feature_cache="memory"), module)
    with pytest.raises(DataError, match="InpPreProcessor, got NoneType"):
        train(model(feature_cache="memory", pre_processor=False), datamodule())


def cached(images: list[Any], source: torch.Tensor | Path) -> DerivedDataset:
    return DerivedDataset(images, CachedFeatures(source, (2, 3)))  # type: ignore[arg-type]


# In a process of its own: one that has run OpenVINO may not survive workers.
IN_A_WORKER = """
import sys
import torch
from pathlib import Path
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from anomalib_inp.training.feature_cache import CachedFeatures
from anomalib_inp.training.training_data import DerivedDataset

dataset = DerivedDataset([None] * 7, CachedFeatures(Path(sys.argv[1]), (2, 3)))
loader = DataLoader(dataset, batch_size=3, num_workers=1, collate_fn=DerivedDataset.collate_fn)
read = torch.cat([torch.stack(batch.source.groups, dim=1) for batch in loader])
assert torch.equal(read, load_file(sys.argv[2])["features"])
"""


def test_batches_are_read_in_any_order_and_by_any_worker(tmp_path: Path) -> None:
    features = torch.randn(7, 2, 6, 4)
    path = tmp_path / "features.safetensors"
    feature_cache.write_features(path, [features], features.shape, "float32", {})
    for source in (features, path):
        dataset = cached([None] * 7, source)
        indices = [4, 0, 4]
        for part in (dataset, pickle.loads(pickle.dumps(dataset))):  # noqa: S301
            batch = part.__getitems__(indices).source
            assert batch.grid == (2, 3)
            for group in range(2):
                assert torch.equal(batch.groups[group], features[indices, group])
    save_file({"features": features}, tmp_path / "expected.safetensors")
    subprocess.run([sys.executable, "-c", IN_A_WORKER, str(path), str(tmp_path / "expected.safetensors")], check=True)


def test_a_mapped_file_is_not_sent_to_workers(tmp_path: Path) -> None:
    features = torch.randn(1000, 2, 6, 4)
    path = tmp_path / "features.safetensors"
    feature_cache.write_features(path, [features], features.shape, "float32", {})
    dataset = cached([None], path)
    assert dataset[0].source.groups[0].shape == (1, 6, 4)
    assert len(pickle.dumps(dataset)) < 1000


def test_configuration_files_may_say_off(tiny_encoder_file: Path, tmp_path: Path) -> None:
    """In YAML 1.1 a bare ``off`` means false."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(InpFormer, "model")
    config = tmp_path / "config.yaml"
    for value in ("off", "disk"):
        config.write_text(
            "model:\n  class_path: anomalib_inp.InpFormer\n  init_args:\n    encoder: test_vit\n"
            f"    encoder_weights: {tiny_encoder_file}\n    feature_cache: {value}\n"
        )
        parsed = parser.parse_args(["--config", str(config)])
        built = parser.instantiate_classes(parsed).model
        assert (built.feature_cache is None) == (value == "off")
    arguments = ["--model.feature_cache", "off", "--model.encoder", "test_vit"]
    arguments += ["--model.encoder_weights", str(tiny_encoder_file)]
    parsed = parser.parse_args(["--model", "anomalib_inp.InpFormer", *arguments])
    assert parser.instantiate_classes(parsed).model.feature_cache is None
