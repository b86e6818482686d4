"""`HiddenStates`: what passes between two layers, for every calibration sequence."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import BufferedRandom
from math import prod
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Self

import torch
from torch import Tensor

from minitron_nas.memory import available_memory
from minitron_nas.storage.atomic import require_free_bytes


class HiddenStates:
    """Hidden states of all sequences, read and written batch by batch, in memory or in a file.

    The file is read and written, not mapped, because mapped pages count as resident. It has no name,
    so that it goes with the process.

    Attributes:
        dtype: Of the states.
    """

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype, file: BufferedRandom | None = None) -> None:
        """Start with zeros.

        Args:
            shape: (num_sequences, seq_len, hidden_size).
            dtype: Of the states.
            file: An empty binary file that is open for reading and writing; memory by default.
        """
        self.dtype = dtype
        self._shape, self._file = shape, file
        if file is None:
            self._states = torch.zeros(shape, dtype=dtype)
        else:
            os.posix_fallocate(file.fileno(), 0, prod(shape) * dtype.itemsize)  # so that the disk counts it as taken

    @classmethod
    @contextmanager
    def make(
        cls, shape: tuple[int, int, int], dtype: torch.dtype, folder: Path, memory_fraction: float = 1 / 8
    ) -> Iterator[Self]:
        """Keep states for the duration of the block, in memory where that takes little of it.

        Args:
            shape: (num_sequences, seq_len, hidden_size).
            dtype: Of the states.
            folder: On the disk that takes the file; holds nothing afterwards.
            memory_fraction: Of the available memory; what is larger goes to a file.

        Raises:
            DiskSpaceError: If the disk cannot hold the file.
        """
        num_bytes = prod(shape) * dtype.itemsize
        with ExitStack() as stack:
            file = None
            if num_bytes > memory_fraction * available_memory():
                require_free_bytes(folder, num_bytes, "hidden states of the text")
                file = stack.enter_context(TemporaryFile(dir=folder))
            yield cls(shape, dtype, file)

    def read(self, indices: Tensor) -> Tensor:
        """Return the states of some sequences, (batch, seq_len, hidden_size), on the CPU.

        Args:
            indices: (batch,), consecutive.
        """
        first, count = int(indices[0]), len(indices)
        if self._file is None:
            return self._states[first : first + count]
        states = torch.empty((count, *self._shape[1:]), dtype=self.dtype)
        self._file.seek(first * self._sequence_bytes)
        self._file.readinto(_bytes_of(states))
        return states

    def write(self, indices: Tensor, states: Tensor) -> None:
        """Keep the states of some sequences.

        Args:
            indices: (batch,), consecutive.
            states: (batch, seq_len, hidden_size), on any device.
        """
        first = int(indices[0])
        if self._file is None:
            self._states[first : first + len(indices)] = states
        else:
            self._file.seek(first * self._sequence_bytes)
            self._file.write(_bytes_of(states.to("cpu", self.dtype).contiguous()))

    @property
    def _sequence_bytes(self) -> int:
        return prod(self._shape[1:]) * self.dtype.itemsize


def _bytes_of(states: Tensor) -> memoryview:
    plain: Any = states.view(torch.uint8).numpy()
    return memoryview(plain).cast("B")
