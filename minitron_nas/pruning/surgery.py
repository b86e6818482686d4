"""Streaming surgery: from a teacher's folder to a student's, never holding more than a few blocks of rows."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from xxhash import xxh3_128_digest

from minitron_nas.errors import CheckpointError
from minitron_nas.families.checks import all_finite, not_finite
from minitron_nas.progress import Progress, silent
from minitron_nas.pruning.slice import Cut, Rows, total_bytes
from minitron_nas.storage.atomic import require_free_bytes, write_json
from minitron_nas.storage.weights import INDEX, SINGLE, in_threads, safetensors_header

_SHARD_BYTES = 5_000_000_000


class _Block(NamedTuple):
    """Some rows of a tensor and where they go in its file."""

    cut: Cut
    rows: Rows
    offset: int


@dataclass(frozen=True, slots=True)
class _Shard:
    """One safetensors file to be: its name, its header and where each tensor's data goes."""

    name: str
    header: bytes
    cuts: tuple[Cut, ...]
    offsets: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return len(self.header) + total_bytes(self.cuts)

    def blocks(self) -> Iterator[_Block]:
        for cut, offset in zip(self.cuts, self.offsets, strict=True):
            row_bytes = cut.num_bytes // max(1, cut.shape[0])
            for rows in cut.blocks():
                yield _Block(cut, rows, offset + rows[0] * row_bytes)


def write_weights(
    cuts: Sequence[Cut], folder: Path, progress: Progress = silent, shard_bytes: int = _SHARD_BYTES
) -> None:
    """Write a student's tensors as safetensors, sharded, and verify them by reading them back.

    Blocks of rows are read, cut and written by a few threads. A shard gets its name when all of it
    lies on the disk and has been read back with the hashes it was written with; shards that have
    their name already are taken over, so that a killed surgery goes on.

    Args:
        cuts: What to write.
        folder: An existing folder that holds nothing but an earlier attempt at the same.
        progress: Told the number of bytes written and verified.
        shard_bytes: Greatest size of a file, unless one tensor is larger.

    Raises:
        DiskSpaceError: If the disk cannot hold the weights.
        CheckpointError: If a value is NaN or infinite, or what is read back differs from what was written.
    """
    shards = _shards(cuts, shard_bytes)
    left = [shard for shard in shards if not (folder / shard.name).is_file()]
    require_free_bytes(folder, sum(shard.num_bytes for shard in left), "the student's weights")
    whole = 2 * total_bytes(cuts)
    done = whole - 2 * sum(total_bytes(shard.cuts) for shard in left)
    for shard in left:
        partial = folder / f".{shard.name}.partial"
        for num_bytes in _write_shard(shard, partial):
            done += num_bytes
            progress(done, whole)
        os.replace(partial, folder / shard.name)
    if len(shards) > 1:
        weight_map = {cut.name: shard.name for shard in shards for cut in shard.cuts}
        write_json(folder / INDEX, {"metadata": {"total_size": total_bytes(cuts)}, "weight_map": weight_map})


def surgery_key(cuts: Sequence[Cut], config: dict[str, Any]) -> str:
    """Name what is being written, so that another attempt goes on only with its own leavings."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for file in sorted({cut.source.file for cut in cuts}):
        status = file.stat()
        digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns}".encode())
    for cut in cuts:
        digest.update(f"{cut.name} {cut.source.offset} {cut.shape} {cut.scaling}".encode())
        for kept in cut.kept:
            digest.update(b"all" if kept is None else kept.tobytes())
    return digest.hexdigest()


def _write_shard(shard: _Shard, partial: Path) -> Iterator[int]:
    """Write and verify one file; yields the bytes that each step has dealt with."""
    blocks = list(shard.blocks())
    with open(partial, "wb+") as handle:
        descriptor = handle.fileno()
        os.pwrite(descriptor, shard.header, 0)
        os.truncate(descriptor, shard.num_bytes)

        def write(block: _Block) -> tuple[bytes, int]:
            bits = block.cut.read(block.rows)
            if not all_finite(bits, block.cut.source.dtype):
                raise not_finite(block.cut.source.file.parent, block.cut.name)
            data = memoryview(bits).cast("B")
            _write_all(descriptor, data, block.offset)
            return xxh3_128_digest(data), data.nbytes

        def reads_back(item: tuple[_Block, tuple[bytes, int]]) -> bool:
            block, (digest, num_bytes) = item
            return xxh3_128_digest(os.pread(descriptor, num_bytes, block.offset)) == digest

        written = []
        for digest, num_bytes in in_threads(write, blocks):
            written.append((digest, num_bytes))
            yield num_bytes
        os.fsync(descriptor)
        with suppress(OSError):  # so that reading back asks the disk; not every file system can drop its cache
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        pairs = list(zip(blocks, written, strict=True))
        for (block, (_, num_bytes)), same in zip(pairs, in_threads(reads_back, pairs), strict=True):
            if not same:
                raise CheckpointError(
                    f"tensor {block.cut.name!r} reads back from {partial} otherwise than it was written; check the disk"
                )
            yield num_bytes


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count


def _shards(cuts: Sequence[Cut], shard_bytes: int) -> list[_Shard]:
    groups: list[list[Cut]] = [[]]
    room = shard_bytes
    for cut in cuts:
        if cut.num_bytes > room and groups[-1]:
            groups.append([])
            room = shard_bytes
        groups[-1].append(cut)
        room -= cut.num_bytes
    names = (
        [SINGLE]
        if len(groups) == 1
        else [f"model-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
    )
    return [_shard(name, tuple(group)) for name, group in zip(names, groups, strict=True)]


def _shard(name: str, cuts: tuple[Cut, ...]) -> _Shard:
    header = safetensors_header((cut.name, cut.source.dtype, cut.shape, cut.num_bytes) for cut in cuts)
    offsets, position = [], len(header)
    for cut in cuts:
        offsets.append(position)
        position += cut.num_bytes
    return _Shard(name, header, cuts, tuple(offsets))
