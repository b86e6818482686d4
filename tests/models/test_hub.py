import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from minitron_nas.errors import TeacherNotFoundError
from minitron_nas.models.checkpoint import open_checkpoint
from minitron_nas.models.hub import HUB_NAME, cached_snapshot, commit_of, download_snapshot
from minitron_nas.testing import tiny_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = f"/owner/tiny/resolve/{COMMIT}/"


@pytest.fixture(autouse=True)
def _empty_cache(monkeypatch, tmp_path):
    """An empty local hub cache; tests/conftest.py keeps the hub itself offline."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def repository(tmp_path) -> Path:
    """What owner/tiny holds on the hub."""
    return tiny_checkpoint(tmp_path / "source", "llama")


@pytest.fixture
def online(monkeypatch, repository) -> Callable[[], AbstractContextManager[None]]:
    """Within it the hub is there: a server that speaks as much of its protocol as a download needs."""

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.head()

        def do_GET(self):
            self.wfile.write(self.head())

        def head(self) -> bytes:
            path = self.path.partition("?")[0]
            content = content_of(path)
            headers = {"Content-Length": len(content), "ETag": f'"{Path(path).name}"', "X-Repo-Commit": COMMIT}
            self.send_response(200)
            for name, value in headers.items():
                self.send_header(name, str(value))
            self.end_headers()
            return content

        def log_message(self, *args):
            pass

    def content_of(path: str) -> bytes:
        if path.startswith(FILES):
            return (repository / path.removeprefix(FILES)).read_bytes()
        if "/tree/" in path:
            entry = {"type": "file", "oid": "0"}
            found = [{**entry, "path": file.name, "size": file.stat().st_size} for file in repository.iterdir()]
            return json.dumps(found).encode()
        return json.dumps({"id": "owner/tiny", "sha": COMMIT, "siblings": []}).encode()

    @contextmanager
    def serve() -> Iterator[None]:
        with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server, monkeypatch.context() as patch:
            thread = Thread(target=server.serve_forever)
            thread.start()
            endpoint = f"http://127.0.0.1:{server.server_port}"
            patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
            patch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
            template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
            patch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
            try:
                yield
            finally:
                server.shutdown()
                thread.join()

    return serve


@pytest.mark.parametrize("name", ["owner/tiny", "owner/tiny@main", "owner/tiny@v1.0", f"owner/tiny@{COMMIT}"])
def test_what_was_downloaded_is_found_again_without_the_hub(online, repository, name):
    with online():
        snapshot = download_snapshot(name)
    assert open_checkpoint(snapshot).fingerprint == open_checkpoint(repository).fingerprint
    assert download_snapshot(name) == snapshot
    assert commit_of(snapshot) == COMMIT


@pytest.mark.parametrize("folder", [f"snapshots/{COMMIT[:39]}", f"models/{COMMIT}", "snapshots/main", "teacher"])
def test_a_folder_outside_of_the_hubs_cache_is_of_no_commit(tmp_path, folder):
    assert commit_of(tmp_path / folder) is None


def test_another_revision_than_the_downloaded_one_is_not_found_without_the_hub(online):
    with online():
        download_snapshot("owner/tiny@v1.0")
    with pytest.raises(TeacherNotFoundError, match=r"owner/tiny@v2\.0: no such folder here"):
        download_snapshot("owner/tiny@v2.0")


def test_the_terms_of_use_come_with_a_teacher_and_its_card_which_names_them(online, repository):
    terms = {"LICENSE", "NOTICE.md", "USE_POLICY.md", "README.md"}
    for name in (*terms, "pytorch_model.bin"):
        (repository / name).write_text(name)
    with online():
        snapshot = download_snapshot("owner/tiny")
    names = {file.name for file in snapshot.iterdir()}
    assert terms | {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert "pytorch_model.bin" not in names


def test_a_snapshot_is_found_in_the_local_cache_without_a_question_to_the_hub(online):
    assert cached_snapshot("owner/tiny") is None
    with online():
        snapshot = download_snapshot("owner/tiny")
    assert cached_snapshot("owner/tiny") == cached_snapshot("owner/tiny", COMMIT) == snapshot
    assert cached_snapshot("owner/tiny", COMMIT[::-1]) is None
    assert cached_snapshot("/some/folder") is None


def test_a_name_that_nobody_has_says_what_was_tried_and_what_else_can_be_given():
    with pytest.raises(TeacherNotFoundError, match=r"offline mode is enabled.*give a folder, a \.gguf file"):
        download_snapshot("owner/absent")


@pytest.mark.parametrize(
    ("text", "is_name"),
    [
        ("owner/name", True),
        ("owner/name@v1.0", True),
        ("name", False),
        ("/abs/name", False),
        ("a/b/c", False),
    ],
)
def test_hub_names_have_an_owner_a_name_and_maybe_a_revision(text, is_name):
    assert (HUB_NAME.fullmatch(text) is not None) is is_name
