"""Lazy reading of safetensors folders: headers first, rows of tensors on demand."""

import json
import os
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.lib.stride_tricks import as_strided
from safetensors import SafetensorError, safe_open

from minitron_nas.errors import CheckpointError
from minitron_nas.memory import available_memory
from minitron_nas.storage.foreign import other_kind, plain_name, read_object, what_lies_instead

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
BLOCK_BYTES = 32 << 20
"""Bytes of a tensor that are worked on at a time."""

_LENGTH_BYTES = 8
_MOST_HEADER_BYTES = 100_000_000
"""As many as safetensors reads."""
_SAMPLE_BYTES = 64 << 10
_DIMS_OF_MATRIX = 2
_MAX_THREADS = 16
_THREADS_PER_CORE = 4
"""So that one reads or writes while another computes."""
_BYTES_OF_A_THREAD = 8 * BLOCK_BYTES
"""What one takes at most: a block, its numbers in 32 bits, and what is made of them."""
_MEMORY_FRACTION = 0.5
"""Of the memory that there is, for all threads."""
_AHEAD = 1

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """What a safetensors header says of one tensor.

    Attributes:
        file: The file that holds it.
        shape: Its shape.
        dtype: The format's name of its type, such as BF16.
        num_bytes: Its size.
        offset: Where its data begins, in bytes from the beginning of the file.
        pitch: Of what lies the other way round, how many numbers lie between one entry of the last dimension and the
            next, where those of the dimension before are neighbours; 0 of all other tensors.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: str
    num_bytes: int
    offset: int
    pitch: int = 0

    @property
    def itemsize(self) -> int:
        """Bytes of one number."""
        return self.num_bytes // max(1, prod(self.shape))

    @property
    def num_rows(self) -> int:
        """Entries of the first dimension; 1 of a tensor without dimensions."""
        return next(iter(self.shape), 1)

    @property
    def row_bytes(self) -> int:
        """Bytes of one entry of the first dimension."""
        return self.num_bytes // max(1, self.num_rows)

    @property
    def span_bytes(self) -> int:
        """Bytes in the file from its first number to its last, with what lies between."""
        if not self.pitch:
            return self.num_bytes
        return ((self.shape[-1] - 1) * self.pitch + self.shape[-2]) * self.itemsize * prod(self.shape[:-2])

    def turned(self) -> "TensorHeader":
        """Return a stack of matrices with the dimensions of each the other way round; its bytes stay where they are."""
        *stack, rows, columns = self.shape
        return replace(self, shape=(*stack, columns, rows), pitch=columns)

    def slice(self, number: int) -> "TensorHeader":
        """Return one entry of the first dimension as a tensor of its own."""
        begin = self.offset + number * self.row_bytes
        return replace(self, shape=self.shape[1:], num_bytes=self.row_bytes, offset=begin)

    def rows(self, first: int, last: int) -> "TensorHeader":
        """Return some entries of the first dimension, which lie one behind the other, as a tensor of their own.

        Args:
            first: The first of them.
            last: The one behind the last.
        """
        count, step = last - first, self.itemsize if self.pitch else self.row_bytes
        size, begin = count * self.row_bytes, self.offset + first * step
        return replace(self, shape=(count, *self.shape[1:]), num_bytes=size, offset=begin)


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold a model's weights, as `from_pretrained` chooses them.

    `model.safetensors` comes first, whatever index or shards lie beside it; without it the index decides, and
    shards that it does not name are no part of the model.

    Raises:
        CheckpointError: If there is neither, the index cannot be read, or a file that it names is missing.
    """
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file():
        return [single]
    if not index.is_file():
        instead = what_lies_instead(folder) or (
            "holds no safetensors weights; load the model in transformers and save it again with save_pretrained, "
            "which writes them"
        )
        raise CheckpointError(f"{folder} {instead}")
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} is no safetensors index, or is cut short; copy it again")
    if odd := [name for name in weight_map.values() if not plain_name(name)]:
        raise CheckpointError(f"{index} names {odd[0]!r}, which is no file inside {folder}; copy the index again")
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder} lacks {', '.join(missing)}, which its index names; copy it again")
    return [folder / name for name in names]


def read_headers(folder: Path) -> dict[str, TensorHeader]:
    """Read the name, shape, dtype and place of every tensor of a folder, without its data.

    Raises:
        CheckpointError: If a file is cut short or too long, is no safetensors file, or holds a tensor that
            another holds, too.
    """
    found: dict[str, TensorHeader] = {}
    for file in weight_files(folder):
        headers = file_headers(file)
        if twice := sorted(found.keys() & headers.keys()):
            raise CheckpointError(
                f"{found[twice[0]].file} and {file.name} both hold tensor {twice[0]!r}; which of them counts is up to "
                "who reads it: save the model again into an empty folder"
            )
        found |= headers
    return found


def file_headers(file: Path) -> dict[str, TensorHeader]:
    """Read the same of one safetensors file.

    safetensors' own library looks first at the whole header: whether tensors share bytes, leave some to nobody,
    or say a type that their bytes contradict.

    Raises:
        CheckpointError: If it is cut short or too long, or is no safetensors file.
    """
    try:
        with safe_open(file, framework="numpy"):
            pass
        data, content = _header_of(file)
        return {
            name: TensorHeader(file, tuple(entry["shape"]), entry["dtype"], end - begin, data + begin)
            for name, entry in content.items()
            for begin, end in [entry["data_offsets"]]
        }
    except _TwiceError as error:
        raise CheckpointError(f"{file} names tensor {error.args[0]!r} twice; save the model again") from None
    except (SafetensorError, OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(_fault(file, str(error))) from None


def is_whole(file: Path) -> bool:
    """Whether a safetensors file is there, of the length that its header says.

    Args:
        file: What was written whole, and may have been cut since.
    """
    try:
        with safe_open(file, framework="numpy"):
            return True
    except (SafetensorError, OSError):
        return False


class _TwiceError(Exception):
    """Carries a key that one JSON object has twice."""


def _header_of(file: Path) -> tuple[int, dict[str, Any]]:
    """Return where a file's data begins, and what its header says of each tensor."""
    with open(file, "rb") as handle:
        (length,) = struct.unpack("<Q", handle.read(_LENGTH_BYTES))
        if length > _MOST_HEADER_BYTES:
            raise ValueError(f"a header of {length} bytes")
        content = json.loads(handle.read(length), object_pairs_hook=_once)
    content.pop("__metadata__", None)
    return _LENGTH_BYTES + length, content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _TwiceError(next(name for name in names if names.count(name) > 1))
    return found


def _span(entry: dict[str, Any]) -> tuple[int, int]:
    begin, end = entry["data_offsets"]
    return int(begin), int(end)


def _fault(file: Path, reason: str) -> str:
    """Say what is wrong with a file that safetensors refuses."""
    if kind := other_kind(file):
        return f"{file} is {kind}"
    size = file.stat().st_size if file.is_file() else 0
    try:
        data, content = _header_of(file)
        spans = sorted((*_span(entry), name) for name, entry in content.items())
        end = data + max((last for _, last, _ in spans), default=0)
    except (struct.error, _TwiceError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return f"{file} is not a safetensors file, or is cut short ({reason}); copy it again"
    if size < end:
        return f"{file} is cut short ({size} bytes instead of {end}); copy it again"
    for (_, last, name), (first, _, other) in pairwise(spans):
        if first < last:
            return f"{file}: tensors {name!r} and {other!r} share bytes; copy it again"
    if size > end:
        return f"{file} is longer than its header says ({size} bytes instead of {end}); copy it again"
    return f"{file} is refused by safetensors ({reason}); copy it again"


def read_rows(header: TensorHeader, first: int, last: int) -> Any:
    """Read entries first to last (exclusive) of a tensor's first dimension.

    Plain reads, not a memory map: what was read does not stay in the process' resident set.

    Returns:
        A numpy array of signed integers as wide as the tensor's numbers, shape (last - first, ...).
    """
    if header.pitch and len(header.shape) == _DIMS_OF_MATRIX:
        return _turned_rows(header.rows(first, last))
    count = (last - first) * prod(header.shape[1:])
    flat = np.fromfile(header.file, f"i{header.itemsize}", count, offset=header.offset + first * header.row_bytes)
    return flat.reshape(last - first, *header.shape[1:])


def _turned_rows(header: TensorHeader) -> Any:
    """Read a matrix that lies the other way round, and what lies between its numbers with it."""
    rows, columns = header.shape
    flat = np.fromfile(header.file, f"i{header.itemsize}", header.span_bytes // header.itemsize, offset=header.offset)
    steps = (flat.itemsize, header.pitch * flat.itemsize)
    return np.ascontiguousarray(as_strided(flat, (rows, columns), steps))


def sample_bytes(header: TensorHeader) -> Iterator[bytes]:
    """Yield the beginning, the middle and the end of a tensor's data; all of it where it is small."""
    pieces = (0, (header.span_bytes - _SAMPLE_BYTES) // 2, header.span_bytes - _SAMPLE_BYTES)
    small = header.span_bytes <= len(pieces) * _SAMPLE_BYTES
    with open(header.file, "rb") as handle:
        for begin in (0,) if small else pieces:
            handle.seek(header.offset + begin)
            yield handle.read(header.span_bytes if small else _SAMPLE_BYTES)


def float_rows(header: TensorHeader, first: int, last: int) -> Any:
    """Read rows of a tensor of type F64, F32, F16 or BF16 as a float32 or wider numpy array."""
    bits = read_rows(header, first, last)
    if header.dtype == "BF16":
        return (bits.view("u2").astype("u4") << 16).view("f4")
    values = bits.view(f"f{header.itemsize}")
    return values.astype("f4") if header.dtype == "F16" else values


def safetensors_header(tensors: Iterable[tuple[str, str, tuple[int, ...], int]]) -> bytes:
    """Return the beginning of a safetensors file up to its data.

    Args:
        tensors: (name, type, shape, bytes) of every tensor, in the order of their data.
    """
    content: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, dtype, shape, num_bytes in tensors:
        content[name] = {"dtype": dtype, "shape": shape, "data_offsets": (begin, begin + num_bytes)}
        begin += num_bytes
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    return struct.pack("<Q", len(text)) + text


def row_blocks(header: TensorHeader) -> Iterator[tuple[int, int]]:
    """Yield (first, last) rows that cut a tensor into blocks of at most `BLOCK_BYTES`, but at least a row."""
    step = max(1, BLOCK_BYTES // max(1, header.row_bytes))
    for first in range(0, header.num_rows, step):
        yield first, min(first + step, header.num_rows)


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Apply a function to items on a few threads and yield the results in the items' order.

    A few items beyond the threads are under way at any time, so that memory stays small; where there is little of it,
    so are the threads.
    """
    by_memory = int(_MEMORY_FRACTION * available_memory()) // _BYTES_OF_A_THREAD
    workers = max(min(_MAX_THREADS, _THREADS_PER_CORE * (os.cpu_count() or 1), by_memory), 1)
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > _AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
