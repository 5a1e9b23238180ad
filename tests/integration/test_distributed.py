# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Training in two processes, each with half of every batch, follows training in one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from anomalib_inp.data.sample import write_sample_data

SCRIPT = """
import json, sys
from pathlib import Path

import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from lightning import Callback, seed_everything
from torch import distributed as dist
from torch.utils.data import DataLoader, DistributedSampler

from anomalib_inp import InpFormer, InpFormerPlusPlus

data, encoder, folder, devices, name = sys.argv[1:4] + [int(sys.argv[4]), sys.argv[5]]
torch.set_num_threads(1)


class InOrder(MVTecAD):
    def train_dataloader(self):
        # Lightning's own sampler would shuffle, and otherwise than one process does.
        sampler = DistributedSampler(self.train_data, shuffle=False) if dist.is_initialized() else None
        collate = self.train_data.collate_fn
        return DataLoader(self.train_data, self.train_batch_size, sampler=sampler, collate_fn=collate)


class Losses(Callback):
    values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.values.append(outputs["loss"].item())

    def on_train_end(self, trainer, pl_module):
        Path(folder, f"losses{trainer.world_size}_{trainer.global_rank}.json").write_text(json.dumps(self.values))


seed_everything(0)
kind, arguments = {
    "InpFormer": (InpFormer, {}),
    "++ losses": (InpFormerPlusPlus, {"head": False}),
    "++ with head": (InpFormerPlusPlus, {}),
}[name]
cache = {"feature_cache": "disk", "feature_cache_dir": folder}
model = kind("test_vit", encoder, image_size=64, map_size=64, warmup_steps=5, **cache, **arguments)
quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
Engine(
    default_root_dir=folder, max_epochs=4, accelerator="cpu", devices=devices,
    strategy="ddp" if devices > 1 else "auto", callbacks=[Losses()], **quiet,
).fit(model, datamodule=InOrder(data, "brick", 8 // devices, num_workers=0, val_split_mode="none"))
"""


def train(data: Path, encoder: Path, folder: Path, devices: int, name: str) -> list[list[float]]:
    """Train in so many processes; returns the losses of each."""
    script = folder / "train.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(data), str(encoder), str(folder), str(devices), name]
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1"}
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    losses = [json.loads(path.read_text()) for path in sorted(folder.glob(f"losses{devices}_*.json"))]
    assert len(losses) == devices
    assert all(len(values) == 20 for values in losses)
    return losses


@pytest.mark.parametrize("name", ["InpFormer", "++ losses"])
def test_two_processes_follow_one(tiny_encoder_file: Path, tmp_path: Path, name: str) -> None:
    data = write_sample_data(tmp_path / "sample", categories=("brick",))
    (alone,) = train(data, tiny_encoder_file, tmp_path, 1, name)
    halves = train(data, tiny_encoder_file, tmp_path, 2, name)
    together = [(first + second) / 2 for first, second in zip(*halves, strict=True)]
    assert together == pytest.approx(alone, rel=1e-4)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1  # all three processes shared one cache


def test_the_head_trains_in_two_processes(tiny_encoder_file: Path, tmp_path: Path) -> None:
    # Each process draws pseudo-anomalies of its own, so the losses are not those of one process.
    data = write_sample_data(tmp_path / "sample", categories=("brick",))
    first, second = train(data, tiny_encoder_file, tmp_path, 2, "++ with head")
    assert first != second
    assert sum(first[-5:]) < sum(first[:5])
