"""Whether the header of a GGUF file fits into the file, looked at before a reader follows what it says."""

import struct
from math import prod
from mmap import ACCESS_READ, mmap
from pathlib import Path

_FIRST = 4  # behind the magic
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a plain value, by the number of its type."""

_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS = 8
_MOST_ELEMENTS = 2**62


def check_header(file: Path) -> None:
    """Refuse a header that does not end inside its file, without reading a value of it.

    Args:
        file: Begins as a GGUF file.

    Raises:
        ValueError: Says what does not fit, and where.

    Source: the GGUF specification of ggml, docs/gguf.md.
    """
    with file.open("rb") as handle, mmap(handle.fileno(), 0, access=ACCESS_READ) as content:
        cursor = _Cursor(content)
        num_tensors, num_keys = cursor.number("Q"), cursor.number("Q")
        for _ in range(num_keys):
            cursor.string()
            cursor.value(cursor.number("I"))
        for _ in range(num_tensors):
            cursor.tensor()


class _Cursor:
    """A place in a file that only moves forward, and never beyond the end."""

    def __init__(self, content: mmap) -> None:
        self._content, self._at, self._order = content, _FIRST, "<"
        if self.number("I") & 0xFFFF == 0:  # the version, written by a machine of the other byte order
            self._order = ">"

    def skip(self, num_bytes: int) -> None:
        if num_bytes > (left := len(self._content) - self._at):
            raise ValueError(
                f"at byte {self._at:,} its header says that {num_bytes:,} bytes follow, and {left:,} are left"
            )
        self._at += num_bytes

    def number(self, kind: str) -> int:
        before = self._at
        self.skip(struct.calcsize(f"<{kind}"))
        (value,) = struct.unpack_from(self._order + kind, self._content, before)
        return int(value)

    def string(self) -> None:
        self.skip(self.number("Q"))

    def value(self, kind: int) -> None:
        if kind != _ARRAY:
            self._plain(kind)
            return
        kind, count = self.number("I"), self.number("Q")
        if kind in _SIZES:
            self.skip(_SIZES[kind] * count)
            return
        for _ in range(count):
            self._plain(kind)

    def tensor(self) -> None:
        self.string()
        if (dimensions := self.number("I")) > _MOST_DIMENSIONS:
            raise ValueError(f"at byte {self._at:,} its header tells of a tensor of {dimensions:,} dimensions")
        if (count := prod(self.number("Q") for _ in range(dimensions))) > _MOST_ELEMENTS:
            raise ValueError(f"at byte {self._at:,} its header tells of a tensor of {count:,} elements")
        self.number("I")
        if (begin := self.number("Q")) > len(self._content):
            raise ValueError(
                f"its header tells of a tensor at byte {begin:,} of a file of {len(self._content):,} bytes"
            )

    def _plain(self, kind: int) -> None:
        if kind == _STRING:
            self.string()
        elif kind in _SIZES:
            self.skip(_SIZES[kind])
        else:
            raise ValueError(f"at byte {self._at:,} its header holds a value of type {kind}, which is none here")
