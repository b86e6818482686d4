"""Lazy reading of safetensors folders: headers first, rows of tensors on demand."""

import json
import os
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from minitron_nas.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
BLOCK_BYTES = 32 << 20
"""Bytes of a tensor that are worked on at a time."""

_LENGTH_BYTES = 8
_SAMPLE_BYTES = 64 << 10
_MAX_THREADS = 16
_THREADS_PER_CORE = 4
"""So that one reads or writes while another computes."""
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
    """

    file: Path
    shape: tuple[int, ...]
    dtype: str
    num_bytes: int
    offset: int

    @property
    def itemsize(self) -> int:
        """Bytes of one number."""
        return self.num_bytes // max(1, prod(self.shape))

    @property
    def row_bytes(self) -> int:
        """Bytes of one entry of the first dimension."""
        return self.num_bytes // max(1, self.shape[0])


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that the folder's index names, sorted, or the single one.

    Raises:
        CheckpointError: If there is none, the index cannot be read, or a file that it names is missing.
    """
    index = folder / INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError):
            raise CheckpointError(f"{index} is no safetensors index, or is cut short; copy it again") from None
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(f"{folder} lacks {', '.join(missing)}, which its index names; copy it again")
        return [folder / name for name in names]
    single = folder / SINGLE
    if not single.is_file():
        raise CheckpointError(
            f"{folder} holds no safetensors weights; load the model in transformers and save it again with "
            "save_pretrained, which writes them"
        )
    return [single]


def read_headers(folder: Path) -> dict[str, TensorHeader]:
    """Read the name, shape, dtype and place of every tensor of a folder, without its data.

    Raises:
        CheckpointError: If a file is cut short or too long, or is no safetensors file.
    """
    return {name: header for file in weight_files(folder) for name, header in file_headers(file).items()}


def file_headers(file: Path) -> dict[str, TensorHeader]:
    """Read the same of one safetensors file.

    Raises:
        CheckpointError: If it is cut short or too long, or is no safetensors file.
    """
    try:
        with open(file, "rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(_LENGTH_BYTES))
            content = json.loads(handle.read(length))
    except (struct.error, ValueError, MemoryError, OverflowError):
        raise CheckpointError(f"{file} is not a safetensors file, or is cut short; copy it again") from None
    content.pop("__metadata__", None)
    data = _LENGTH_BYTES + length
    end = max((entry["data_offsets"][1] for entry in content.values()), default=0)
    if (size := file.stat().st_size) != data + end:
        wrong = "cut short" if size < data + end else "longer than its header says"
        raise CheckpointError(f"{file} is {wrong} ({size} bytes instead of {data + end}); copy it again")
    return {
        name: TensorHeader(
            file,
            tuple(entry["shape"]),
            entry["dtype"],
            entry["data_offsets"][1] - entry["data_offsets"][0],
            data + entry["data_offsets"][0],
        )
        for name, entry in content.items()
    }


def read_rows(header: TensorHeader, first: int, last: int) -> Any:
    """Read entries first to last (exclusive) of a tensor's first dimension.

    Plain reads, not a memory map: what was read does not stay in the process' resident set.

    Returns:
        A numpy array of signed integers as wide as the tensor's numbers, shape (last - first, ...).
    """
    count = (last - first) * prod(header.shape[1:])
    flat = np.fromfile(header.file, f"i{header.itemsize}", count, offset=header.offset + first * header.row_bytes)
    return flat.reshape(last - first, *header.shape[1:])


def sample_bytes(header: TensorHeader) -> Iterator[bytes]:
    """Yield the beginning, the middle and the end of a tensor's data; all of it where it is small."""
    pieces = (0, (header.num_bytes - _SAMPLE_BYTES) // 2, header.num_bytes - _SAMPLE_BYTES)
    small = header.num_bytes <= len(pieces) * _SAMPLE_BYTES
    with open(header.file, "rb") as handle:
        for begin in (0,) if small else pieces:
            handle.seek(header.offset + begin)
            yield handle.read(header.num_bytes if small else _SAMPLE_BYTES)


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
    for first in range(0, header.shape[0], step):
        yield first, min(first + step, header.shape[0])


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Apply a function to items on a few threads and yield the results in the items' order.

    A few items beyond the threads are under way at any time, so that memory stays small.
    """
    workers = min(_MAX_THREADS, _THREADS_PER_CORE * (os.cpu_count() or 1))
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
