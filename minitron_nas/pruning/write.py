"""Streaming surgery: from a teacher's folder to a student's, never holding more than a few blocks of rows."""

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from xxhash import xxh3_128_digest

from minitron_nas.architecture.layout import stored_tensor
from minitron_nas.errors import CheckpointError
from minitron_nas.models.checks import all_finite, not_finite
from minitron_nas.progress import Progress, silent
from minitron_nas.pruning.parts import Part, Rows, num_bytes, total_bytes
from minitron_nas.storage.atomic import require_free_bytes, write_json
from minitron_nas.storage.weights import INDEX, SINGLE, in_threads, is_whole, safetensors_header

_SHARD_BYTES = 5_000_000_000


_Tensor: TypeAlias = tuple[Part, ...]
"""What makes up one tensor of a file: a part, or the slices of a stack one after the other."""


class _Block(NamedTuple):
    """Some rows of a tensor and where they go in its file."""

    part: Part
    rows: Rows
    offset: int


@dataclass(frozen=True, slots=True)
class _Shard:
    """One safetensors file to be: its name, its header and where each part's data goes."""

    name: str
    header: bytes
    parts: tuple[Part, ...]
    offsets: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return len(self.header) + total_bytes(self.parts)

    def blocks(self) -> Iterator[_Block]:
        for part, offset in zip(self.parts, self.offsets, strict=True):
            row_bytes = num_bytes(part) // max(1, next(iter(part.shape), 1))
            for rows in part.blocks():
                yield _Block(part, rows, offset + rows[0] * row_bytes)


def write_weights(
    parts: Sequence[Part],
    folder: Path,
    progress: Progress = silent,
    shard_bytes: int = _SHARD_BYTES,
    as_they_are: Collection[str] = (),
) -> None:
    """Write a student's tensors as safetensors, sharded, and verify them by reading them back.

    Blocks of rows are read, cut and written by a few threads. A shard gets its name when all of it
    lies on the disk and has been read back with the hashes it was written with; shards that have
    their name already are taken over, so that a killed surgery goes on.

    Args:
        parts: What to write; the slices of a stack follow one another, and become one tensor.
        folder: An existing folder that holds nothing but an earlier attempt at the same.
        progress: Told the number of bytes written and verified.
        shard_bytes: Greatest size of a file, unless one tensor is larger.
        as_they_are: Names of tensors that may hold NaN and infinity.

    Raises:
        DiskSpaceError: If the disk cannot hold the weights.
        CheckpointError: If another value is NaN or infinite, or what is read back differs from what was written.
    """
    shards = _shards(parts, shard_bytes)
    left = [shard for shard in shards if not is_whole(folder / shard.name)]
    require_free_bytes(folder, sum(shard.num_bytes for shard in left), "the student's weights")
    whole = 2 * total_bytes(parts)
    done = whole - 2 * sum(total_bytes(shard.parts) for shard in left)
    for shard in left:
        partial = folder / f".{shard.name}.partial"
        for count in _write_shard(shard, partial, as_they_are):
            done += count
            progress(done, whole)
        os.replace(partial, folder / shard.name)
    if len(shards) > 1:
        weight_map = {stored_tensor(part.name): shard.name for shard in shards for part in shard.parts}
        write_json(folder / INDEX, {"metadata": {"total_size": total_bytes(parts)}, "weight_map": weight_map})


def surgery_key(parts: Sequence[Part], config: dict[str, Any]) -> str:
    """Name what is being written, so that another attempt goes on only with its own leavings.

    A file that tensors come from counts by its name, size and time, so that one that was written again
    begins another surgery, whatever it holds.

    Args:
        parts: What is written.
        config: The content of the student's `config.json`.
    """
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for part in parts:
        part.update(digest)
    return digest.hexdigest()


def _write_shard(shard: _Shard, partial: Path, as_they_are: Collection[str]) -> Iterator[int]:
    """Write and verify one file; yields the bytes that each step has dealt with."""
    blocks = list(shard.blocks())
    with open(partial, "wb+") as handle:
        descriptor = handle.fileno()
        os.pwrite(descriptor, shard.header, 0)
        os.truncate(descriptor, shard.num_bytes)

        def write(block: _Block) -> tuple[bytes, int]:
            bits = block.part.read(block.rows)
            if block.part.name not in as_they_are and not all_finite(bits, block.part.dtype):
                raise not_finite(block.part.origin, block.part.name)
            data = bits.data.cast("B")
            _write_all(descriptor, data, block.offset)
            return xxh3_128_digest(data), data.nbytes

        def reads_back(item: tuple[_Block, tuple[bytes, int]]) -> bool:
            block, (digest, length) = item
            return xxh3_128_digest(os.pread(descriptor, length, block.offset)) == digest

        written = []
        for digest, length in in_threads(write, blocks):
            written.append((digest, length))
            yield length
        os.fsync(descriptor)
        with suppress(OSError):  # so that reading back asks the disk; not every file system can drop its cache
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        pairs = list(zip(blocks, written, strict=True))
        for (block, (_, length)), same in zip(pairs, in_threads(reads_back, pairs), strict=True):
            if not same:
                raise CheckpointError(
                    f"tensor {block.part.name!r} reads back from {partial} otherwise than it was written; "
                    "check the disk"
                )
            yield length


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count


def _shards(parts: Sequence[Part], shard_bytes: int) -> list[_Shard]:
    groups: list[list[_Tensor]] = [[]]
    room = shard_bytes
    for _, slices in groupby(parts, lambda part: stored_tensor(part.name)):
        tensor = tuple(slices)
        if total_bytes(tensor) > room and groups[-1]:
            groups.append([])
            room = shard_bytes
        groups[-1].append(tensor)
        room -= total_bytes(tensor)
    names = (
        [SINGLE]
        if len(groups) == 1
        else [f"model-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
    )
    return [_shard(name, group) for name, group in zip(names, groups, strict=True)]


def _shard(name: str, tensors: Sequence[_Tensor]) -> _Shard:
    header = safetensors_header(map(_described, tensors))
    parts = tuple(part for tensor in tensors for part in tensor)
    offsets, position = [], len(header)
    for part in parts:
        offsets.append(position)
        position += num_bytes(part)
    return _Shard(name, header, parts, tuple(offsets))


def _described(tensor: _Tensor) -> tuple[str, str, tuple[int, ...], int]:
    """Return the name, type, shape and bytes of a tensor of a file."""
    first, name = tensor[0], stored_tensor(tensor[0].name)
    shape = first.shape if first.name == name else (len(tensor), *first.shape)
    return name, first.dtype, shape, total_bytes(tensor)
