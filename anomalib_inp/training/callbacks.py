# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What happens around the training steps, whatever the model: precision, length, order of the data."""

import sys
import time
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer, seed_everything
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from anomalib_inp.training.prototype_use import PrototypeUse

DEFAULT_EPOCHS = 200
LIGHTNING_FALLBACK_EPOCHS = 1000


class RefuseHalfWeights(Callback):
    """Refuses weights in 16 bits: small steps of the optimiser are lost in them, and scores and thresholds rounded."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look at the precision of the trainer.

        Raises:
            ValueError: It keeps weights in 16 bits.
        """
        del pl_module, stage
        if trainer.precision in {"16-true", "bf16-true"}:
            instead = trainer.precision.replace("true", "mixed")
            msg = (
                f"The precision {trainer.precision} rounds weights, scores and thresholds to 16 bits. Use {instead}, "
                f"which keeps them in 32: --trainer.precision {instead}"
            )
            raise ValueError(msg)


class DefaultEpochs(Callback):
    """Replaces Lightning's fallback of 1000 epochs, used where the user gives no length, by the paper's 200.

    A model's ``trainer_arguments`` cannot say so: they would beat a length that the user gives. A model with nothing to
    train takes one step, whatever length is given: more would change nothing.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Shorten the training before anything counts its steps."""
        if stage != "fit":
            return
        if not is_trained(pl_module):
            trainer.fit_loop.max_epochs, trainer.fit_loop.epoch_loop.max_steps = 1, -1
            trainer.limit_train_batches = min(1, trainer.limit_train_batches)
            rank_zero_info("There is nothing to train: one batch of training images passes, then come the thresholds.")
        elif trainer.max_epochs == LIGHTNING_FALLBACK_EPOCHS and trainer.max_steps == -1:
            trainer.fit_loop.max_epochs = DEFAULT_EPOCHS
            rank_zero_info(
                f"Training for the paper's {DEFAULT_EPOCHS} epochs, since no length was given "
                f"(Lightning cannot tell that from {LIGHTNING_FALLBACK_EPOCHS} epochs; for so many give max_steps)."
            )


class EpochSeed(Callback):
    """Seeds every epoch by its number, so that a resumed training sees the data in the order of one never stopped."""

    def __init__(self) -> None:
        self.seed: int | None = None
        self.epoch = 0
        self.rank = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take over the seed of the program for the first epoch."""
        del pl_module
        if stage == "fit":
            self.rank = trainer.global_rank
            self.seed = torch.initial_seed()
            self._seed_epoch(0)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seed an epoch; the first one of a run has been seeded before Lightning made its iterator."""
        del pl_module
        if trainer.current_epoch != self.epoch:
            self._seed_epoch(trainer.current_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Keep the seed of the training and its last epoch in the checkpoint."""
        return {"seed": self.seed, "epoch": self.epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the epoch after the checkpoint's: this comes before Lightning asks for the first batch."""
        self.seed = state_dict["seed"]
        self._seed_epoch(state_dict["epoch"] + 1)

    def _seed_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        entropy = np.random.SeedSequence((self.seed or 0, epoch, self.rank))
        seed_everything(int(entropy.generate_state(1)[0]), verbose=False)


class ResumableMaxSteps(Callback):
    """Lets ``max_steps`` resume and end as ``max_epochs`` does.

    Lightning 2.6 takes the checkpoint of a finished epoch for one in the middle of it, and ends without the validation
    that thresholds are chosen in.
    """

    def __init__(self) -> None:
        self.max_steps = -1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the steps away while Lightning restores its loops."""
        del pl_module
        self.max_steps = trainer.max_steps
        trainer.fit_loop.epoch_loop.max_steps = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give them back."""
        del pl_module
        trainer.fit_loop.epoch_loop.max_steps = self.max_steps

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Stop after the last step: a training that is stopped is validated first."""
        del pl_module
        if trainer.global_step == self.max_steps:
            trainer.should_stop = True


class FinalValidation(Callback):
    """Validates after the last step, however rarely it is done: thresholds belong to the weights of a moment.

    A training that is stopped by a callback at the end of an epoch has been validated by then, or is not.
    """

    def __init__(self) -> None:
        self.interval: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look up how many epochs pass between two validations."""
        del pl_module
        self.interval = trainer.check_val_every_n_epoch

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Stop after the last batch: a training that is stopped is validated first, if it is the epoch for it."""
        del pl_module
        if trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs:
            trainer.should_stop = True
        if self.interval is not None:
            trainer.check_val_every_n_epoch = 1 if trainer.should_stop else self.interval

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the number back."""
        del pl_module
        trainer.check_val_every_n_epoch = self.interval

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the number back."""
        del exception
        if trainer.training:
            self.on_train_end(trainer, pl_module)


class EpochLog(Callback):
    """Says how far the training is, one line for an epoch, where no progress bar does."""

    def __init__(self) -> None:
        self.started = 0.0
        self.first = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the clock."""
        del pl_module
        self.started, self.first = time.monotonic(), trainer.current_epoch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say which epoch has ended, its loss and the time left; the validation after it counts for the next."""
        del pl_module
        if trainer.progress_bar_callback is not None and sys.stdout.isatty():
            return
        done, total = trainer.current_epoch + 1, trainer.max_epochs
        each = (time.monotonic() - self.started) / (done - self.first)
        loss = trainer.callback_metrics.get("train_loss_epoch", trainer.callback_metrics.get("train_loss"))
        parts = [f"Epoch {done}" + (f" of {total}" if total and total > 0 else "")]
        parts += [] if loss is None else [f"loss {float(loss):.4f}"]
        parts += [f"{timedelta(seconds=round((total - done) * each))} left"] if total and total > done else []
        rank_zero_info(", ".join(parts))


class NonFiniteLossError(RuntimeError):
    """The loss is not a number; going on would destroy what was learnt."""


class FiniteLoss(Callback):
    """Stops a training whose loss is no longer a number, before its gradients reach the weights."""

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        """Check the loss of this step.

        Raises:
            NonFiniteLossError: The loss is NaN or infinite.
        """
        if torch.isfinite(loss):
            return
        learning_rate = trainer.optimizers[0].param_groups[0]["lr"]
        weights = [name for name, weight in pl_module.named_parameters() if not torch.isfinite(weight).all()]
        cause = (
            f"weights are already not finite ({weights[0]}): the learning rate {learning_rate:.1e} is too high or the "
            "checkpoint is damaged"
            if weights
            else f"the input images or the precision ({trainer.precision}) are the likely cause: look for images with "
            f"NaN or a constant image, or train with --trainer.precision 32-true; or the learning rate "
            f"({learning_rate:.1e}) is too high"
        )
        msg = (
            f"The loss is {loss.item()} at step {trainer.global_step} (epoch {trainer.current_epoch}); {cause}. "
            "Training stops; the last checkpoint is from before this step."
        )
        raise NonFiniteLossError(msg)


class ForgetData(Callback):
    """Lets go of the data module when a run ends: Lightning would leave it for a run with loaders of its own."""

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget it."""
        del pl_module, stage
        trainer.datamodule = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Forget it; an interrupted run ends without a teardown."""
        del pl_module, exception
        trainer.datamodule = None


class ReleasePixels(Callback):
    """Lets go of the pixels of images that were evaluated and lie in files: the next are read before it would happen.

    It comes last; whatever else is done with a batch has been done.
    """

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        """Keep one pixel of each image."""
        del trainer, pl_module, outputs
        if batch.image_path:
            batch.image = batch.image[..., :1, :1].clone()

    on_test_batch_end = on_validation_batch_end


class RefuseEmptyTraining(Callback):
    """Calls no model trained that was shown no batch: Lightning goes on to the test as if it had been."""

    def __init__(self) -> None:
        self.before = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the steps of earlier trainings by the same trainer; a checkpoint is not restored yet."""
        del pl_module
        self.before = trainer.global_step

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that there was a step.

        Raises:
            RuntimeError: There was none.
        """
        trained = trainer.global_step - self.before
        steps = trained if is_trained(pl_module) else trainer.fit_loop.epoch_loop.total_batch_idx + 1
        if steps == 0 and self.before:
            msg = (
                f"Nothing was trained: this Engine has trained before, and its {trainer.max_epochs} epochs are over. "
                "Make a new Engine for another training."
            )
            raise RuntimeError(msg)
        if steps == 0 and not trainer.should_stop:
            msg = (
                f"Nothing was trained: there was no step. The trainer's length is max_epochs={trainer.max_epochs}, "
                f"max_steps={trainer.max_steps}, limit_train_batches={trainer.limit_train_batches}; each of "
                f"{trainer.world_size} processes had {trainer.num_training_batches} batches."
            )
            raise RuntimeError(msg)


def is_trained(model: nn.Module) -> bool:
    """Tell whether anything of a model is trained."""
    return any(parameter.requires_grad for parameter in model.parameters())


def training_callbacks() -> list[Callback]:
    """All that come after the checks of the data."""
    return [
        DefaultEpochs(),
        EpochSeed(),
        ResumableMaxSteps(),
        FinalValidation(),
        FiniteLoss(),
        EpochLog(),
        PrototypeUse(),
        RefuseEmptyTraining(),
        ForgetData(),
    ]
