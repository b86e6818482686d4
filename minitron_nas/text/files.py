"""Documents of files, each read only when its turn comes, so that text need not fit into memory."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import datasets

from minitron_nas.errors import DataError
from minitron_nas.text.content import Content, Spool
from minitron_nas.text.document import Document
from minitron_nas.text.formats import JSON, PARQUET, PROSE, READABLE, SAVED_FOLDER, kind_of
from minitron_nas.text.json_rows import JsonRows
from minitron_nas.text.prose import TextFile
from minitron_nas.text.tables import TableRows, parquet_table

_ROWS_AT_ONCE = 256


class Part(Protocol):
    """Documents that can be read in any order."""

    def __len__(self) -> int:
        """Return the number of documents, empty ones included."""

    def read(self, numbers: Sequence[int]) -> list[Document | None]:
        """Read documents by their numbers; None stands for an empty one.

        Args:
            numbers: From 0, in any order.
        """


def is_path(name: str) -> bool:
    """Whether a name can only be a file, a glob or a folder, and no hub dataset.

    Args:
        name: What the user gave.
    """
    return name.startswith((".", "/", "~")) or kind_of(Path(name)) is not None or "*" in name


def open_files(files: Sequence[Path], column: str, passages: bool) -> list[Part]:
    """Open text files and tables.

    Args:
        files: At least one.
        column: The column of a table that holds the documents.
        passages: Whether to cut plain text files into passages.

    Raises:
        DataError: If a file is of another kind or cannot be read, or a table lacks the column.
        DiskSpaceError: If the disk cannot hold what is unpacked.
    """
    spool = Spool()
    return [_opened(file, column, passages, spool) for file in files]


def _opened(file: Path, column: str, passages: bool, spool: Spool) -> Part:
    kind = kind_of(file)
    if kind == SAVED_FOLDER:
        try:
            table = datasets.load_from_disk(str(file))
        except Exception as error:
            raise DataError(f"{file} cannot be read as Dataset.save_to_disk writes it: {one_line(error)}") from error
        return TableRows(table, column, str(file))
    if kind not in {PROSE, JSON, PARQUET}:
        raise DataError(f"{file}: cannot read {file.suffix or 'files without suffix'}; give {READABLE}")
    try:
        content = Content.of(file, spool)
        if kind == PARQUET:
            return TableRows(parquet_table(content, column, spool), column, str(file))
        return TextFile(content, passages) if kind == PROSE else JsonRows(content, column)
    except OSError as error:
        if error.strerror is None:
            raise
        raise DataError(f"{file} cannot be read ({error.strerror})") from error


def read_parts(parts: Sequence[Part], order: Sequence[int] | None = None) -> Iterator[Document]:
    """Yield the documents of all parts, without empty ones.

    Args:
        parts: Numbered through, the first part's documents first.
        order: Numbers of documents; all in turn without it.
    """
    starts = list(accumulate((len(part) for part in parts), initial=0))
    chosen = range(starts[-1]) if order is None else order
    for first in range(0, len(chosen), _ROWS_AT_ONCE):
        numbers = chosen[first : first + _ROWS_AT_ONCE]
        places: dict[int, list[int]] = {}
        for place, number in enumerate(numbers):
            places.setdefault(bisect_right(starts, number) - 1, []).append(place)
        found: dict[int, Document | None] = {}
        for part, own in places.items():
            documents = parts[part].read([numbers[place] - starts[part] for place in own])
            found.update(zip(own, documents, strict=True))
        yield from (document for place in range(len(numbers)) if (document := found[place]) is not None)


def one_line(error: BaseException) -> str:
    """Return an error's words on one line."""
    return " ".join(str(error).split()) or type(error).__name__
