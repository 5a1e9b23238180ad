# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Bulk prediction: what Ray's actors say is what the runtime says, each image once, whatever ends in the middle."""

import io
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_inp import InpFormer, cli
from anomalib_inp.results.records import Record, read_records
from anomalib_inp.runtime.folder import predict_folder
from anomalib_inp.runtime.job import plan
from anomalib_inp.runtime.model import ExportedModel
from anomalib_inp.runtime.predict import predict

ray = pytest.importorskip("ray", reason="bulk prediction needs the extra ray")

from ray.cluster_utils import Cluster  # noqa: E402

from anomalib_inp.bulk import job as bulk  # noqa: E402
from anomalib_inp.bulk.dataset import Predictor, local_model, predict_dataset  # noqa: E402
from anomalib_inp.commands.bulk import predict_by_ray  # noqa: E402
from anomalib_inp.runtime.model import model_digest, model_files  # noqa: E402

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 images in two folders, one of them broken."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for index in range(100):
        path = folder / ("good" if index % 2 else "dent") / f"{index:03}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (90, 120 + index, 3), dtype=np.uint8)).save(path)
    (folder / "dent/000.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def exported(tiny_model: Make, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = tiny_model(InpFormer, spread=8, target_layers=[1, 2], map_size=48, image_size=64, evaluator=False).eval()
    pixels = torch.from_numpy(np.asarray(Image.open(images / "good/001.png")).copy()).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        found = model.model(model.pre_processor.transform(pixels))
    model.post_processor.set_thresholds(float(found.pred_score), float(found.anomaly_map.quantile(0.9)))
    return model.to_openvino(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes of one core each, beside one that only begins."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    made.add_node(num_cpus=1)
    made.add_node(num_cpus=1)
    ray.init(made.address)
    yield made
    ray.shutdown()
    made.shutdown()


def rows(output: Path) -> list[Record]:
    """What a run has written, in the order of the names."""
    from pyarrow import parquet as pq

    return sorted(pq.read_table(output / "predictions").to_pylist(), key=lambda row: row["path"])


def expected(exported: Path, images: Path, output: Path) -> list[Record]:
    """What the command says on one machine."""
    job, model = plan(images, output, pictures=False), ExportedModel(exported, performance="throughput")
    job.describe(exported, model, "")
    list(predict_folder(model, job))
    return sorted(read_records(output / "predictions.jsonl"), key=lambda row: row["path"])


def same(found: list[Record], wanted: list[Record]) -> bool:
    """Whether all is said alike, to the last bit; when is another matter, and a broken image is named otherwise."""
    return [{**row, "time": "", "error": bool(row["error"])} for row in found] == [
        {**row, "time": "", "error": bool(row["error"])} for row in wanted
    ]


def test_the_records_are_those_of_one_machine(
    cluster: Cluster, exported: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        predict_by_ray(str(images), exported, str(tmp_path / "bulk"), "local", False, heat_maps=True)
    assert ended.value.code == 3  # the broken image
    assert "1 error" in capsys.readouterr().out
    found = rows(tmp_path / "bulk")
    pictures = [row.pop("heat_map") for row in found]
    wanted = expected(exported, images, tmp_path / "one")
    assert same(found, wanted)
    assert {row["kind"] for row in found} == {"good", "dent"}
    assert [picture is None for picture in pictures] == [row["error"] is not None for row in found]
    assert Image.open(io.BytesIO(pictures[1])).size == (48, 48)

    with pytest.raises(ValueError, match="holds predictions already"):
        bulk.predict_images(str(images), exported, bulk.Output(str(tmp_path / "bulk")))


def test_each_image_once_though_a_node_is_killed(cluster: Cluster, exported: Path, tmp_path: Path) -> None:
    folder, rng = tmp_path / "images", np.random.default_rng(0)
    folder.mkdir()
    for index in range(600):
        Image.fromarray(rng.integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(folder / f"{index:03}.png")
    output = bulk.Output(str(tmp_path / "bulk"))
    before: list[int] = []

    def kill() -> None:
        while not list((tmp_path / "bulk").glob("predictions/*.parquet")):
            time.sleep(0.02)
        before.append(len(list((tmp_path / "bulk").glob("predictions/*.parquet"))))
        cluster.remove_node(min(cluster.worker_nodes, key=id), allow_graceful=False)

    killer = Thread(target=kill)
    killer.start()
    counted = bulk.predict_images(str(folder), exported, output)
    killer.join()
    assert before[0] < 600 // 32  # in the middle
    end = time.monotonic() + 60
    while sum(node["Alive"] for node in ray.nodes()) > 2 and time.monotonic() < end:
        time.sleep(0.2)
    assert sum(node["Alive"] for node in ray.nodes()) == 2  # the one that begins, and one
    cluster.add_node(num_cpus=1)
    assert counted.total() == 600
    assert same(rows(tmp_path / "bulk"), expected(exported, folder, tmp_path / "one"))


def test_what_is_there_is_not_predicted_again(cluster: Cluster, exported: Path, images: Path, tmp_path: Path) -> None:
    """A run that ended: a file half written, one lost, and an image that was broken then."""
    copy = tmp_path / "images"
    for path in images.rglob("*.png"):
        (copy / path.parent.name).mkdir(parents=True, exist_ok=True)
        (copy / path.parent.name / path.name).write_bytes(path.read_bytes())
    output = bulk.Output(f"file://{tmp_path}/bulk")  # a URL
    assert bulk.predict_images(str(copy), exported, output)["error"] == 1
    first, second, *_ = sorted((tmp_path / "bulk/predictions").iterdir())
    first.unlink()
    second.write_bytes(second.read_bytes()[:-100])
    earlier = {row["path"]: row["time"] for row in rows_of_whole(tmp_path / "bulk/predictions")}
    assert 20 < len(earlier) < 80
    (copy / "dent/000.png").write_bytes((copy / "dent/002.png").read_bytes())
    counted = bulk.predict_images(str(copy), exported, output, resume=True)
    assert (counted.total(), counted["error"]) == (100, 0)
    found = rows(tmp_path / "bulk")
    assert same(found, expected(exported, copy, tmp_path / "one"))
    again = {row["path"] for row in found if earlier.get(row["path"]) != row["time"]}
    assert len(again) == 100 - len(earlier.keys() - {"dent/000.png"})
    with pytest.raises(ValueError, match="another model, threshold, category or precision"):
        bulk.predict_images(str(copy), exported, output, resume=True, precision="bf16")


def rows_of_whole(folder: Path) -> list[Record]:
    from pyarrow import ArrowInvalid
    from pyarrow import parquet as pq

    found: list[Record] = []
    for file in folder.iterdir():
        try:
            found += pq.read_table(file).to_pylist()
        except ArrowInvalid:
            continue
    return found


def test_any_dataset(cluster: Cluster, exported: Path, images: Path) -> None:
    """Content of files, arrays, paths and URLs are told the same."""
    (path,) = [images / "good/003.png"]
    wanted = predict(ExportedModel(exported), path)
    pixels = np.asarray(Image.open(path))
    sources = [
        ray.data.read_binary_files(str(path), include_paths=True),
        ray.data.read_images(str(path), include_paths=True),
        ray.data.from_items([{"path": str(path), "more": 1}]),
        ray.data.from_items([{"path": f"file://{path}"}]),
        ray.data.from_items([{"path": "floats", "image": pixels * np.float32(1 / 255)}]),
    ]
    for source in sources:
        (row,) = predict_dataset(source, exported, actors=1).take_all()
        assert (row["raw_score"], row["error"], row["size"]) == (wanted.raw_score, None, [123, 90])
    wrong = [{"path": "none.png"}, {"path": "s.png", "image": np.zeros((2, 3, 8, 8), np.uint8)}]
    for row, text in zip(wrong, ("none.png cannot be read: No such file", "one image, got 2"), strict=True):
        (found,) = predict_dataset(ray.data.from_items([row]), exported, actors=1).take_all()
        assert text in found["error"]
        assert found["score"] is None


@pytest.mark.parametrize(
    ("columns", "settings", "text"),
    [
        ({"bytes": b""}, {}, "needs a column path"),
        ({"path": "a"}, {"threads": 0}, "one thread or more"),
        ({"path": "a"}, {"actors": 0}, "one actor or more"),
        ({"path": "a"}, {"actors": (3, 2)}, "one actor or more"),
        ({"path": "a"}, {"category": "nut"}, "no thresholds of the category"),
    ],
)
def test_what_is_wrong_is_said_before_anything_begins(
    cluster: Cluster, exported: Path, columns: dict[str, Any], settings: dict[str, Any], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        predict_dataset(ray.data.from_items([columns]), exported, **settings)


def test_a_machine_without_the_model_gets_a_copy(
    cluster: Cluster, exported: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANOMALIB_INP_CACHE", str(tmp_path / "cache"))
    files = {part.name: part.read_bytes() for part in model_files(exported)}
    stored, digest = ray.put(files), model_digest(exported)
    copy = local_model(stored, Path("/elsewhere/model.xml"), digest)
    assert copy.is_relative_to(tmp_path / "cache")
    assert model_digest(copy) == digest
    written = copy.stat().st_mtime_ns
    assert local_model(stored, Path("/elsewhere/model.xml"), digest) == copy
    assert copy.stat().st_mtime_ns == written
    copy.write_bytes(b"damaged")
    assert model_digest(local_model(stored, Path("/elsewhere/model.xml"), digest)) == digest
    settings = {"device": "CPU", "precision": "f32", "threads": 1, "category": None}
    predictor = Predictor(stored, "/elsewhere/model.xml", digest, settings, False)
    (row,) = predictor({"path": np.array([str(images / "good/001.png")], object)}).to_pylist()
    assert row["model"] == digest
    assert row["raw_score"] == predict(ExportedModel(exported), images / "good/001.png").raw_score


@pytest.mark.parametrize(
    ("arguments", "address"),
    [(["--ray"], "local"), (["--ray", "--threads", "2"], "local"), (["--ray", "auto"], "auto"), (["--ray=x"], "x")],
)
def test_the_command(monkeypatch: pytest.MonkeyPatch, arguments: list[str], address: str) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr("anomalib_inp.commands.bulk.predict_by_ray", lambda *given, **_: calls.append(given))
    monkeypatch.setattr(
        "sys.argv", ["anomalib-inp", "predict", "m.xml", "s3://b/images", "--output", "s3://b/o", *arguments]
    )
    cli.main()
    assert calls == [("s3://b/images", Path("m.xml"), "s3://b/o", address, False)]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["s3://bucket/images"], "URLs are for --ray"),
        (["images", "--actors", "2"], "for --ray"),
        (["images", "--heat_maps", "true"], "for --ray"),
        (["images", "--ray", "--strict", "true"], "--strict is of one machine"),
    ],
)
def test_what_is_of_one_machine_or_of_many(monkeypatch: pytest.MonkeyPatch, arguments: list[str], text: str) -> None:
    monkeypatch.setattr("sys.argv", ["anomalib-inp", "predict", "m.xml", *arguments])
    with pytest.raises(SystemExit, match=text):
        cli.main()


def test_names_and_places(tmp_path: Path) -> None:
    (tmp_path / "dent").mkdir()
    for name in ("dent/a.png", "b.JPG", "c.txt"):
        (tmp_path / name).write_bytes(b"")
    here, there = bulk.list_images(str(tmp_path)), bulk.list_images(f"file://{tmp_path}")
    assert Counter(here.names) == Counter(there.names) == Counter(["dent/a.png", "b.JPG"])
    assert here.files == [str(tmp_path / name).encode() for name in here.names]
    assert there.files == [f"file://{tmp_path / name}".encode() for name in there.names]
    assert bulk.list_images(f"file://{tmp_path}/b.JPG").names == ["b.JPG"]
    with pytest.raises(FileNotFoundError, match="found none"):
        bulk.list_images(f"file://{tmp_path}/none")
    for url, text in (("gcs://bucket/images", "cannot be opened: .*gcsfs"), ("who://bucket", "Protocol not known")):
        with pytest.raises(ValueError, match=text):
            bulk.list_images(url)
