# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""StableAdamW: AdamW whose step shrinks when the gradient is larger than its running estimate expects."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class StableAdamW(Optimizer):
    """AdamW with AMSGrad and update clipping, as the reference trains (arXiv 2304.13013, algorithm 2).

    The step of a tensor is divided by ``max(1, RMS(gradient / denominator))``.

    Args:
        params: Parameters to train, or groups of them with settings of their own.
        lr: Learning rate.
        betas: Decay of the running means of the gradient and of its square.
        eps: Added to the denominator.
        weight_decay: Decoupled weight decay, multiplied by the learning rate.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-10,
        weight_decay: float = 1e-4,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; returns what ``closure`` returns."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        for group in self.param_groups:
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in trained:
                state = self.state[parameter]
                if not state:
                    state["step"] = 0
                    for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
                        state[name] = torch.zeros_like(parameter)
                state["step"] += 1
            # Those that were first trained at the same time have the same corrections: as a rule, all of them.
            for step in {self.state[parameter]["step"] for parameter in trained}:
                same = [parameter for parameter in trained if self.state[parameter]["step"] == step]
                # A GPU waits longer for an operation to begin than it works on it; elsewhere, one tensor after the
                # other takes less memory.
                for parameters in [same] if same[0].is_cuda else [[parameter] for parameter in same]:
                    self._update(parameters, step, group)
        return result

    def _update(self, parameters: list[Tensor], step: int, group: dict[str, Any]) -> None:
        """Update tensors that have taken the same number of steps, each operation for all of them."""
        gradients = [parameter.grad for parameter in parameters]
        means, squares, largest = (
            [self.state[parameter][name] for parameter in parameters]
            for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
        )
        beta1, beta2 = group["betas"]
        torch._foreach_mul_(means, beta1)
        torch._foreach_add_(means, gradients, alpha=1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - beta2)
        torch._foreach_maximum_(largest, squares)

        correction1, correction2 = 1 - beta1**step, 1 - beta2**step
        denominators = torch._foreach_sqrt(largest)
        torch._foreach_div_(denominators, correction2**0.5)
        torch._foreach_add_(denominators, group["eps"])
        surprises = torch._foreach_norm(torch._foreach_div(gradients, denominators))
        torch._foreach_div_(surprises, [gradient.numel() ** 0.5 for gradient in gradients])
        torch._foreach_clamp_min_(surprises, 1.0)
        steps = torch._foreach_div(means, denominators)
        torch._foreach_div_(steps, surprises)
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_sub_(parameters, steps, alpha=group["lr"] / correction1)
