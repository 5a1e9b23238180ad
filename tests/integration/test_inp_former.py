# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""INP-Former inside anomalib."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from lightning import Callback, LightningModule, Trainer, seed_everything
from model_tester import ModelTester, engine

from anomalib_inp import InpFormer


class TestInpFormer(ModelTester):
    model_class = InpFormer
    weights = {"mining": 1.0, "coherence": 0.2}
    published_rate = 1e-3

    @pytest.mark.skipif(not (shutil.which("c++") or shutil.which("cl")), reason="torch.compile needs a C++ compiler")
    def test_a_compiled_training_is_the_same_training(self, model, datamodule, tmp_path: Path) -> None:
        def losses(**kwargs: Any) -> list[float]:
            values = []

            class Record(Callback):
                def on_train_batch_end(
                    self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
                ) -> None:
                    values.append(outputs["loss"].item())

            seed_everything(0, verbose=False)
            trained = model(warmup_steps=1, **kwargs)
            engine(tmp_path, callbacks=[Record()], limit_val_batches=0).fit(trained, datamodule=datamodule())
            assert trained.to_torch(tmp_path).exists()
            return values

        expected = losses()
        assert losses(compile=True) == pytest.approx(expected, rel=1e-4)
        assert losses(compile=True, feature_cache="memory") == pytest.approx(expected, rel=1e-4)
