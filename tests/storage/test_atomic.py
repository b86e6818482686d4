import json
import os
import re
import shutil
from pathlib import Path

import pytest

from minitron_nas.errors import DiskSpaceError, MinitronNasError
from minitron_nas.storage.atomic import (
    read_json,
    require_free_bytes,
    whole_file,
    whole_folder,
    write_json,
    write_text,
)


class KilledError(Exception):
    """Stands for whatever ends a process in the middle of writing."""


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    with whole_file(path) as partial:
        partial.write_text("whole")
        assert not path.exists()
        assert partial.parent == path.parent, "a rename is atomic within one file system only"
    assert path.read_text() == "whole"
    assert os.listdir(path.parent) == ["file.txt"]


def test_an_error_leaves_no_new_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    with pytest.raises(KilledError), whole_file(path) as partial:
        partial.write_text("half")
        raise KilledError
    assert not path.exists()


def test_an_error_leaves_the_old_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(KilledError), whole_file(path) as partial:
        partial.write_text("half")
        raise KilledError
    assert path.read_text() == "old"
    write_text(path, "new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_folder_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder"
    with whole_folder(path) as partial:
        (partial / "deep").mkdir()
        (partial / "deep" / "file.txt").write_text("whole")
        assert not path.exists()
    assert (path / "deep" / "file.txt").read_text() == "whole"
    assert os.listdir(path.parent) == ["folder"]


def test_a_folder_takes_the_place_of_the_old_one_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for name in ("old", "new"):
        with whole_folder(path) as partial:
            (partial / name).touch()
    assert os.listdir(path) == ["new"]


def test_an_error_leaves_the_old_folder_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with whole_folder(path) as partial:
        (partial / "old").touch()
    with pytest.raises(KilledError), whole_folder(path) as partial:
        (partial / "half").touch()
        raise KilledError
    assert os.listdir(path) == ["old"]


def test_what_an_earlier_attempt_left_is_not_carried_over(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with pytest.raises(KilledError), whole_folder(path) as partial:
        (partial / "half").touch()
        raise KilledError
    with whole_folder(path) as partial:
        (partial / "whole").touch()
    assert os.listdir(path) == ["whole"]
    assert os.listdir(tmp_path) == ["folder"]


def test_json_comes_back_as_it_went_in(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None], "a": {"ü": True}}
    write_json(tmp_path / "value.json", value)
    assert read_json(tmp_path / "value.json") == value


def test_the_same_json_is_the_same_bytes_in_the_order_given(tmp_path: Path) -> None:
    write_json(tmp_path / "value.json", {"b": 1, "a": 2})
    assert (tmp_path / "value.json").read_bytes() == b'{\n  "b": 1,\n  "a": 2\n}\n'


def test_a_value_that_json_cannot_hold_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "value.json", 1)
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(tmp_path / "value.json", {"a": object()})
    assert json.loads((tmp_path / "value.json").read_text()) == 1


def test_enough_disk_is_no_error_even_for_a_folder_that_is_yet_to_be_made(tmp_path: Path) -> None:
    require_free_bytes(tmp_path / "not" / "yet", 1, "a test")
    assert not (tmp_path / "not").exists()


def test_too_little_disk_is_refused_with_both_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil._ntuple_diskusage(total=10**10, used=8 * 10**9, free=2 * 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    require_free_bytes(tmp_path, 2 * 10**9, "the cache")
    message = (
        f"the cache needs 2.5 GB in {tmp_path}, which has 2 GB free; free some space or choose another output folder"
    )
    with pytest.raises(DiskSpaceError, match=f"^{re.escape(message)}$") as caught:
        require_free_bytes(tmp_path, 2_500_000_000, "the cache")
    assert isinstance(caught.value, MinitronNasError)
    assert isinstance(caught.value, OSError)


def test_a_folder_takes_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("no folder")
    with whole_folder(tmp_path / "model") as partial:
        (partial / "weights").write_text("new")
    assert (tmp_path / "model" / "weights").read_text() == "new"
