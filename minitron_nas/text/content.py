"""The bytes of text files, unpacked where they are compressed."""

import bz2
import errno
import gzip
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from mmap import ACCESS_READ, ALLOCATIONGRANULARITY, mmap
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any
from weakref import finalize

import datasets
import pyarrow as pa

from minitron_nas.errors import DataError, DiskSpaceError
from minitron_nas.text.formats import compression_of

_BLOCK = 1 << 20
_UTF8_BOM = b"\xef\xbb\xbf"
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"

_UNPACK: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": lambda path: pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"),
}
_BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError)


class Spool:
    """A nameless file for what is unpacked or converted; it goes with the process, however that ends.

    It lies where `datasets` keeps its files, as tables may be large.
    """

    def __init__(self) -> None:
        """Write nothing yet."""
        self._file: IO[bytes] | None = None

    @property
    def descriptor(self) -> int:
        """Of the open file."""
        return self._opened().fileno()

    @contextmanager
    def writing(self, path: Path) -> Iterator[IO[bytes]]:
        """Give the file to write at, at a place that can be memory-mapped.

        Args:
            path: What is unpacked; for the error.

        Raises:
            DiskSpaceError: If the disk is full.
        """
        file = self._opened()
        file.seek(-(-file.seek(0, os.SEEK_END) // ALLOCATIONGRANULARITY) * ALLOCATIONGRANULARITY)
        try:
            yield file
            file.flush()
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            raise DiskSpaceError(
                f"unpacking {path} fills the disk of {datasets.config.HF_DATASETS_CACHE}; make room there, or set "
                "HF_DATASETS_CACHE to a folder with more"
            ) from None

    def _opened(self) -> IO[bytes]:
        if self._file is None:
            folder = Path(datasets.config.HF_DATASETS_CACHE)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._file = TemporaryFile(dir=folder)  # noqa: SIM115  # lives as long as its rows
                finalize(self, self._file.close)
            except OSError as error:
                raise DataError(
                    f"{folder}, where text is unpacked, cannot be written to ({error.strerror}); set HF_DATASETS_CACHE "
                    "to another folder"
                ) from None
        return self._file


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes of a file, without the mark of UTF-8 at their beginning.

    Attributes:
        path: What the user calls the file.
        begin: Where they begin.
        end: Where they end.
        spool: Where they lie; in the file itself without it.
    """

    path: Path
    begin: int
    end: int
    spool: Spool | None = None

    @classmethod
    def of(cls, path: Path, spool: Spool) -> "Content":
        """Unpack a file if it is compressed.

        Args:
            path: The file.
            spool: Gets what is unpacked.

        Raises:
            DataError: If it cannot be unpacked, or is a Git LFS pointer.
            DiskSpaceError: If the disk is full.
        """
        packed = compression_of(path)
        if packed is None:
            content = cls(path, 0, path.stat().st_size)
        else:
            with spool.writing(path) as file:
                begin = file.tell()
                _unpack(path, packed, file)
                content = cls(path, begin, file.tell(), spool)
        with content.reader() as read:
            first = read(content.begin, min(content.begin + len(_LFS_POINTER), content.end))
        if first == _LFS_POINTER:
            raise DataError(f"{path} is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`")
        mark = len(_UTF8_BOM) if first.startswith(_UTF8_BOM) else 0
        return cls(path, content.begin + mark, content.end, content.spool)

    @contextmanager
    def reader(self) -> Iterator[Callable[[int, int], bytes]]:
        """Give a function that returns the bytes from one place to another."""
        if self.spool is not None:
            descriptor = self.spool.descriptor
            yield lambda start, end: os.pread(descriptor, end - start, start)
            return
        with open(self.path, "rb") as handle:
            yield lambda start, end: os.pread(handle.fileno(), end - start, start)

    @contextmanager
    def mapped(self) -> Iterator[tuple[mmap, int]]:
        """Give the bytes memory-mapped, and where the map begins; there must be some."""
        start = self.begin // ALLOCATIONGRANULARITY * ALLOCATIONGRANULARITY
        with (
            open(self.path if self.spool is None else os.dup(self.spool.descriptor), "rb") as handle,
            mmap(handle.fileno(), self.end - start, access=ACCESS_READ, offset=start) as content,
        ):
            yield content, start


def _unpack(path: Path, packed: str, file: IO[bytes]) -> None:
    try:
        source = _UNPACK[packed](path)
    except _BROKEN as error:
        raise _broken(path, packed, error) from None
    with source:
        while block := _next_block(source, path, packed):
            file.write(block)


def _next_block(source: IO[bytes], path: Path, packed: str) -> bytes:
    try:
        return source.read(_BLOCK)
    except _BROKEN as error:
        raise _broken(path, packed, error) from None


def _broken(path: Path, packed: str, error: Exception) -> DataError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{path} cannot be unpacked as {packed} ({reason}); fetch it again, or take it out")
