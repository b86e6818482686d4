"""A full, read-only or lost disk is recognised in the words of every library that writes for us."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minitron_nas.errors import CacheError, DiskSpaceError, MachineError, MinitronNasError, TeacherNotFoundError
from minitron_nas.storage.atomic import whole_file, whole_folder, write_text
from minitron_nas.storage.machine import (
    expanded,
    machine_error,
    naming,
    quoted_fault,
    refusal,
    require_writable,
    says_machine_fault,
)


def of(code: int, *more: Any) -> OSError:
    return OSError(code, os.strerror(code), *more)


@pytest.mark.parametrize(
    "error",
    [
        of(errno.ENOSPC),
        of(errno.EDQUOT, "/data/file"),
        of(errno.EROFS),
        of(errno.EIO),
        of(errno.ESTALE),
        of(errno.ENOTCONN),
        of(errno.EACCES, "/data/file"),
        of(errno.ENOENT, "/data/file"),
        of(errno.EMFILE),
        DiskSpaceError("a student needs 2 GB"),
    ],
    ids=str,
)
def test_an_error_of_the_system_is_the_machines_fault(error: OSError) -> None:
    fault = machine_error(error)
    assert isinstance(fault, MinitronNasError)
    assert isinstance(fault, OSError)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a defect"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        OSError("Can't load tokenizer for 'model'"),
        KeyError("disk"),
        CacheError("record 3 is not what was written"),
        TeacherNotFoundError("there is no teacher"),
    ],
    ids=str,
)
def test_what_a_trial_does_wrong_is_not(error: Exception) -> None:
    assert machine_error(error) is None


def raised(first: Exception, then: Exception, from_it: bool) -> Exception:
    try:
        try:
            raise first
        except type(first) as caught:
            if from_it:
                raise then from caught
            raise then  # noqa: B904  # as libraries do
    except type(then) as error:
        return error


@pytest.mark.parametrize("from_it", [True, False])
def test_a_full_disk_below_an_error_of_a_library_counts(from_it: bool) -> None:
    fault = machine_error(raised(of(errno.ENOSPC), RuntimeError("cannot save"), from_it), Path("/nowhere/file"))
    assert fault is not None
    assert fault.errno == errno.ENOSPC
    assert str(fault).startswith("/nowhere/file: No space left on device (")


def test_a_file_that_was_looked_for_in_vain_before_is_no_fault() -> None:
    assert machine_error(raised(of(errno.ENOENT, "cache"), ValueError("a defect"), from_it=False)) is None


def test_a_copy_names_the_file_that_was_written() -> None:
    assert str(machine_error(OSError(errno.EIO, "Input/output error", "/from", None, "/to"))).startswith("/to: Input/")


WRITERS = {
    "safetensors": "from safetensors.numpy import save_file; save_file({'a': values}, path)",
    "torch": "import torch; torch.save(torch.from_numpy(values), path)",
    "torch into a file": "import torch; torch.save(torch.from_numpy(values), open(path, 'wb'))",
    "arrow": "import pyarrow, pyarrow.parquet as pq; pq.write_table(pyarrow.table({'a': values}), path)",
    "numpy": "values.tofile(path)",
    "python": "open(path, 'wb').write(values.tobytes())",
    "copy": "import shutil; shutil.copyfile(source.name, path)",
}
SLOW_WRITERS = {"datasets": "import datasets; datasets.Dataset.from_dict({'a': values}).save_to_disk(path)"}

LIMITED = """
import json, os, resource, sys, tempfile
import numpy as np
from minitron_nas.storage.machine import machine_error

values, results = np.random.default_rng(0).normal(size=50_000), {}
writers, folder = json.loads(sys.argv[1]), sys.argv[2]
source = tempfile.NamedTemporaryFile()
values.tofile(source)
if sys.argv[3] == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for name, code in writers.items():
    path = os.path.join(folder, name.replace(" ", "-"))
    try:
        exec(code)
        results[name] = "no error"
    except Exception as error:
        results[name] = str(machine_error(error)) if machine_error(error) is not None else repr(error)
print(json.dumps(results))
"""


def words_of_writers(writers: dict[str, str], folder: Path, kind: str) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, json.dumps(writers), str(folder), kind],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_a_limit_on_files_is_recognised_whoever_writes(tmp_path: Path) -> None:
    told = words_of_writers(WRITERS, tmp_path, "limit")
    assert set(told) == set(WRITERS)
    assert {name: words for name, words in told.items() if not words.endswith("and repeat the command")} == {}


@pytest.mark.slow
def test_a_full_disk_is_recognised_whoever_writes(small_disk: Path) -> None:
    told = words_of_writers(WRITERS | SLOW_WRITERS, small_disk, "disk")
    assert {name: words for name, words in told.items() if "free some space" not in words} == {}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a small disk can be mounted by root only")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize("write", [whole_file, whole_folder], ids=["file", "folder"])
def test_whoever_writes_a_whole_file_or_folder_on_a_full_disk_is_told_its_name(
    tmp_path: Path, write: Callable[[Path], Any]
) -> None:
    told = rf"^{tmp_path}/thing: No space left on device \(\d.*free some space"
    with pytest.raises(MachineError, match=told), write(tmp_path / "thing"):
        raise of(errno.ENOSPC)
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_is_none_of_the_disks_passes_as_it_is(tmp_path: Path) -> None:
    error = ValueError("a defect")
    with pytest.raises(ValueError, match="a defect") as caught, naming(tmp_path):
        raise error
    assert caught.value is error


def test_the_first_name_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    with (
        pytest.raises(MachineError, match=rf"^{folder}/file: ") as caught,
        whole_folder(folder),
        whole_file(folder / "file"),
    ):
        raise of(errno.EDQUOT)
    assert str(caught.value).count("repeat the command") == 1


@pytest.mark.parametrize("more", [(), ("new",), ("new", "deep", "er")])
def test_a_folder_that_can_be_written_is_let_through_and_not_made(tmp_path: Path, more: tuple[str, ...]) -> None:
    require_writable(tmp_path.joinpath(*more))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC, errno.EACCES, errno.EDQUOT, errno.EIO])
def test_a_folder_that_cannot_be_written_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(**_: Any) -> None:
        raise of(code)

    monkeypatch.setattr("minitron_nas.storage.machine.TemporaryFile", refuse)
    with pytest.raises(MachineError, match=rf"{tmp_path}/out: {os.strerror(code)}.* and repeat the command$"):
        require_writable(tmp_path / "out")


def test_a_file_in_the_way_of_a_folder_is_refused(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "")
    with pytest.raises(MachineError, match="Not a directory"):
        require_writable(tmp_path / "file" / "out")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (of(errno.EACCES, "/x/report.html"), "/x/report.html: Permission denied; mend that and repeat the command"),
        (OSError("Can't load\ntokenizer"), "Can't load tokenizer; mend that and repeat the command"),
        (ConnectionResetError(errno.ECONNRESET, "reset"), "reset; mend that and repeat the command"),
        (ValueError("a defect"), None),
    ],
    ids=str,
)
def test_what_the_system_refuses_leaves_the_command_in_one_line(error: Exception, line: str | None) -> None:
    assert refusal(error) == line


@pytest.mark.parametrize(
    ("text", "machine"),
    [
        ("ray.exceptions.OutOfDiskError: Local disk is full", True),
        ("  File 'x'\nOSError: [Errno 28] No space left on device", True),
        ("The actor died unexpectedly before finishing this task.", False),
    ],
)
def test_words_of_another_process_are_recognised(text: str, machine: bool) -> None:
    assert says_machine_fault(text) is machine
    assert quoted_fault(f"Traceback:\n{text}\n") == (text.splitlines()[-1] if machine else None)


def test_a_home_folder_stands_for_its_name_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert expanded("~/models") == Path("/home/somebody/models")
    assert expanded("~nobody-of-that-name/models") == Path("~nobody-of-that-name/models")
    assert expanded(Path("models")) == Path("models")
