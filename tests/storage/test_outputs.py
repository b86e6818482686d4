"""Files of a stage: whatever happens to one of them is seen."""

import os
import shutil

import pytest

from minitron_nas.storage import outputs as module
from minitron_nas.storage.atomic import remove
from minitron_nas.storage.outputs import Outputs, from_plain, to_plain


@pytest.fixture
def run(tmp_path):
    (tmp_path / "students" / "110M").mkdir(parents=True)
    (tmp_path / "students" / "110M" / "model.bin").write_bytes(b"weights" * 100)
    (tmp_path / "students" / "110M" / ".lock").touch()
    (tmp_path / "students" / "110M" / "0.shard").write_bytes(b"states" * 10)
    (tmp_path / "tokens.bin").write_bytes(b"tokens")
    return tmp_path


@pytest.fixture
def described(run):
    return Outputs(run).describe([run / "students", run / "tokens.bin"], ".shard")


def test_folders_are_described_file_by_file_in_order_without_locks(described):
    assert [each.path for each in described] == ["students/110M/0.shard", "students/110M/model.bin", "tokens.bin"]
    assert [each.num_bytes for each in described] == [60, 700, 6]
    assert [each.checksum is None for each in described] == [True, False, False]
    assert from_plain(to_plain(described)) == tuple(described)


def flip(path):
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage", [flip, lambda path: path.unlink(), lambda path: os.truncate(path, 5), lambda path: path.write_bytes(b"")]
)
def test_a_file_that_is_not_what_was_written_is_found(run, described, damage):
    damage(run / "students" / "110M" / "model.bin")
    assert [each.path for each in Outputs(run).differing(described)] == ["students/110M/model.bin"]


def test_of_files_with_checksums_of_their_own_the_size_is_looked_at(run, described):
    shard = run / "students" / "110M" / "0.shard"
    flip(shard)
    assert Outputs(run).differing(described) == []
    os.truncate(shard, 59)
    assert [each.path for each in Outputs(run).differing(described)] == ["students/110M/0.shard"]


def test_a_copied_run_is_whole_though_its_times_are_others(run, described, tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy") / "run"
    shutil.copytree(run, copy, copy_function=shutil.copyfile)
    assert Outputs(copy).differing(described) == []


@pytest.fixture
def reads(monkeypatch):
    """The number of times that content was read."""
    monkeypatch.setattr(module, "_ALWAYS_READ_BYTES", 100)
    counted, digest = [], module.xxh3_128

    def counting():
        counted.append(1)
        return digest()

    monkeypatch.setattr(module, "xxh3_128", counting)
    return counted


def test_a_large_file_is_read_once_in_a_process_and_only_where_it_is_needed(run, reads):
    written = Outputs(run)
    weights = written.describe([run / "students" / "110M" / "model.bin"])
    assert len(reads) == 1
    written.differing(weights, thorough=True)
    assert len(reads) == 1, "what this process wrote it need not read again"
    later = Outputs(run)
    later.differing(weights)
    assert len(reads) == 1, "to skip a stage no large file is read"
    for _ in range(2):
        later.differing(weights, thorough=True)
    assert len(reads) == 2


def test_a_large_file_whose_time_did_not_change_is_found_out_before_it_is_used(run, reads):
    path = run / "students" / "110M" / "model.bin"
    weights, status = Outputs(run).describe([path]), path.stat()
    flip(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert Outputs(run).differing(weights) == []
    assert Outputs(run).differing(weights, thorough=True) == weights


def test_a_small_file_is_always_read(run, reads):
    tokens, outputs = run / "tokens.bin", Outputs(run)
    described, status = outputs.describe([tokens]), tokens.stat()
    flip(tokens)
    os.utime(tokens, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert outputs.differing(described) == described


def test_what_is_gone_need_not_be_removed(run):
    remove(run / "tokens.bin")
    remove(run / "absent")
    assert not (run / "tokens.bin").exists()


def test_a_folder_where_a_file_belongs_is_removed(tmp_path):
    (tmp_path / "train" / "deep").mkdir(parents=True)
    remove(tmp_path / "train")
    assert not (tmp_path / "train").exists()
