"""What a stage leaves, file by file, with size and checksum, so that nothing else is ever taken for it."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from xxhash import xxh3_128

_ALWAYS_READ_BYTES = 64 << 20
"""Files up to this size are read whenever they are looked at; of larger ones an unchanged time of change will do."""

_BLOCK_BYTES = 1 << 22

Look: TypeAlias = tuple[int, int, int]
"""Size, time of change and inode of a file."""


@dataclass(frozen=True, slots=True)
class Output:
    """A file as a stage has left it.

    Attributes:
        path: Relative to the run folder.
        num_bytes: Its size.
        changed_ns: When it was written, in nanoseconds since the epoch.
        checksum: xxh3 of its content; None for files that carry checksums of their own, which are looked at
            whenever they are read.
    """

    path: str
    num_bytes: int
    changed_ns: int
    checksum: str | None

    @property
    def identity(self) -> tuple[str, int, str | None]:
        """What of it decides what reads it: everything but the time."""
        return self.path, self.num_bytes, self.checksum


class Outputs:
    """Looks at the files of a run, and remembers which of them it has read.

    A file is read once in the life of a process, when it was written or when a stage that needs it is about to
    run, which leaves it in the system's cache for the stage. To skip a stage no large file is read.
    """

    def __init__(self, run: Path) -> None:
        """Begin with nothing read.

        Args:
            run: The run folder.
        """
        self._run = run
        self._read: dict[Path, tuple[Look, str]] = {}

    def describe(self, paths: Iterable[Path], self_checked: str | None = None) -> list[Output]:
        """Return what lies at paths that a stage has just written, files of folders included, in order.

        Args:
            paths: Files and folders in the run folder.
            self_checked: What the names of files end with that carry checksums of their own.
        """
        return [
            Output(
                str(file.relative_to(self._run)),
                (status := file.stat()).st_size,
                status.st_mtime_ns,
                None if self_checked is not None and file.name.endswith(self_checked) else self._checksum(file),
            )
            for file in _files(paths)
        ]

    def differing(self, outputs: Iterable[Output], thorough: bool = False) -> list[Output]:
        """Return the outputs whose file is gone, or is not what was written.

        Args:
            outputs: What to look at.
            thorough: Whether to read large files too, unless this process has.
        """
        return [output for output in outputs if not self._agrees(output, thorough)]

    def path(self, output: Output) -> Path:
        """Return the file of an output."""
        return self._run / output.path

    def _agrees(self, output: Output, thorough: bool) -> bool:
        file = self.path(output)
        try:
            status = file.stat()
        except OSError:
            return False
        if status.st_size != output.num_bytes:
            return False
        if output.checksum is None:
            return True
        unchanged = status.st_mtime_ns == output.changed_ns
        if unchanged and output.num_bytes > _ALWAYS_READ_BYTES and not thorough:
            return True
        return self._checksum(file) == output.checksum

    def _checksum(self, file: Path) -> str:
        status = file.stat()
        look = (status.st_size, status.st_mtime_ns, status.st_ino)
        known = self._read.get(file)
        if known is not None and known[0] == look and status.st_size > _ALWAYS_READ_BYTES:
            return known[1]
        digest = xxh3_128()
        with open(file, "rb") as handle:
            while block := handle.read(_BLOCK_BYTES):
                digest.update(block)
        self._read[file] = look, digest.hexdigest()
        return digest.hexdigest()


def to_plain(outputs: Iterable[Output]) -> list[list[Any]]:
    """Return outputs as plain values."""
    return [[output.path, output.num_bytes, output.changed_ns, output.checksum] for output in outputs]


def from_plain(values: Iterable[Iterable[Any]]) -> tuple[Output, ...]:
    """Read what `to_plain` returned."""
    return tuple(Output(*each) for each in values)


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            names = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
            yield from sorted(file for file in names if not file.name.startswith("."))  # a lock says nothing
        else:
            yield path
