"""Places that may be URIs, and objects that are written and read whole."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from minitron_nas.errors import MachineError, PlanError, RunFolderError
from minitron_nas.storage.copies import local
from minitron_nas.storage.remote import Store, as_path, as_uri
from minitron_nas.storage.run_folder import require_new_folder


@pytest.fixture
def memory() -> Iterator[Any]:
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()


@pytest.mark.parametrize(
    ("place", "uri"),
    [
        ("s3://bucket/run", "s3://bucket/run"),
        ("s3://bucket/run/", "s3://bucket/run"),
        (Path("gs://bucket/run"), "gs://bucket/run"),
        ("hf://datasets/owner/name/run", "hf://datasets/owner/name/run"),
        ("file:///tmp/run", None),
        ("https://example.org/run", None),
        ("runs/one", None),
        ("/tmp/s3://x", None),
        ("pypi:llm==1.0", None),
        ("owner/name@main", None),
        (("model", "tokenizer"), None),
    ],
)
def test_a_place_is_a_uri_or_none(place: object, uri: str | None) -> None:
    assert as_uri(place) == uri


@pytest.mark.parametrize("place", ["file:///tmp/run", Path("file:///tmp/run"), "file://localhost/tmp/run", "/tmp/run"])
def test_a_file_uri_is_a_path(place: str | Path) -> None:
    assert as_path(place) == Path("/tmp/run")


@pytest.mark.parametrize(
    "place", ["https://a.org/run", "S3://bucket/run", "s3:bucket/run", "memory://", Path("GS://a/b")]
)
@pytest.mark.parametrize("take", [as_path, lambda place: require_new_folder(Path(place))])
def test_what_was_meant_as_a_uri_is_no_path(place: str | Path, take: Any) -> None:
    with pytest.raises(
        PlanError, match=r"is no URI that can be written to; give such as s3://bucket/run, a path, or \./"
    ):
        take(place)


@pytest.mark.parametrize("place", ["runs/a:b", "./s3:bucket", "run:1", "a:/b"])
def test_a_colon_in_a_path_is_none_of_a_uri(place: str) -> None:
    assert as_path(place) == Path(place)


def test_objects_are_put_listed_got_and_removed(memory: Any, tmp_path: Path) -> None:
    store = Store("memory://bucket/run")
    assert store.objects() == {}
    assert store.read("a") is None
    (tmp_path / "file").write_text("four")
    assert store.put(tmp_path / "file", "students/a") == 4
    store.write("b", b"two")
    there = store.objects()
    assert {name: each.num_bytes for name, each in there.items()} == {"b": 3, "students/a": 4}
    assert list(store.objects("students")) == ["students/a"]
    store.get("students/a", tmp_path / "deep" / "copy")
    assert (tmp_path / "deep" / "copy").read_text() == "four"
    store.write("b", b"new")
    assert store.objects()["b"].version != there["b"].version
    store.remove("b")
    store.remove("b")
    assert list(store.objects()) == ["students/a"]


def test_a_fault_is_one_line_with_the_object(memory: Any, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"memory://bucket/run/gone cannot be read \(.*\); see that bucket"):
        Store("memory://bucket/run").get("gone", tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_a_uri_without_a_driver_says_what_to_install() -> None:
    with pytest.raises(PlanError, match="abfs://box/run needs a driver that is not installed; pip install 'adlfs'"):
        Store("abfs://box/run")
    with pytest.raises(PlanError, match="nothing://box/run has no driver"):
        Store("nothing://box/run")


def test_a_copy_follows_what_lies_at_the_uri(memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINITRON_NAS_CACHE", str(tmp_path))
    with pytest.raises(RunFolderError, match="there is nothing at memory://bucket/model"):
        local("memory://bucket/model")
    memory.pipe_file("/bucket/model/config.json", b"{}")
    memory.pipe_file("/bucket/model/model.safetensors", b"one")
    folder = local("memory://bucket/model")
    assert (folder / "model.safetensors").read_text() == "one"
    memory.pipe_file("/bucket/model/model.safetensors", b"two")
    memory.rm_file("/bucket/model/config.json")
    assert local("memory://bucket/model") == folder
    assert {file.name: file.read_text() for file in folder.iterdir() if not file.name.startswith(".")} == {
        "model.safetensors": "two"
    }


def test_only_a_whole_run_is_written_to_a_uri() -> None:
    with pytest.raises(RunFolderError, match="--out s3://bucket/student is a URI, which only a whole run"):
        require_new_folder(Path("s3://bucket/student"))
