# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The service, in processes of its own on this computer: what it answers, what it refuses, and how it ends."""

import asyncio
import base64
import io
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import httpx
import numpy as np
import pytest
import torch
from browser import needs_browser, open_page
from PIL import Image
from pydantic import TypeAdapter
from server import Server, serving

from anomalib_inp import InpFormer
from anomalib_inp.results.feedback import read_feedback
from anomalib_inp.results.records import Record
from anomalib_inp.runtime.metadata import read_metadata
from anomalib_inp.runtime.model import ExportedModel
from anomalib_inp.runtime.predict import predict
from anomalib_inp.service.app import Service
from anomalib_inp.service.limits import BoundedQueue, RefusedError, check_allowed
from anomalib_inp.service.settings import Settings
from anomalib_inp.service.station import Seen, Station
from anomalib_inp.thresholds.scale import ValidationScores

Make = Callable[..., Any]
NAMES = [f"{index:03}.png" for index in range(6)]


@pytest.fixture(scope="module")
def exported(tiny_model: Make, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = tiny_model(InpFormer, spread=8, target_layers=[1, 2], map_size=48, image_size=64, evaluator=False).eval()
    pixels = torch.from_numpy(np.asarray(Image.open(images / NAMES[0])).copy()).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        found = model.model(model.pre_processor.transform(pixels))
    model.post_processor.set_thresholds(float(found.pred_score), float(found.anomaly_map.quantile(0.9)))
    score = float(found.pred_score)
    model.post_processor.validation = ValidationScores([score - 0.01 * index for index in range(20)], [score + 0.1])
    return model.to_openvino(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name in NAMES:
        Image.fromarray(rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(folder / name)
    return folder


def copy(exported: Path, folder: Path) -> Path:
    """A model that a test may change."""
    for suffix in (".xml", ".bin"):
        shutil.copy(exported.with_suffix(suffix), folder)
    return folder / exported.name


@pytest.fixture(scope="module")
def server(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with serving(
        copy(exported, folder), folder, "--max_upload", "2", "--max_pixels", "200000", "--timeout", "5"
    ) as server:
        yield server


def files(images: Path, names: list[str] = NAMES) -> list[tuple[str, tuple[str, bytes]]]:
    return [("images", (name, (images / name).read_bytes())) for name in names]


def test_answers_are_the_records_of_the_runtime(server: Server, exported: Path, images: Path) -> None:
    """One image as the body, several as files, in order, with pictures; the same numbers as without a service."""
    model = ExportedModel(exported)
    answer = server.client.post("/predict", files=files(images), params={"heat_map": True, "overlay": True})
    assert answer.status_code == 200
    predictions = answer.json()["predictions"]
    assert [one["path"] for one in predictions] == NAMES
    for one in predictions:
        heat, overlay = (Image.open(io.BytesIO(base64.b64decode(one.pop(name)))) for name in ("heat_map", "overlay"))
        TypeAdapter(Record).validate_python(one, strict=True)
        expected = predict(model, images / one["path"])
        assert (one["score"], one["raw_score"]) == pytest.approx((expected.score, expected.raw_score), rel=1e-6)
        assert one["verdict"] == ("anomalous" if expected.label else "normal")
        assert [region["box"] for region in one["regions"]] == [list(region.box) for region in expected.regions]
        assert np.asarray(heat).shape == expected.raw_map.shape
        assert overlay.size[0] / overlay.size[1] == pytest.approx(120 / 90, rel=0.02)
    content = (images / NAMES[1]).read_bytes()
    (alone,) = server.client.post("/predict", content=content, params={"name": "a.png"}).json()["predictions"]
    for changed in ("time", "path"):
        assert alone.pop(changed) != predictions[1].pop(changed) or changed == "time"
    assert alone == predictions[1]


def test_what_cannot_be_read_is_said(server: Server, images: Path) -> None:
    both = [*files(images, NAMES[:1]), ("images", ("half.png", (images / NAMES[0]).read_bytes()[:300]))]
    answer = server.client.post("/predict", files=both)
    assert answer.status_code == 200
    fine, broken = answer.json()["predictions"]
    assert fine["error"] is None
    assert "half.png is no readable image" in broken["error"]
    assert broken["score"] is None
    gif = io.BytesIO()
    Image.new("L", (20, 20)).save(gif, "GIF")
    assert server.client.post("/predict", content=gif.getvalue()).status_code == 422  # folders leave them out as well
    answer = server.client.post("/predict", content=b"no image")
    assert answer.status_code == 422
    assert "The image is no readable image" in answer.json()["predictions"][0]["error"]
    for request in ({"content": b""}, {"files": {"a": (None, "b")}}):
        answer = server.client.post("/predict", **request)
        assert answer.status_code == 422
        assert "There is no image" in answer.json()["detail"]
    answer = server.client.post("/predict", content=b"x", headers={"content-type": "multipart/form-data; boundary=y"})
    assert answer.status_code == 422


def test_large_uploads_and_images_are_refused(server: Server) -> None:
    """By what is announced, by what comes, and by pixels before they are decoded."""
    large = b"x" * (2 * 2**20 + 1)
    assert server.client.post("/predict", content=large).status_code == 413
    assert (
        server.client.post(
            "/predict", content=(large[start : start + 65536] for start in range(0, len(large), 65536))
        ).status_code
        == 413
    )
    assert server.client.put("/thresholds", content=large).status_code == 413
    bomb = io.BytesIO()
    Image.new("1", (12000, 12000)).save(bomb, "PNG")
    assert len(bomb.getvalue()) < 100_000
    answer = server.client.post("/predict", content=bomb.getvalue())
    assert answer.status_code == 422
    assert "12000 x 12000 pixels are more than the 200000" in answer.json()["predictions"][0]["error"]
    many = [("images", (f"{index}.png", b"x")) for index in range(65)]
    assert server.client.post("/predict", files=many).status_code in {413, 422}
    assert server.client.get("/health").status_code == 200


def test_a_slow_upload_is_ended(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc")
        connection.settimeout(20)
        begin = time.monotonic()
        assert b" 408 " in connection.recv(4096)
        assert 4 < time.monotonic() - begin < 12


def test_who_leaves_in_the_middle_is_no_error(server: Server) -> None:
    """Of the service, and of the station's own uploads: a page that is closed."""
    body = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\nabc'
    for path in (b"/predict", b"/gradio_api/upload"):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(
                b"POST " + path + b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
                b"Content-Type: multipart/form-data; boundary=x\r\n\r\n" + body
            )
            time.sleep(0.3)
    time.sleep(0.5)
    assert server.client.get("/health").status_code == 200
    assert "Traceback" not in server.log.read_text()


def test_settings_health_and_counts(server: Server, exported: Path, images: Path) -> None:
    said = server.client.get("/model").json()
    metadata = read_metadata(exported)
    assert said["thresholds"]["image"] == pytest.approx(metadata.image.threshold)
    assert said["inspection"] == {"smallest_area": 0.0, "mask": ""}
    assert len(said["validation"]["normal"]) == 20
    assert server.client.get("/health").json() == {"status": "alive"}
    assert server.client.get("/ready").json() == {"status": "ready"}

    def count() -> float:
        text = server.client.get("/metrics").text
        return sum(map(float, re.findall(r'images_total\{verdict="(?:normal|anomalous)"\} (\S+)', text)))

    before = count()
    server.client.post("/predict", files=files(images))
    assert count() == before + len(NAMES)
    assert server.client.post("/predict", content=b"x" * (2 * 2**20 + 1)).status_code == 413
    text = server.client.get("/metrics").text
    for name in ("anomalib_inp_image_seconds_bucket", "anomalib_inp_score_bucket", "anomalib_inp_queue_length 0.0"):
        assert name in text
    assert 'anomalib_inp_refused_total{reason="upload"}' in text
    paths = server.client.get("/openapi.json").json()["paths"]
    assert {"/predict", "/model", "/thresholds", "/inspection", "/health", "/ready", "/metrics"} <= paths.keys()
    page = server.client.get("/docs").text
    assert not re.findall(r"""(?:src|href)=["']https?://""", page)


def test_drift_is_told(exported: Path, images: Path, tmp_path: Path) -> None:
    """25 times one image is not what the validation images were: in the answer, the counts and the log."""
    with serving(copy(exported, tmp_path), tmp_path, "--station", "false") as server:
        assert server.client.get("/drift").json() == []
        for _ in range(5):
            server.client.post("/predict", files=files(images, [NAMES[1]] * 5))
        (found,) = server.client.get("/drift").json()
        assert (found["quantity"], found["drifts"]) == ("score", True)
        assert 'anomalib_inp_drift{quantity="score"} 1.0' in server.client.get("/metrics").text
        assert "Drift: the scores are not those of the normal validation images" in server.log.read_text()


def test_thresholds_and_mask_are_changed_in_the_file(exported: Path, images: Path, tmp_path: Path) -> None:
    model = copy(exported, tmp_path)
    with serving(model, tmp_path, "--station", "false") as server:
        (before,) = server.client.post("/predict", files=files(images, NAMES[:1])).json()["predictions"]
        threshold = before["raw_score"] * 0.9
        said = server.client.put("/thresholds", json={"image": threshold}).json()
        assert said["thresholds"]["image"] == pytest.approx(threshold)
        assert read_metadata(model).image.threshold == pytest.approx(threshold)
        (after,) = server.client.post("/predict", files=files(images, NAMES[:1])).json()["predictions"]
        assert (after["verdict"], after["thresholds"]["image"]) == ("anomalous", pytest.approx(threshold))
        assert after["model"] != before["model"]
        mask = io.BytesIO()
        Image.fromarray(np.repeat([[255, 0]], 2, axis=0).astype(np.uint8)).save(mask, "PNG")
        change = {"mask": base64.b64encode(mask.getvalue()).decode(), "smallest_area": 3}
        said = server.client.put("/inspection", json=change).json()
        assert said["inspection"]["smallest_area"] == 3
        (left,) = server.client.post("/predict", files=files(images, NAMES[:1])).json()["predictions"]
        assert all(region["box"][2] <= 61 for region in left["regions"])
        for path, wrong, text in (
            ("/thresholds", {"image": "much"}, "valid number"),
            ("/thresholds", {"imgae": 3}, "Extra inputs"),
            ("/thresholds", {"image": True}, "valid number"),
            ("/thresholds", {"image": 1e38}, "too far from the present one"),
            ("/inspection", {"mask": "???"}, "base64"),
            ("/inspection", {"mask": base64.b64encode(b"no image").decode()}, "cannot be used as a mask"),
            ("/inspection", {"smallest_area": -1}, "from 0 on"),
        ):
            answer = server.client.put(path, json=wrong)
            assert answer.status_code == 422
            assert text in answer.text
        # a file that somebody else changes is read anew; one that is broken leaves the last one
        ExportedModel(model)
        model.unlink()
        assert server.client.put("/thresholds", json={"image": 0.3}).status_code == 503
        model.write_text("broken")
        assert server.client.post("/predict", files=files(images, NAMES[:1])).status_code == 200
        assert server.client.get("/", follow_redirects=True).status_code == 404
        assert server.stop() == 0


def test_changes_by_strangers_are_refused(server: Server, exported: Path, tmp_path: Path) -> None:
    change = {"json": {"image": 1.0}}
    for headers in ({"X-Forwarded-For": "10.0.0.1"}, {"Host": "evil.example"}, {"Origin": "http://evil.example"}):
        assert server.client.put("/thresholds", **change, headers=headers).status_code == 403
    folder = tmp_path
    with serving(copy(exported, folder), folder, "--token", "secret", "--station", "false") as guarded:
        assert guarded.client.put("/thresholds", **change).status_code == 401
        wrong = {"Authorization": "Bearer another"}
        assert guarded.client.put("/thresholds", **change, headers=wrong).status_code == 401
        right = {"Authorization": "Bearer secret", "Host": "line7.factory"}
        assert guarded.client.put("/thresholds", **change, headers=right).status_code == 200


@pytest.mark.parametrize(
    ("client", "headers", "fine"),
    [
        ("127.0.0.1", {"host": "localhost:8000"}, True),
        ("::1", {"host": "[::1]:8000"}, True),
        ("127.0.0.1", {"host": "127.0.0.1"}, True),
        ("127.0.0.1", {"host": "localhost:8000", "origin": "http://localhost:8000"}, True),
        ("10.0.0.7", {"host": "localhost:8000"}, False),
        (None, {"host": "localhost"}, False),
        ("127.0.0.1", {"host": "localhost.evil.example"}, False),
        ("127.0.0.1", {"host": "localhost", "origin": "null"}, False),
        ("127.0.0.1", {"host": "localhost", "forwarded": "for=10.0.0.7"}, False),
    ],
)
def test_who_is_here(client: str | None, headers: dict[str, str], fine: bool) -> None:
    if fine:
        check_allowed("", None, client, headers)
        return
    with pytest.raises(RefusedError, match="own computer"):
        check_allowed("", None, client, headers)


def test_more_than_waits_is_refused_and_nothing_is_lost(exported: Path, images: Path, tmp_path: Path) -> None:
    """Every request is answered: with a record, or by 429."""
    arguments = ("--queue", "2", "--threads", "1", "--station", "false")
    with serving(copy(exported, tmp_path), tmp_path, *arguments) as server, ThreadPoolExecutor(16) as clients:
        content = (images / NAMES[0]).read_bytes()
        ask = lambda _: httpx.post(f"{server.url}/predict", content=content, timeout=60)  # noqa: E731
        answers = list(clients.map(ask, range(200)))
        codes = [answer.status_code for answer in answers]
        assert set(codes) == {200, 429}
        assert all(answer.headers["retry-after"] == "1" for answer in answers if answer.status_code == 429)
        text = server.client.get("/metrics").text
        assert f'refused_total{{reason="queue"}} {float(codes.count(429))}' in text
        assert "queue_length 0.0" in text
        assert server.client.post("/predict", files=files(images, NAMES[:3])).status_code == 413


def test_it_ends_after_what_is_running(exported: Path, images: Path, tmp_path: Path) -> None:
    with serving(copy(exported, tmp_path), tmp_path, "--threads", "1") as server:
        big = io.BytesIO()
        Image.open(images / NAMES[0]).resize((3000, 2000)).save(big, "PNG")
        many = [("images", (f"{index}.png", big.getvalue())) for index in range(8)]
        answers: list[httpx.Response] = []
        asking = threading.Thread(target=lambda: answers.append(server.client.post("/predict", files=many)))
        asking.start()
        while asking.is_alive() and "queue_length 0.0" in httpx.get(f"{server.url}/metrics").text:
            time.sleep(0.01)
        assert server.stop() == 0
        asking.join()
        assert answers[0].status_code == 200
        assert [one["error"] for one in answers[0].json()["predictions"]] == [None] * 8


def test_workers_share_what_matters(exported: Path, images: Path, tmp_path: Path) -> None:
    """A threshold that one moves holds for all; counts are those of all."""
    with serving(copy(exported, tmp_path), tmp_path, "--workers", "2") as server:
        assert "No station" in server.log.read_text()
        server.client.put("/thresholds", json={"image": 0.123})
        for _ in range(20):
            answer = httpx.post(f"{server.url}/predict", content=(images / NAMES[0]).read_bytes(), timeout=60)
            (one,) = answer.json()["predictions"]
            assert one["thresholds"]["image"] == pytest.approx(0.123)
        totals = re.findall(r'images_total\{verdict="anomalous"\} (\S+)', server.client.get("/metrics").text)
        assert totals == ["20.0"]
        assert server.stop() == 0


def test_what_takes_too_long_is_given_up() -> None:
    """What has not begun is not done then, and there is room again."""
    begun: list[int] = []

    def slow(index: int) -> int:
        begun.append(index)
        time.sleep(0.4)
        return index

    async def ask() -> None:
        queue = BoundedQueue(threads=1, most=4, seconds=0.2)
        with pytest.raises(RefusedError, match=r"within 0\.2 s") as refused:
            await queue.run([lambda: slow(0), lambda: slow(1), lambda: slow(2)])
        assert refused.value.status == 504
        await asyncio.sleep(0.6)
        assert begun == [0]
        assert queue.length == 0
        with pytest.raises(RefusedError, match="At most 4"):
            await queue.run([lambda: 0] * 5)
        assert await queue.run([lambda: 1, lambda: 2]) == [1, 2]
        with pytest.raises(ZeroDivisionError):
            await queue.run([lambda: 1 // 0])

    asyncio.run(ask())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--queue", "0"), "--queue must be a positive number"),
        (("--category", "nut"), "no thresholds of the category 'nut'"),
    ],
)
def test_wrong_settings_end_it_at_once(exported: Path, tmp_path: Path, arguments: tuple[str, ...], text: str) -> None:
    with pytest.raises(AssertionError, match=text), serving(exported, tmp_path, *arguments):
        pass


def open_mask(page: Any, smallest_area: int) -> dict[str, float]:
    """Open the page of the mask and wait for what is in force; returns the place of the picture."""
    page.get_by_role("tab", name="Mask").click()
    page.wait_for_function(f"document.querySelector('#area input').value === '{smallest_area}'")
    canvas = page.locator("#editor canvas").first
    canvas.wait_for()
    page.wait_for_timeout(1500)  # the picture, which came with the area, is drawn
    return canvas.bounding_box()


@needs_browser
def test_the_station(exported: Path, images: Path, tmp_path: Path) -> None:
    """Upload, verdict, slider, mask, feedback, in a browser that reaches nothing but the service."""
    model = copy(exported, tmp_path)
    with serving(model, tmp_path) as server, open_page() as page:
        elsewhere: list[str] = []
        page.on(
            "request",
            lambda request: (
                elsewhere.append(request.url) if not request.url.startswith((server.url, "data:", "blob:")) else None
            ),
        )
        page.goto(server.url)
        page.locator("#files input[type=file]").set_input_files([images / name for name in NAMES[:3]])
        page.locator("#verdict .verdict").wait_for()
        assert NAMES[0] in page.locator("#verdict").inner_text()
        page.locator("#picture img").wait_for()
        page.locator("#gallery button.thumbnail-item").nth(2).click()
        page.get_by_text(re.compile(NAMES[2])).first.wait_for()
        page.wait_for_function("name => document.querySelector('#verdict').innerText.includes(name)", arg=NAMES[2])
        page.locator("#false-alarm").click()
        page.locator("#marked").get_by_text("Kept as").wait_for()
        (kept,) = read_feedback(tmp_path / "feedback")
        assert (kept["mistake"], kept["origin"]) == ("false_alarm", NAMES[2])
        assert (tmp_path / "feedback" / kept["file"]).read_bytes() == (images / NAMES[2]).read_bytes()

        page.get_by_role("tab", name="Threshold").click()
        page.locator("#histogram svg").wait_for()
        page.wait_for_function("document.querySelector('#number input').value !== ''")
        before = read_metadata(model).image.threshold
        number = page.locator("#number input")
        assert float(number.input_value()) == pytest.approx(before, abs=1e-3)
        number.fill("")
        page.locator("#histogram").get_by_text("There is no number").wait_for()
        page.locator("#move").click()
        page.get_by_text("There is no number").nth(1).wait_for()
        assert read_metadata(model).image.threshold == before
        number.fill(str(round(before + 0.05, 4)))
        page.locator("#histogram").get_by_text("0 of 20 normal validation images").wait_for()
        page.locator("#move").click()
        page.wait_for_timeout(300)
        for _ in range(50):
            if read_metadata(model).image.threshold != before:
                break
            page.wait_for_timeout(100)
        assert read_metadata(model).image.threshold == pytest.approx(before + 0.05, abs=1e-3)

        assert server.client.put("/inspection", json={"smallest_area": 3}).status_code == 200
        box = open_mask(page, 3)
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + 20, y + 20, steps=10)
        page.mouse.up()
        page.locator("#area input").fill("5")
        page.locator("#ignore").click()
        page.locator("#masked").get_by_text("Inspected:").wait_for()
        inspection = read_metadata(model).inspection
        assert inspection.smallest_area == 5
        assert 0 < (~inspection.pixels).mean() < 0.9
        assert elsewhere == []
        assert json.loads(server.client.get("/model").text)["inspection"]["mask"] == inspection.mask

        # on a fresh page, a stroke elsewhere is ignored besides
        page.goto(server.url)
        box = open_mask(page, 5)
        page.mouse.move(box["x"] + box["width"] / 2 + 60, box["y"] + box["height"] / 2 - 60)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] / 2 + 70, box["y"] + box["height"] / 2 - 70, steps=10)
        page.mouse.up()
        page.locator("#ignore").click()
        page.locator("#masked").get_by_text("Inspected:").wait_for()
        both = read_metadata(model).inspection.pixels
        first = np.asarray(Image.fromarray(inspection.pixels).resize(both.shape[::-1]))
        assert (~both).mean() > (~inspection.pixels).mean() * 1.2
        assert (~both)[~first].mean() > 0.95
        page.locator("#everything").click()
        page.locator("#masked").get_by_text("Inspected: everything").wait_for()
        assert read_metadata(model).inspection.pixels is None
        assert "Traceback" not in server.log.read_text()


def test_the_station_paints_on_what_it_shows(exported: Path, tmp_path: Path) -> None:
    """An image of 16 bits is no white sheet, and what is ignored is black."""
    deep = np.linspace(0, 65535, 80 * 120).reshape(80, 120).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    service = Service(Settings(str(copy(exported, tmp_path)), token="t"))  # noqa: S106 - of this test alone
    station, request = Station(service), SimpleNamespace(client=None, headers={})
    (answer,) = [service.inspector.look((tmp_path / "deep.png").read_bytes(), "deep.png")]
    seen = [Seen(str(tmp_path / "deep.png"), answer.record, Image.new("RGB", (1, 1)))]
    shown = np.asarray(station.background(seen, 0)["background"])
    np.testing.assert_allclose(shown[..., 0], deep >> 8, atol=1)
    stroke = np.zeros((80, 120, 4), np.uint8)
    stroke[:40, :, 3] = 255
    station.scores = [1.0]
    assert "Inspected: 50.0% of the image" in station.ignore({"layers": [stroke]}, None, "t", request)
    assert station.scores == []
    shown = np.asarray(station.background(seen, 0)["background"])
    assert (shown[:39] == 0).all()
    assert (shown[41:] > 0).any()
    stroke[:], stroke[:, :30, 3] = 0, 255
    assert "Inspected: 37.5% of the image" in station.ignore({"layers": [stroke]}, 3, "t", request)
    assert "Inspected: 37.5% of the image; regions have at least 3" in station.ignore(
        {"layers": []}, None, "t", request
    )
    with pytest.raises(gr.Error, match="need the token"):
        station.ignore_nothing(None, "wrong", request)
    assert "Inspected: everything" in station.ignore_nothing(None, "t", request)


def test_an_address_that_is_taken_is_said_at_once(exported: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for port in (taken.getsockname()[1], 99999):
            command = [sys.executable, "-m", "anomalib_inp.cli", "serve", str(exported), "--port", str(port)]
            ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
            assert ran.returncode == 1
            assert f"anomalib-inp: 127.0.0.1:{port} cannot be listened at: " in ran.stderr
            assert "Traceback" not in ran.stderr
            assert "Station" not in ran.stdout
