"""Records come back as they were written, in any order; whatever was not written is found and named."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitron_nas.errors import CacheError
from minitron_nas.storage.shards import Shards

RECORDS = np.random.default_rng(0).integers(0, 256, size=(7, 12), dtype=np.uint8)


def shards_in(folder: Path, records_per_shard: int = 3, seed: int = 5) -> Shards:
    return Shards(folder, len(RECORDS), RECORDS.shape[1], records_per_shard, seed)


def filled(folder: Path, records_per_shard: int = 3, part: int = 2) -> Shards:
    shards = shards_in(folder, records_per_shard)
    for shard in shards.missing():
        records = shards.records(shard)
        starts = range(records.start, records.stop, part)
        shards.write(shard, (RECORDS[start : min(start + part, records.stop)] for start in starts))
    return shards


@given(records_per_shard=st.integers(1, 9), part=st.integers(1, 9), wanted=st.lists(st.integers(0, 6), max_size=12))
def test_records_come_back_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, records_per_shard: int, part: int, wanted: list[int]
) -> None:
    shards = filled(tmp_path_factory.mktemp("shards"), records_per_shard, part)
    assert shards.missing() == []
    assert len(shards.files) == -(-7 // records_per_shard)
    assert np.array_equal(shards.read(wanted), RECORDS[wanted])


def test_a_file_holds_its_records_and_sixteen_bytes_for_each(tmp_path: Path) -> None:
    shards = filled(tmp_path)
    assert [file.name for file in shards.files] == sorted(os.listdir(tmp_path))
    assert [file.stat().st_size for file in shards.files] == [3 * 28, 3 * 28, 28]
    assert [shards.num_bytes(shard) for shard in range(3)] == [3 * 28, 3 * 28, 28]
    assert shards.files[1].read_bytes()[: 3 * 12] == RECORDS[3:6].tobytes()


def test_the_bytes_do_not_depend_on_the_parts_that_they_come_in(tmp_path: Path) -> None:
    one, other = filled(tmp_path / "one", part=1), filled(tmp_path / "other", part=3)
    for file, same in zip(one.files, other.files, strict=True):
        assert file.read_bytes() == same.read_bytes()


@pytest.mark.parametrize("place", [0, 11, 12, 35, 36, 83])
def test_a_flipped_bit_is_found_when_its_record_is_read_and_not_before(tmp_path: Path, place: int) -> None:
    shards = filled(tmp_path)
    content = bytearray(shards.files[1].read_bytes())
    content[place] ^= 4
    shards.files[1].write_bytes(content)
    row = place // 12 if place < 36 else (place - 36) // 16
    others = [record for record in range(7) if record != 3 + row]
    assert np.array_equal(shards.read(others), RECORDS[others])
    with pytest.raises(
        CacheError,
        match=rf"record {3 + row} in .*00001\.shard is not what was written there; check the disk, delete the file",
    ):
        shards.read(range(7))


def test_files_that_changed_places_are_found(tmp_path: Path) -> None:
    shards = filled(tmp_path)
    spare = tmp_path / "spare"
    shards.files[0].rename(spare)
    shards.files[1].rename(shards.files[0])
    spare.rename(shards.files[1])
    assert shards.missing() == []
    for record in range(6):
        with pytest.raises(CacheError, match=rf"record {record} in"):
            shards.read([record])


def test_a_file_of_another_collection_is_found(tmp_path: Path) -> None:
    other = replace(filled(tmp_path), seed=6)
    assert other.missing() == []
    with pytest.raises(CacheError, match="record 2 in"):
        other.read([2])


@pytest.mark.parametrize("size", [None, 0, 83])
def test_a_file_that_is_gone_or_cut_short_is_missing_and_cannot_be_read(tmp_path: Path, size: int | None) -> None:
    shards = filled(tmp_path)
    os.truncate(shards.files[1], size) if size is not None else shards.files[1].unlink()
    assert shards.missing() == [1]
    with pytest.raises(CacheError, match=r"00001\.shard is missing or cut short; delete it and repeat the command"):
        shards.read([4])
    assert np.array_equal(shards.read([0, 6]), RECORDS[[0, 6]])
    assert np.array_equal(filled(tmp_path).read(range(7)), RECORDS)


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    shards = shards_in(tmp_path)

    def killed():
        yield RECORDS[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shards.write(0, killed())
    assert shards.missing() == [0, 1, 2]
    assert os.listdir(tmp_path) == []


def test_what_a_killed_process_left_of_a_file_is_written_over(tmp_path: Path) -> None:
    (tmp_path / ".00000.shard.partial").write_bytes(b"x" * 1000)
    assert np.array_equal(filled(tmp_path).read(range(7)), RECORDS)
    assert len(os.listdir(tmp_path)) == 3


def test_a_disk_that_gives_back_something_else_is_found_when_a_file_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forget(descriptor: int) -> None:
        os.pwrite(descriptor, b"\x00\x01\x02", 13)

    monkeypatch.setattr(os, "fsync", forget)
    with pytest.raises(CacheError, match=r"record 1 in .*00000\.shard\.partial is not what was written there"):
        filled(tmp_path)
    assert os.listdir(tmp_path) == []
