# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""INP-Former inside anomalib."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from model_tester import ModelTester

from anomalib_inp import InpFormer


class TestInpFormer(ModelTester):
    model_class = InpFormer
    weights = {"mining": 1.0, "coherence": 0.2}
    published_rate = 1e-3

    @pytest.mark.skipif(not (shutil.which("c++") or shutil.which("cl")), reason="torch.compile needs a C++ compiler")
    def test_a_compiled_training_is_the_same_training(self, model, datamodule, quiet_engine, tmp_path: Path) -> None:
        frames = torch._dynamo.utils.counters["frames"]

        def losses(**kwargs: Any) -> list[float]:
            values = []

            class Record(Callback):
                def on_train_batch_end(
                    self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
                ) -> None:
                    values.append(outputs["loss"].item())

            seed_everything(0, verbose=False)
            trained = model(warmup_steps=1, **kwargs)
            quiet_engine(callbacks=[Record()], limit_val_batches=0).fit(trained, datamodule=datamodule())
            assert trained.to_torch(tmp_path).exists()
            return values

        expected, before = losses(), frames["ok"]
        assert len(expected) == 4
        for arguments in ({}, {"feature_cache": "memory"}):
            assert losses(compile=True, **arguments) == pytest.approx(expected, rel=1e-4)
            assert frames["ok"] > before  # PyTorch has compiled something
            before = frames["ok"]
