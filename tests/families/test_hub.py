import shutil

import pytest

from minitron_nas.errors import TeacherNotFoundError
from minitron_nas.families.hub import HUB_NAME, download_snapshot
from minitron_nas.testing import tiny_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(monkeypatch, tmp_path):
    """An empty local hub cache; tests/conftest.py keeps the hub itself offline."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def add_snapshot(hub_cache, tmp_path):
    model = hub_cache / "models--owner--tiny"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(COMMIT)
    source = tiny_checkpoint(tmp_path / "source", "llama")
    return shutil.copytree(source, model / "snapshots" / COMMIT)


@pytest.mark.parametrize("name", ["owner/tiny", "owner/tiny@main", f"owner/tiny@{COMMIT}"])
def test_without_the_hub_its_local_cache_answers(hub_cache, tmp_path, name):
    snapshot = add_snapshot(hub_cache, tmp_path)
    assert download_snapshot(name) == snapshot


def test_a_name_that_nobody_has_says_what_was_tried_and_what_else_can_be_given(hub_cache):
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
