"""Files of float32 tensors, each verified as it is read: one file of whole tensors, or a part from each process.

    model.safetensors, model.checksums.json                  whole tensors and a checksum of each
    model-0-of-2.safetensors, model-0-of-2.checksums.json    what the first of two processes has written

A part holds whole tensors and pieces of others: numbers that follow each other where the tensor lies in memory. Of
a piece the checksums say which numbers it is, of which shape.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor
from xxhash import xxh3_128

from minitron_nas.errors import CheckpointError
from minitron_nas.storage.sealed import read_sealed, write_sealed
from minitron_nas.storage.weights import safetensors_header

CHECKSUMS = ".checksums.json"
"""How a file of checksums ends."""

FLOAT32_BYTES = 4

_TENSORS = ".safetensors"

Checksums: TypeAlias = Mapping[str, Any]
"""Of each tensor its checksum, or of a piece `shape` of the tensor, `begin` of the numbers and `checksum`."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Numbers of a tensor that one process writes.

    Attributes:
        name: Of the tensor.
        shape: Of the whole tensor.
        numbers: Their places, counted along the flattened tensor.
        get: Returns them, of any shape; called when their turn comes.
    """

    name: str
    shape: tuple[int, ...]
    numbers: range
    get: Callable[[], Tensor]

    @property
    def is_whole(self) -> bool:
        """Whether these are all numbers of the tensor."""
        return len(self.numbers) == prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Of the numbers in a file."""
        return FLOAT32_BYTES * len(self.numbers)

    def copied(self, over: "Piece | None" = None) -> "Piece":
        """Return the piece with numbers in main memory that training does not change.

        Args:
            over: An earlier copy, which is lost; memory that was touched before takes a fifth of the time.
        """
        numbers = torch.empty(len(self.numbers)) if over is None else over.get()
        numbers.copy_(self.get().detach().flatten())
        return replace(self, get=lambda: numbers)


def part_file(folder: Path, stem: str, rank: int, num_processes: int) -> Path:
    """Return the file that a process writes.

    Args:
        folder: Of all processes' files.
        stem: What the tensors are, such as "model".
        rank: The process.
        num_processes: Of all; one writes whole tensors.
    """
    part = f"-{rank}-of-{num_processes}" if num_processes > 1 else ""
    return folder / f"{stem}{part}{_TENSORS}"


def write_tensors(file: Path, pieces: Iterable[Piece]) -> None:
    """Write float32 numbers, and their checksums beside them once they lie on the disk.

    Args:
        file: A safetensors file.
        pieces: Each is asked for, written and freed before the next.
    """
    pieces = list(pieces)
    shapes = [piece.shape if piece.is_whole else (len(piece.numbers),) for piece in pieces]
    sizes = [(piece.name, "F32", shape, piece.num_bytes) for piece, shape in zip(pieces, shapes, strict=True)]
    file.parent.mkdir(parents=True, exist_ok=True)
    checksums: dict[str, Any] = {}
    with open(file, "wb") as handle:
        handle.write(safetensors_header(sizes))
        for piece, shape in zip(pieces, shapes, strict=True):
            values = piece.get().detach().float().cpu().reshape(shape).contiguous().numpy()
            handle.write(values.data)
            checksum = _checksum(values)
            place = {"shape": piece.shape, "begin": piece.numbers.start, "checksum": checksum}
            checksums[piece.name] = checksum if piece.is_whole else place
        handle.flush()
        os.fsync(handle.fileno())
    write_sealed(file.with_suffix(CHECKSUMS), checksums)


@dataclass(frozen=True, slots=True)
class _File:
    """What `write_tensors` has left."""

    path: Path
    checksums: Checksums
    stored: Any  # safetensors annotates none of its methods

    def read(self, name: str) -> Tensor:
        """Return what is here of a tensor, as it was written."""
        entry = self.checksums[name]
        checksum = entry if isinstance(entry, str) else entry["checksum"]
        try:
            tensor: Tensor = self.stored.get_tensor(name)
        except SafetensorError as error:
            raise damaged(self.path, " ".join(str(error).split())) from None
        if tensor.dtype != torch.float32 or _checksum(tensor.numpy()) != checksum:
            raise damaged(self.path, f"its tensor {name} is not what was written there")
        return tensor


@dataclass(frozen=True, slots=True)
class Tensors:
    """Whole tensors by name, put together from all files."""

    files: tuple[_File, ...]

    @property
    def names(self) -> list[str]:
        """Of all tensors, in the order in which they were written."""
        return list(dict.fromkeys(name for file in self.files for name in file.checksums))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return what is said of a tensor that is yet to be read."""
        file = self._holding(name)[0]
        entry = file.checksums[name]
        return tuple(file.stored.get_slice(name).get_shape() if isinstance(entry, str) else entry["shape"])

    def read(self, name: str) -> Tensor:
        """Return a tensor as it was written.

        Raises:
            CheckpointError: If any of it is missing or has changed.
        """
        files = self._holding(name)
        if isinstance(files[0].checksums[name], str):
            return files[0].read(name)
        tensor = torch.empty(prod(self.shape(name)))
        end = 0
        for file in sorted(files, key=lambda file: int(file.checksums[name]["begin"])):
            piece, begin = file.read(name), file.checksums[name]["begin"]
            if begin != end:
                break
            end += piece.numel()
            tensor[begin:end] = piece
        if end != tensor.numel():
            raise damaged(files[0].path, f"not all of tensor {name} is in the files beside it")
        return tensor.reshape(self.shape(name))

    def _holding(self, name: str) -> list[_File]:
        files = [file for file in self.files if name in file.checksums]
        if not files:
            raise damaged(self.files[0].path, f"it holds no tensor {name}")
        return files


@contextmanager
def opened(folder: Path, stem: str) -> Iterator[Tensors]:
    """Open what one process or several have written.

    Args:
        folder: Of the files.
        stem: What the tensors are, such as "model".

    Raises:
        CheckpointError: If a file is missing, cut short or, as far as it is read, not what was written; names it.
    """
    with ExitStack() as stack:
        yield Tensors(tuple(stack.enter_context(_opened(path)) for path in _paths(folder, stem)))


@contextmanager
def _opened(path: Path) -> Iterator[_File]:
    checksums = read_sealed(path.with_suffix(CHECKSUMS))
    if checksums is None:
        raise damaged(path.with_suffix(CHECKSUMS), "it is missing or not what was written there")
    try:
        stored = safe_open(path, framework="pt")
    except (FileNotFoundError, SafetensorError) as error:
        raise damaged(path, " ".join(str(error).split())) from None
    with stored:
        yield _File(path, checksums, stored)


def damaged(file: Path, reason: str) -> CheckpointError:
    """Return the error for a file that is not what was written.

    Args:
        file: Which.
        reason: What is wrong with it.
    """
    return CheckpointError(
        f"{file} cannot be used: {reason}; check the disk, delete the folder {file.parent} and repeat the command"
    )


def _paths(folder: Path, stem: str) -> list[Path]:
    """Return the files that belong together: those of as many processes as the first of them names."""
    parts = sorted(folder.glob(f"{stem}-*-of-*{CHECKSUMS}"))
    if not parts:
        return [part_file(folder, stem, 0, 1)]
    num_processes = int(parts[0].name.removesuffix(CHECKSUMS).rpartition("-")[2])
    return [part_file(folder, stem, rank, num_processes) for rank in range(num_processes)]


def _checksum(values: NDArray[np.float32]) -> str:
    """Of shape and numbers."""
    digest = xxh3_128(str(values.shape).encode())
    digest.update(values.data)
    return digest.hexdigest()
