from pathlib import Path

import pytest

from minitron_nas.storage.cache import build_once, cache_folder


def test_the_cache_lies_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("MINITRON_NAS_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"


def test_the_cache_lies_in_the_home_folder_by_default(monkeypatch):
    monkeypatch.delenv("MINITRON_NAS_CACHE", raising=False)
    assert cache_folder() == Path.home() / ".cache" / "minitron_nas"


def test_a_folder_is_filled_once(tmp_path):
    calls = []
    for _ in range(2):
        folder = build_once(tmp_path / "a" / "b", lambda partial: calls.append((partial / "x").write_text("1")))
    assert (len(calls), (folder / "x").read_text()) == (1, "1")


def test_a_filling_that_fails_leaves_no_folder_and_can_be_repeated(tmp_path):
    def fail(partial):
        (partial / "half").write_text("1")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_once(tmp_path / "folder", fail)
    assert not (tmp_path / "folder").exists()
    folder = build_once(tmp_path / "folder", lambda _: None)
    assert list(folder.iterdir()) == []
