# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Training steps alone, on batches that are on the GPU already: forward, backward, clipping and optimiser.

What a step takes when nothing has to be read. What reading adds is in ``loading.py``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from anomalib.models.image.dinomaly.components import StableAdamW
from gpu.harness import (
    Check,
    NotHereError,
    autocast,
    float32,
    milliseconds,
    need_cuda,
    peak_megabytes,
    summary,
    wait,
)
from gpu.models import kept, size_for
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from anomalib_inp import InpFormer
from anomalib_inp.outputs import PatchFeatures

BATCH = 16
PRECISIONS = {"float32": (False, False), "TF32": (True, False), "bfloat16": (False, True)}
"""By name: whether TF32 is allowed for matrix products, and whether autocast computes in bfloat16. Convolutions may use
TF32 in all of them, as torch has it."""


def section(check: Check) -> None:
    """Time all three trainings in all precisions, not compiled."""
    batch = check.small(BATCH, 2)
    for label, (encoder, size) in check.encoders.items():
        check.part(f"training/{label}/work", partial(work, check, encoder, size), needs=10)
        for kind in ("anomalib", "not cached", "cached"):
            for precision in PRECISIONS:
                run = partial(train, check, kind, encoder, size, batch, precision)
                check.part(f"training/{label}/{kind}, {precision}", run, needs=6)
        for kind in ("not cached", "cached"):
            run = partial(anatomy, check, kind, encoder, size, batch)
            check.part(f"training/{label}/{kind}, bfloat16, where the time goes", run, needs=6)


def compiled(check: Check) -> None:
    """Time compiled trainings in bfloat16; the larger encoder first, since each compilation takes up to a minute."""
    batch = check.small(BATCH, 2)
    for label, (encoder, size) in reversed(check.encoders.items()):
        for kind in ("cached", "not cached"):
            run = partial(train, check, kind, encoder, size, batch, "bfloat16", compile=True)
            check.part(f"training/{label}/{kind}, bfloat16, compiled", run, needs=75)


def train(
    check: Check, kind: str, encoder: str, size: int, batch: int, precision: str, **arguments: Any
) -> dict[str, Any]:
    """Time steps of a training."""
    if arguments:
        need_cuda(check.device)  # the compiled training on a CPU is tested elsewhere
    tf32, mixed = PRECISIONS[precision]
    step = stepper(check, kind, encoder, size, batch, mixed, **arguments)
    with float32(tf32, True):
        if kind == "anomalib":
            _try(step)
        if arguments:
            torch.compiler.reset()  # else it would compile for sizes in general, and give up after some
            first = milliseconds(step, check.device, calls=1, rounds=1, warm_up=0)
        times = milliseconds(step, check.device, calls=check.small(8, 1), rounds=check.small(5, 1))
    found: dict[str, Any] = {**summary(times), "batch": batch, "peak_mb": peak_megabytes(check.device)}
    found["images_per_second"] = 1000 * batch / found["ms"]
    return found | ({"compiling": first[0] / 1000} if arguments else {})


def _try(step: Callable[[], None]) -> None:
    """Take a step of anomalib's training, whose loss does not survive autocast in anomalib 2.7.0."""
    try:
        step()
    except RuntimeError as error:
        if "has changed the type of value" not in str(error):
            raise
        msg = f"anomalib's InpFormer does not train in mixed precision: {error}"
        raise NotHereError(msg) from error


@dataclass
class Step:
    """One training step, on the same batch every time."""

    loss: Callable[[], Tensor]
    clip: Callable[[], object]
    optimizer: Optimizer
    device: str
    mixed: bool

    def __call__(self) -> None:
        """Take the step."""
        value = self.forward()
        self.optimizer.zero_grad()
        value.backward()
        self.clip()
        self.optimizer.step()

    def forward(self) -> Tensor:
        """Compute the loss."""
        with autocast(self.device, self.mixed):
            return self.loss()


def stepper(check: Check, kind: str, encoder: str, size: int, batch: int, mixed: bool, **arguments: Any) -> Step:
    """Make a training step of a model."""
    size = size_for(kind, encoder, size)
    name = "anomalib" if kind == "anomalib" else "ours"
    model: Any = kept(name, encoder, size, check.folder, check.device, **arguments).train()
    images = torch.randn(batch, 3, size, size, device=check.device)
    # The learning rate is 0 in both, ours by the first step of its warm-up, so that many steps on one batch do no harm.
    if kind == "anomalib":
        parameters = list(model.trainable_modules.parameters())
        settings: dict[str, Any] = {"lr": 0.0, "betas": (0.9, 0.999), "weight_decay": 1e-4, "eps": 1e-10}
        optimizer = StableAdamW([{"params": parameters}], amsgrad=True, **settings)
        clip = partial(torch.nn.utils.clip_grad_norm_, parameters, 0.1)
        return Step(partial(model.model, images), clip, optimizer, check.device, mixed)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    configured: Any = model.recipe.configure(trained, 1000)
    source: Tensor | PatchFeatures = images
    if kind == "cached":
        with torch.no_grad(), autocast(check.device, mixed):
            features = model.model.network.encoder(images)
        source = PatchFeatures([group.bfloat16() if mixed else group for group in features.groups], features.grid)
    clip = partial(model.configure_gradient_clipping, configured["optimizer"])
    return Step(partial(_our_loss, model, source), clip, configured["optimizer"], check.device, mixed)


def anatomy(check: Check, kind: str, encoder: str, size: int, batch: int) -> dict[str, Any]:
    """Time the parts of a step in bfloat16, each waited for; and how long the GPU is at work in a step, and with what.

    Where that is much less than the step takes, the GPU waits for the program that tells it what to do.
    """
    step = stepper(check, kind, encoder, size, batch, mixed=True)
    calls = check.small(10, 1)
    forward = milliseconds(step.forward, check.device, calls)

    def back() -> None:
        step.optimizer.zero_grad()
        step.forward().backward()

    both = milliseconds(back, check.device, calls)
    clip, optimizer = (milliseconds(run, check.device, calls) for run in (step.clip, step.optimizer.step))
    found: dict[str, Any] = {"forward": min(forward), "backward": min(both) - min(forward)}
    found |= {"clip": min(clip), "optimizer": min(optimizer)}
    if check.device == "cuda":
        # What an optimiser of torch takes that does all in one go.
        parameters = [parameter for group in step.optimizer.param_groups for parameter in group["params"]]
        fused = torch.optim.AdamW(parameters, lr=0.0, fused=True)
        found["fused AdamW"] = min(milliseconds(fused.step, check.device, calls))
        step()
        wait(check.device)
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            step()
            wait(check.device)
        kernels = [event for event in profiler.key_averages() if event.self_device_time_total > 0]
        kernels.sort(key=lambda event: -event.self_device_time_total)
        found["kernels"] = sum(event.count for event in kernels)
        found["busy"] = sum(event.self_device_time_total for event in kernels) / 1000
        found["most"] = {event.key[:80]: event.self_device_time_total / 1000 for event in kernels[:8]}
    return found


def _our_loss(model: InpFormer, source: Tensor | PatchFeatures) -> Tensor:
    return model.reconstruction_terms(source)["loss"]


def work(check: Check, encoder: str, size: int) -> dict[str, float]:
    """Count the floating-point operations of a step, in TFLOP an image."""
    counted = {}
    for kind in ("anomalib", "not cached", "cached"):
        step = stepper(check, kind, encoder, size, 1, mixed=False)
        # Attention written out, so that its two matrix products are counted like all others.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            step()
        wait(check.device)
        counted[kind] = counter.get_total_flops() / 1e12
    return counted
