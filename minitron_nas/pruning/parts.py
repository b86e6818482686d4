"""The tensors of a student, each of which can be read some rows at a time, as stored bits."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Protocol, Self, TypeAlias, TypeGuard

import numpy as np
import torch
from torch import Tensor

from minitron_nas.models.stock import DTYPES, Bits
from minitron_nas.pruning.compensate import Scaling
from minitron_nas.pruning.mix import Digest, Kept, Mix
from minitron_nas.storage.weights import TensorHeader, read_rows, row_blocks

Rows: TypeAlias = tuple[int, int]
"""First and last (exclusive) of the student's rows."""

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_UNSCALED = Scaling()


class Part(Protocol):
    """One tensor of a student, to be had some rows at a time."""

    @property
    def name(self) -> str:
        """Of the student's tensor."""

    @property
    def dtype(self) -> str:
        """Its type, as safetensors names it."""

    @property
    def itemsize(self) -> int:
        """Bytes of one of its numbers."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def origin(self) -> Path:
        """The folder whose values it is made of."""

    def blocks(self) -> Iterator[Rows]:
        """Yield its rows in blocks."""

    def read(self, rows: Rows) -> Bits:
        """Return a block of it, (num_rows, ...)."""

    def update(self, digest: Digest) -> None:
        """Feed a hash with what decides its values."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A tensor of a student that comes out of one of the teacher's; of numbers of any type where it is that one.

    Attributes:
        name: Of the student's tensor.
        source: Where the teacher's lies.
        kept: What stays of each dimension.
        scaling: What makes up for constants that depend on a pruned size.
    """

    name: str
    source: TensorHeader
    kept: tuple[Kept, ...]
    scaling: Scaling = _UNSCALED

    @classmethod
    def all_of(cls, name: str, source: TensorHeader) -> Self:
        """Return a tensor that is taken over as it is.

        Args:
            name: Of the tensor that is written.
            source: Where it lies.
        """
        return cls(name, source, (None,) * len(source.shape))

    @property
    def dtype(self) -> str:
        """Type of both tensors."""
        return self.source.dtype

    @property
    def itemsize(self) -> int:
        """Bytes of a number of both."""
        return self.source.itemsize

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the student's tensor."""
        return tuple(
            size if kept is None else kept.shape[-1] for size, kept in zip(self.source.shape, self.kept, strict=True)
        )

    @property
    def origin(self) -> Path:
        """The teacher's folder."""
        return self.source.file.parent

    def blocks(self) -> Iterator[Rows]:
        """Yield the student's rows, each block out of one block of the teacher's where rows are not mixed."""
        kept = next(iter(self.kept), None)
        for first, last in row_blocks(self.source):
            if isinstance(kept, np.ndarray):
                first, last = np.searchsorted(kept, (first, last)).tolist()  # noqa: PLW2901
            elif kept is not None:
                first, last = min(first, self.shape[0]), min(last, self.shape[0])  # noqa: PLW2901
            if first < last:
                yield first, last

    def read(self, rows: Rows) -> Bits:
        """Return a block of the student's tensor, (num_rows, ...)."""
        kept, *others = self.kept or (None,)
        mixes = [each for each in others if _mixes(each)]
        if _mixes(kept):
            wide = self._mixed_rows(kept.matrix()[:, slice(*rows)])
        else:
            bits = self._selected(rows)
            if not mixes and self.scaling.factor == 1:
                return bits
            wide = self._wide(bits)
        for mix in mixes:
            wide = wide @ mix.matrix().to(wide.dtype)
        return self._scaled(wide)

    def update(self, digest: Digest) -> None:
        """Feed a hash with what decides its values; the source's file counts by its name, size and time."""
        status = self.source.file.stat()
        about = (self.name, self.source.file.name, status.st_size, status.st_mtime_ns, self.source.offset)
        digest.update(f"{about} {self.shape} {self.scaling}".encode())
        for kept in self.kept:
            if isinstance(kept, np.ndarray):
                digest.update(kept.tobytes())
            elif kept is not None:
                kept.update(digest)
            else:
                digest.update(b"all")

    def _mixed_rows(self, matrix: Tensor) -> Tensor:
        """Rows that are mixtures of all the teacher's rows, (num_rows, ...)."""
        mixed = torch.zeros(())
        for first, last in row_blocks(self.source):
            wide = self._wide(self._selected_columns(read_rows(self.source, first, last)))
            mixed = mixed + matrix[first:last].to(wide.dtype).T @ wide
        return mixed

    def _selected(self, rows: Rows) -> Bits:
        kept = next(iter(self.kept), None)
        if not isinstance(kept, np.ndarray):
            return self._selected_columns(read_rows(self.source, *rows))
        wanted = kept[slice(*rows)]
        first = int(wanted[0])
        block: Bits = read_rows(self.source, first, int(wanted[-1]) + 1)
        if len(block) != len(wanted):
            block = block.take(wanted - first, axis=0)
        return self._selected_columns(block)

    def _selected_columns(self, block: Bits) -> Bits:
        for axis, kept in enumerate(self.kept[1:], start=1):
            if isinstance(kept, np.ndarray):
                block = block.take(kept, axis=axis)
        return block

    def _wide(self, bits: Bits) -> Tensor:
        stored = torch.from_numpy(bits).view(DTYPES[self.dtype])
        return stored if stored.dtype == torch.float64 else stored.float()

    def _scaled(self, wide: Tensor) -> Bits:
        factor, offset = self.scaling
        if factor != 1:
            wide = (wide.double() + offset) * factor - offset
        return _stored(wide, self.dtype)


@dataclass(frozen=True, slots=True)
class Vector:
    """A tensor of a student with one dimension that no tensor of the teacher holds: a norm of a rotated model.

    Attributes:
        name: Of the student's tensor.
        dtype: Its type, as safetensors names it.
        values: (size,), float64.
        origin: The teacher's folder.
    """

    name: str
    dtype: str
    values: Tensor
    origin: Path

    @property
    def itemsize(self) -> int:
        """Bytes of one of its numbers."""
        return DTYPES[self.dtype].itemsize

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.values.shape)

    def blocks(self) -> Iterator[Rows]:
        """Yield all of it."""
        yield 0, len(self.values)

    def read(self, rows: Rows) -> Bits:
        """Return some of it, (num_rows,)."""
        return _stored(self.values[slice(*rows)], self.dtype)

    def update(self, digest: Digest) -> None:
        """Feed a hash with its values."""
        digest.update(self.name.encode() + self.values.numpy().tobytes())


def whole(part: Part) -> Tensor:
    """Return all of a tensor of a student, in the type that it is stored in."""
    rows = torch.from_numpy(part.read((0, next(iter(part.shape), 1))))
    return rows.view(DTYPES[part.dtype]).view(part.shape)


def entries(part: Part, indices: Tensor) -> Tensor:
    """Return some entries of a tensor's first dimension, of which no more than a block lies in memory at a time.

    Args:
        part: The tensor.
        indices: (num_kept,), ascending.

    Returns:
        (num_kept, ...), in the type that the tensor is stored in.
    """
    wanted, pieces = indices.numpy(), []
    for first, last in part.blocks():
        begin, end = np.searchsorted(wanted, (first, last)).tolist()
        if begin < end:
            pieces.append(part.read((first, last))[wanted[begin:end] - first])
    return torch.from_numpy(np.concatenate(pieces)).view(DTYPES[part.dtype])


def num_bytes(part: Part) -> int:
    """Return the bytes of a tensor of a student."""
    return prod(part.shape) * part.itemsize


def total_bytes(parts: Iterable[Part]) -> int:
    """Return the bytes of all tensors of a student."""
    return sum(num_bytes(part) for part in parts)


def _mixes(kept: Kept) -> TypeGuard[Mix]:
    return kept is not None and not isinstance(kept, np.ndarray)


def _stored(wide: Tensor, dtype: str) -> Bits:
    values = wide.to(DTYPES[dtype]).contiguous()
    bits: Bits = values.view(_BITS[values.element_size()]).numpy()
    return bits
