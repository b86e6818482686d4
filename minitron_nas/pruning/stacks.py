"""Experts of a student put together as the files of some wrappers hold them: all of a layer in one tensor."""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np

from minitron_nas.architecture.layout import Layout
from minitron_nas.models.stock import Bits
from minitron_nas.pruning.mix import Digest
from minitron_nas.pruning.parts import Cut, Part, Rows


@dataclass(frozen=True, slots=True)
class Joined:
    """One expert's part of a stack: what it has as matrices of its own, one behind the other.

    Attributes:
        name: Of the slice of the stack.
        matrices: What lies one after the other along the first dimension.
        is_turned: Whether all of it then lies the other way round.
    """

    name: str
    matrices: tuple[Part, ...]
    is_turned: bool = False

    @property
    def dtype(self) -> str:
        """Type of all matrices."""
        return self.matrices[0].dtype

    @property
    def itemsize(self) -> int:
        """Bytes of a number of any."""
        return self.matrices[0].itemsize

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the slice."""
        rows, columns = sum(matrix.shape[0] for matrix in self.matrices), self.matrices[0].shape[1]
        return (columns, rows) if self.is_turned else (rows, columns)

    @property
    def origin(self) -> Path:
        """The folder that holds the matrices."""
        return self.matrices[0].origin

    def blocks(self) -> Iterator[Rows]:
        """Yield all of it."""
        yield 0, self.shape[0]

    def read(self, rows: Rows) -> Bits:
        """Return some of its rows, (num_rows, ...)."""
        whole = np.concatenate([matrix.read((0, matrix.shape[0])) for matrix in self.matrices])
        found: Bits = np.ascontiguousarray((whole.T if self.is_turned else whole)[slice(*rows)])
        return found

    def update(self, digest: Digest) -> None:
        """Feed a hash with what decides its values."""
        digest.update(f"{self.name} {self.is_turned}".encode())
        for matrix in self.matrices:
            matrix.update(digest)


def in_stacks(tensors: Mapping[str, Cut], layout: Layout, lies_turned: Callable[[str, int, int], bool]) -> list[Part]:
    """Return a student's tensors with those of its experts as slices of stacks, which follow one another.

    Args:
        tensors: By their names in the table; the names that they are written with end alike.
        layout: The table of the student's family; `stacked` says what lies in a stack.
        lies_turned: Whether a stack lies the other way round, by its name and the two sizes that each part then has.
    """
    left: dict[str, Part] = dict(tensors)
    for ending, members in layout.stacked:
        first = members[0].format(expert=0)
        for before in [name.removesuffix(first) for name in tensors if name.endswith(first)]:
            stack = tensors[before + first].name.removesuffix(first) + ending
            for expert, names in enumerate(_experts(tensors, [before + member for member in members])):
                joined = Joined(f"{stack}[{expert}]", tuple(map(left.pop, names)), is_turned=True)
                left[joined.name] = replace(joined, is_turned=lies_turned(stack, *joined.shape))
    return [*left.values()]


def _experts(tensors: Container[str], members: Sequence[str]) -> Iterator[list[str]]:
    """Yield the names of the matrices of each expert of a layer."""
    for expert in count():
        names = [member.format(expert=expert) for member in members]
        if names[0] not in tensors:
            return
        yield names
