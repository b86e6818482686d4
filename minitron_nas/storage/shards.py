"""Records of one length, spread over files of bounded size that are whole or absent."""

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128_digest

from minitron_nas.errors import CacheError
from minitron_nas.storage.atomic import whole_file

Bytes: TypeAlias = NDArray[np.uint8]

SHARD_SUFFIX = ".shard"

_CHECKSUM_BYTES = 16


@dataclass(frozen=True, slots=True)
class Shards:
    """A long list of records in a folder; a file holds a range of them, and behind them a checksum of each.

    A checksum is xxh3 with a seed of the collection's and the record's number, so that a record of
    another collection, or in another's place, is as wrong as one with a flipped bit. A file is
    verified when it is finished, by reading it back, and a record whenever it is read: hashing runs at
    many gigabytes a second, and nothing has to be read for its checksum's sake.

    Attributes:
        folder: Where the files lie.
        num_records: Over all files.
        record_bytes: Of one record.
        records_per_shard: Of every file but the last.
        seed: 64 bits that stand for what is stored.
    """

    folder: Path
    num_records: int
    record_bytes: int
    records_per_shard: int
    seed: int

    @property
    def files(self) -> list[Path]:
        """The files of a whole collection, in order."""
        return [self.file(shard) for shard in range(-(-self.num_records // self.records_per_shard))]

    def file(self, shard: int) -> Path:
        """Return a file by its number."""
        return self.folder / f"{shard:05d}{SHARD_SUFFIX}"

    def records(self, shard: int) -> range:
        """Return the numbers of a file's records."""
        start = shard * self.records_per_shard
        return range(start, min(start + self.records_per_shard, self.num_records))

    def num_bytes(self, shard: int) -> int:
        """Return the size of a file."""
        return len(self.records(shard)) * (self.record_bytes + _CHECKSUM_BYTES)

    def missing(self) -> list[int]:
        """Return the files that are absent or cut short."""
        return [shard for shard, file in enumerate(self.files) if not self._has_its_size(shard, file)]

    def write(self, shard: int, parts: Iterable[Bytes]) -> None:
        """Write a file; it appears when all of it lies on the disk and has been read back.

        Args:
            shard: Which file.
            parts: (num_records, record_bytes) each, one after the other the file's records.

        Raises:
            CacheError: If it reads back otherwise than it was written.
        """
        record, checksums = self.records(shard).start, []
        with whole_file(self.file(shard)) as partial:
            with open(partial, "wb") as file:
                for part in parts:
                    for row in part:
                        checksums.append(self._checksum(row, record))
                        record += 1
                    file.write(np.ascontiguousarray(part).data)
                file.write(b"".join(checksums))
                file.flush()
                os.fsync(file.fileno())
                with suppress(OSError):  # so that reading back asks the disk; not every file system can drop its cache
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            mapped = self._map(shard, partial)
            for number in self.records(shard):
                self._verified(mapped, number, partial)

    def read(self, records: Sequence[int]) -> Bytes:
        """Return (len(records), record_bytes), reading these records and no others from the disk.

        Raises:
            CacheError: If a file is missing or a record is not what was written.
        """
        found = np.empty((len(records), self.record_bytes), dtype=np.uint8)
        for place, record in enumerate(records):
            shard = record // self.records_per_shard
            file = self.file(shard)
            if not self._has_its_size(shard, file):
                raise CacheError(
                    f"{file} is missing or cut short; delete it and repeat the command, which writes it again"
                )
            found[place] = self._verified(self._map(shard, file), record, file)
        return found

    def _has_its_size(self, shard: int, file: Path) -> bool:
        return file.is_file() and file.stat().st_size == self.num_bytes(shard)

    def _map(self, shard: int, file: Path) -> Bytes:
        return np.memmap(file, dtype=np.uint8, mode="r", shape=(self.num_bytes(shard),))

    def _verified(self, mapped: Bytes, record: int, file: Path) -> Bytes:
        records = self.records(record // self.records_per_shard)
        row = record - records.start
        values = mapped[row * self.record_bytes : (row + 1) * self.record_bytes]
        place = len(records) * self.record_bytes + row * _CHECKSUM_BYTES
        if self._checksum(values, record) != mapped[place : place + _CHECKSUM_BYTES].tobytes():
            raise CacheError(
                f"record {record} in {file} is not what was written there; check the disk, delete the file and repeat "
                "the command, which writes it again"
            )
        return values

    def _checksum(self, values: Any, record: int) -> bytes:
        return xxh3_128_digest(values, (self.seed + record) % 2**64)
