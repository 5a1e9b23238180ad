# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Two processes with half a batch each must mine like one process with all of it."""

import subprocess
import sys
from pathlib import Path

import torch

from anomalib_inp.losses.mining import soft_mining_loss

SCRIPT = """
import sys, torch, torch.distributed as dist
from anomalib_inp.losses.mining import soft_mining_loss

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
rebuilt, target = torch.load(f"{folder}/batch.pt", weights_only=True)
half = rebuilt[2 * rank : 2 * rank + 2].clone().requires_grad_()
loss = soft_mining_loss([half], [target[2 * rank : 2 * rank + 2]])
loss.backward()
torch.save((loss.detach(), half.grad), f"{folder}/result{rank}.pt")
dist.destroy_process_group()
"""


def test_mining_means_run_over_the_global_batch(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    rebuilt, target = (torch.randn(4, 5, 3, generator=generator) for _ in range(2))
    rebuilt[:2] += 3 * target[:2]  # the halves are not equally hard, so their own means would differ
    torch.save((rebuilt, target), tmp_path / "batch.pt")
    command = [sys.executable, "-c", SCRIPT]
    processes = [subprocess.Popen([*command, str(rank), str(tmp_path)]) for rank in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    results = [torch.load(tmp_path / f"result{rank}.pt", weights_only=True) for rank in range(2)]

    whole = rebuilt.clone().requires_grad_()
    loss = soft_mining_loss([whole], [target])
    loss.backward()
    # data-parallel training averages over the processes
    torch.testing.assert_close((results[0][0] + results[1][0]) / 2, loss.detach())
    torch.testing.assert_close(torch.cat([gradient for _, gradient in results]) / 2, whole.grad)
