# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""A folder that fills up: every image once, whatever comes between."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from server import free_port

from anomalib_inp import InpFormer
from anomalib_inp.results.records import FILE, read_records
from anomalib_inp.results.score_table import read_all_rows
from anomalib_inp.runtime.model import ExportedModel
from anomalib_inp.runtime.predict import predict
from anomalib_inp.watching.command import watch
from anomalib_inp.watching.receivers import MqttReceiver, webhook
from anomalib_inp.watching.watcher import check_places

Make = Callable[..., Any]
QUICK = ("--settle", "0.2", "--patience", "1", "--pictures", "false")
MOSQUITTO = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin")


@pytest.fixture(scope="module")
def model(tiny_model: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = tiny_model(InpFormer, spread=8, target_layers=[1, 2], map_size=32, image_size=64, evaluator=False).eval()
    with torch.no_grad():
        found = model.model(model.pre_processor.transform(torch.rand(1, 3, 64, 64)))
    model.post_processor.set_thresholds(float(found.pred_score), float(found.anomaly_map.quantile(0.9)))
    return model.to_openvino(tmp_path_factory.mktemp("export"))


def photograph(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8))


def put(path: Path, seed: int) -> Path:
    """Put an image where it is complete at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    photograph(seed).save(path)
    return path


def names(output: Path) -> list[str]:
    file = output / FILE
    return [record["path"] for record in read_records(file)] if file.is_file() else []


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@contextmanager
def watching(model: Path, folder: Path, output: Path, *arguments: str) -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-m", "anomalib_inp.cli", "watch", str(folder), str(model), "--output", str(output)]
    process = subprocess.Popen(
        [*command, *QUICK, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("Watching"), line + process.stdout.read()
        process.said = []
        reading = threading.Thread(target=lambda: process.said.append(process.stdout.read()), daemon=True)
        reading.start()
        yield process
    finally:
        process.kill()
        process.wait()


def stop(process: subprocess.Popen) -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(60)


def test_images_are_predicted_as_they_come(model: Path, tmp_path: Path) -> None:
    """Those that are there, those that come, in folders that are made meanwhile; hidden ones and texts are left."""
    folder, output = tmp_path / "in", tmp_path / "out"
    put(folder / "there.png", 0)
    with watching(model, folder, output, "--pictures", "true") as process:
        wait_for(lambda: names(output) == ["there.png"])
        put(folder / "later.jpg", 1)
        put(folder / "new/deep/below.png", 2)
        put(folder / ".hidden/no.png", 3)
        put(folder / ".no.png", 3)
        (folder / "no.txt").write_text("no")
        wait_for(lambda: len(names(output)) == 3)
        assert stop(process) == 0
    assert sorted(names(output)) == ["later.jpg", "new/deep/below.png", "there.png"]
    exported = ExportedModel(model)
    for record in read_records(output / FILE):
        assert record["raw_score"] == pytest.approx(predict(exported, folder / record["path"]).raw_score, rel=1e-6)
        for kind in ("pictures", "heat_maps"):
            assert (output / kind / f"{record['path']}.png").is_file()
    assert sorted(row.image for row in read_all_rows(output)) == sorted(names(output))


def test_what_is_no_file_is_left(model: Path, tmp_path: Path) -> None:
    """A folder and a pipe that are called as images are, and a name that is no text."""
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    with watching(model, folder, output, "--move", str(tmp_path / "moved")) as process:
        time.sleep(0.5)
        (folder / "folder.png").mkdir()
        os.mkfifo(folder / "pipe.png")
        put(folder / "folder.png/inside.png", 0)
        photograph(1).save(tmp_path / "next.png")
        os.rename(os.fsencode(tmp_path / "next.png"), os.path.join(os.fsencode(folder), b"no\xfftext.png"))  # noqa: PTH104, PTH118
        wait_for(lambda: len(names(output)) == 2)
        time.sleep(1)
        assert stop(process) == 0
    assert sorted(names(output)) == ["folder.png/inside.png", "no\udcfftext.png"]
    assert (folder / "folder.png").is_dir()


def test_half_written_images_wait_and_broken_ones_are_said(model: Path, tmp_path: Path) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    content = put(tmp_path / "whole.png", 0).read_bytes()
    folder.mkdir()
    with watching(model, folder, output, "--patience", "2") as process:
        with (folder / "slow.png").open("wb") as file:
            for start in range(0, len(content), len(content) // 5 + 1):  # its last bytes alone are not missed
                file.write(content[start : start + len(content) // 5 + 1])
                file.flush()
                time.sleep(0.45)
                assert names(output) == [] or start > len(content) * 0.7
        wait_for(lambda: names(output) == ["slow.png"])
        (folder / "broken.png").write_bytes(content[:500])
        time.sleep(1)
        assert names(output) == ["slow.png"]
        wait_for(lambda: len(names(output)) == 2)
        slow, broken = read_records(output / FILE)
        assert slow["error"] is None
        assert "broken.png is no readable image" in broken["error"]
        (folder / "broken.png").write_bytes(content)  # mended: another image
        put(folder / "slow.png", 7)  # written over: another image
        wait_for(lambda: len(names(output)) == 4)
        assert stop(process) == 0
    last = {record["path"]: record for record in read_records(output / FILE)}
    assert last["broken.png"]["error"] is None
    assert last["slow.png"]["raw_score"] != slow["raw_score"]
    with watching(model, folder, output) as process:
        time.sleep(1.5)
        assert stop(process) == 0
    assert len(names(output)) == 4


@pytest.mark.parametrize("move", [False, True])
def test_kills_lose_and_repeat_nothing(model: Path, tmp_path: Path, move: bool) -> None:
    """Images come while the command is killed at random; ``KILLS`` and ``FILES`` in the environment ask for more."""
    kills, count = int(os.environ.get("KILLS", "4")), int(os.environ.get("FILES", "120"))
    folder, output, moved = tmp_path / "in", tmp_path / "out", tmp_path / "moved"
    folder.mkdir()
    rng, coming = np.random.default_rng(0), threading.Event()

    def come() -> None:
        for index in range(count):
            put(tmp_path / "next.png", index).rename(folder / f"{index:04}.png")
            time.sleep(0.02)
        coming.set()

    threading.Thread(target=come).start()
    arguments = ("--move", str(moved)) if move else ()
    for _ in range(kills):
        with watching(model, folder, output, *arguments) as process:
            time.sleep(rng.uniform(0, 1.2))
            process.kill()
            process.wait()
    with watching(model, folder, output, *arguments) as process:
        wait_for(lambda: coming.is_set() and len(set(names(output))) == count, 120)
        assert stop(process) == 0
    expected = [f"{index:04}.png" for index in range(count)]
    assert sorted(names(output)) == expected
    assert sorted(row.image for row in read_all_rows(output)) == expected
    left = sorted(path.name for path in (moved if move else folder).rglob("*.png"))
    assert left == expected
    if move:
        verdicts = {record["path"]: record["verdict"] for record in read_records(output / FILE)}
        assert {path.name: path.parent.name for path in moved.rglob("*.png")} == verdicts
        assert list(folder.iterdir()) == []


def test_moved_images_replace_none(model: Path, tmp_path: Path) -> None:
    folder, output, moved = tmp_path / "in", tmp_path / "out", tmp_path / "moved"
    folder.mkdir()
    with watching(model, folder, output, "--move", str(moved)) as process:
        for count in (1, 2):
            put(tmp_path / "next.png", count).rename(folder / "same.png")
            wait_for(lambda count=count: len(names(output)) == count)
            wait_for(lambda: not (folder / "same.png").exists())
        (folder / "broken.png").write_text("no image")
        wait_for(lambda: (moved / "error/broken.png").is_file())
        assert stop(process) == 0
    assert Counter(path.stem for path in moved.rglob("same*.png")).total() == 2


@contextmanager
def receiving(port: int, received: list[dict], failing: threading.Event) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["content-length"]))
            if failing.is_set():
                self.send_error(503)
                return
            received.append(json.loads(content))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def test_a_webhook_is_told_everything(model: Path, tmp_path: Path) -> None:
    """Though it is away for a while, refuses, and the command is killed meanwhile; in order."""
    folder, output, port = tmp_path / "in", tmp_path / "out", free_port()
    put(folder / "0.png", 0)
    received: list[dict] = []
    failing = threading.Event()
    arguments = ("--webhook", f"http://127.0.0.1:{port}/hook")
    with watching(model, folder, output, *arguments) as process:
        wait_for(lambda: len(names(output)) == 1)
        with receiving(port, received, failing):
            wait_for(lambda: len(received) == 1)
            failing.set()
            put(folder / "1.png", 1)
            wait_for(lambda: len(names(output)) == 2)
            time.sleep(0.5)
        process.kill()
        process.wait()
    failing.clear()
    put(folder / "2.png", 2)
    with receiving(port, received, failing), watching(model, folder, output, *arguments) as process:
        wait_for(lambda: len(received) == 3)
        assert stop(process) == 0
    assert received == list(read_records(output / FILE))


@pytest.mark.skipif(MOSQUITTO is None, reason="there is no mosquitto on this machine (Debian: mosquitto)")
def test_a_broker_is_told_everything(model: Path, tmp_path: Path) -> None:
    """A real broker, which is stopped and started again meanwhile: QoS 1, and a status that it keeps."""
    from paho.mqtt.client import Client
    from paho.mqtt.enums import CallbackAPIVersion

    folder, output, port = tmp_path / "in", tmp_path / "out", free_port()
    folder.mkdir()
    (tmp_path / "mosquitto.conf").write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")

    def start_broker() -> subprocess.Popen:
        return subprocess.Popen([MOSQUITTO, "-c", tmp_path / "mosquitto.conf"], stderr=subprocess.DEVNULL)

    received: list[tuple[str, bytes, int, bool]] = []
    listener = Client(CallbackAPIVersion.VERSION2)
    listener.on_connect = lambda client, *_: client.subscribe("plant/line 7/#", qos=1)
    listener.on_message = lambda _client, _data, m: received.append((m.topic, m.payload, m.qos, m.retain))
    listener.reconnect_delay_set(1, 1)

    def predictions() -> list[bytes]:
        return [payload for topic, payload, qos, _ in received if topic.endswith("predictions") and qos == 1]

    broker = start_broker()
    try:
        with watching(model, folder, output, "--mqtt", f"mqtt://127.0.0.1:{port}/plant/line%207") as process:
            time.sleep(1)
            listener.connect_async("127.0.0.1", port)
            listener.loop_start()
            wait_for(lambda: ("plant/line 7/status", b"online", 1, True) in received)
            put(folder / "0.png", 0)
            wait_for(predictions)
            broker.terminate()
            broker.wait()
            put(folder / "1.png", 1)
            wait_for(lambda: len(names(output)) == 2)
            before = len(received)
            broker = start_broker()
            listener.subscribe("plant/line 7/#", qos=1)
            wait_for(lambda: (output / ".mqtt.sent").read_text() == str((output / FILE).stat().st_size))
            wait_for(lambda: any(payload == b"online" for _, payload, *_ in received[before:]))
            put(folder / "2.png", 2)
            wait_for(lambda: any(json.loads(payload)["path"] == "2.png" for payload in predictions()))
            assert stop(process) == 0
        wait_for(lambda: received[-1][:2] == ("plant/line 7/status", b"offline"))
    finally:
        listener.loop_stop()
        broker.terminate()
        broker.wait()
    told = list(map(json.loads, predictions()))
    records = list(read_records(output / FILE))
    assert told[0] == records[0]
    assert told[-1] == records[2]
    assert all(record in records for record in told)


def test_two_do_not_write_to_one_place(model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with (
        watching(model, tmp_path / "in", tmp_path / "out") as process,
        pytest.raises(AssertionError, match="another watch writes"),
        watching(model, tmp_path / "in", tmp_path / "out"),
    ):
        pass
    assert process.poll() is not None


@pytest.mark.parametrize(
    ("folder", "output", "move"),
    [
        ("in", "in/out", None),
        ("in", "in", None),
        ("in", "out", "in/moved"),
        ("in", "out", "in"),
        ("sorted/anomalous", "out", "sorted"),
        ("out/pictures", "out", None),
        ("out/heat_maps/today", "out", None),
    ],
)
def test_results_become_no_images(tmp_path: Path, folder: str, output: str, move: str | None) -> None:
    (tmp_path / folder).mkdir(parents=True)
    places = (tmp_path / folder, tmp_path / output, None if move is None else tmp_path / move)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="would be images"):
        watch(places[0], Path("no model"), places[1], places[2])
    assert sorted(tmp_path.rglob("*")) == before


def test_a_place_that_is_a_file_is_refused_first(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is to be a folder, but it is a file"):
        check_places(tmp_path / "in", tmp_path / "out", tmp_path / "file")


def test_a_journal_that_is_taken_away_ends_it(model: Path, tmp_path: Path) -> None:
    """What is said would be lost, and its image moved."""
    folder, output, moved = tmp_path / "in", tmp_path / "out", tmp_path / "moved"
    folder.mkdir()
    with watching(model, folder, output, "--move", str(moved)) as process:
        put(folder / "0.png", 0)
        wait_for(lambda: not (folder / "0.png").exists())
        shutil.rmtree(output)
        put(folder / "1.png", 1)
        wait_for(lambda: process.poll() is not None)
        assert process.returncode == 1
        wait_for(lambda: process.said)
        assert "was removed while it was written" in process.said[0]
    assert (folder / "1.png").exists()


def test_addresses_are_looked_at_first(model: Path, tmp_path: Path) -> None:
    for url in ("ftp://host/x", "host", "https://"):
        with pytest.raises(ValueError, match="A webhook is an address"):
            webhook(url)
    for url in ("http://host/topic", "mqtt://host", "mqtt://host/#", "mqtt:///topic"):
        with pytest.raises(ValueError, match="A broker is an address"):
            MqttReceiver(url)
    with (
        pytest.raises(AssertionError, match=re.escape("there is no folder")),
        watching(model, tmp_path / "no", tmp_path),
    ):
        pass


def test_a_linked_folder(model: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "in").symlink_to(tmp_path / "real")
    with watching(model, tmp_path / "in", tmp_path / "out") as process:
        put(tmp_path / "real/a.png", 0)
        wait_for(lambda: names(tmp_path / "out") == ["a.png"])
        assert stop(process) == 0
