# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

from pathlib import Path

import pytest

from anomalib_inp.files import VARIABLE, cache_folder, file_digest, first_few, image_files, replacing


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("old")
    with replacing(path) as temporary:
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".onnx")
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_what_fails_leaves_the_old_file_alone(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("old")

    def write() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_digest_is_of_every_byte_and_of_nothing_else(tmp_path: Path) -> None:
    contents = {"a": b"one", "b": b"one", "c": b"two", "d": b"on"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    digests = {name: file_digest(tmp_path / name) for name in contents}
    assert digests["a"] == digests["b"]
    assert len(set(digests.values())) == 3


def test_images_are_listed_at_any_depth(tmp_path: Path) -> None:
    for name in ("b/c.PNG", "a.jpeg", "notes.txt", "b/d.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.relative_to(tmp_path).as_posix() for path in image_files(tmp_path)] == ["a.jpeg", "b/c.PNG", "b/d.tif"]


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    store = tmp_path / "store"
    (store / "sub").mkdir(parents=True)
    (store / "a.png").touch()
    (store / "sub/b.png").touch()
    images = tmp_path / "images"
    images.mkdir()
    (images / "one").symlink_to(store, target_is_directory=True)
    (images / "two").symlink_to(store, target_is_directory=True)
    (images / "c.png").symlink_to(store / "a.png")
    (images / "gone.png").symlink_to(store / "nowhere.png")
    (store / "sub/up").symlink_to(images, target_is_directory=True)
    (images / "itself").symlink_to(images, target_is_directory=True)
    found = [path.relative_to(images).as_posix() for path in image_files(images)]
    # up leads to images again, and the two links to each other: none inside of itself
    assert found == ["c.png", "gone.png", "one/a.png", "one/sub/b.png", "two/a.png", "two/sub/b.png"]


def test_hidden_files_and_folders_are_no_images(tmp_path: Path) -> None:
    for name in (".ipynb_checkpoints/a.png", "kind/.thumbnails/b.png", "kind/._c.png", "kind/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert image_files(tmp_path) == [tmp_path / "kind/c.png"]


@pytest.mark.parametrize(
    ("count", "expected"), [(1, "0"), (5, "0; 1; 2; 3; 4"), (6, "0; 1; 2; 3; 4; and 1 more"), (0, "")]
)
def test_a_message_names_five_and_counts_the_others(count: int, expected: str) -> None:
    assert first_few([str(index) for index in range(count)]) == expected


def test_caches_live_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv(VARIABLE, "~/caches")
    assert cache_folder("openvino") == tmp_path / "caches/openvino"
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder("openvino").name == "openvino"
    assert "anomalib-inp" in cache_folder("openvino").parts
