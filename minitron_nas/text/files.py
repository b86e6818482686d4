"""Documents of files, each read only when its turn comes, so that text need not fit into memory."""

import glob
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import BinaryIO, Protocol

import datasets
import numpy as np

from minitron_nas.errors import DataError
from minitron_nas.text.document import Document, document_columns, document_of

_LOADERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".ndjson": "json"}
_TEXT_SUFFIXES = (".txt", ".md", ".rst", ".text")
_PASSAGE_CHARACTERS = 4000
_BLANK_LINE = re.compile(rb"\r?\n[ \t]*\r?\n")
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


class TextFile:
    """A plain text file, whole or cut at blank lines into passages of about 4,000 characters."""

    def __init__(self, path: Path, passages: bool) -> None:
        """Find where the passages begin and end.

        Args:
            path: The file.
            passages: Whether to cut it.

        Raises:
            DataError: If the file is not UTF-8.
        """
        self._path = path
        spans = list(_passage_spans(path)) if passages else [(0, path.stat().st_size)]
        self._spans = np.array(spans, dtype=np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        """Return the number of passages."""
        return len(self._spans)

    def read(self, numbers: Sequence[int]) -> list[Document | None]:
        """Read passages; line ends become newlines.

        Args:
            numbers: From 0, in any order.
        """
        with open(self._path, "rb") as handle:
            return [self._passage(handle, *self._spans[number].tolist()) for number in numbers]

    def _passage(self, handle: BinaryIO, start: int, end: int) -> Document | None:
        handle.seek(start)
        text = _decoded(handle.read(end - start), self._path, start).replace("\r\n", "\n").replace("\r", "\n")
        return text if text.strip() else None


class TableRows:
    """The rows of a table that `datasets` keeps on disk."""

    def __init__(self, table: datasets.Dataset, column: str, origin: str) -> None:
        """Choose the columns to read.

        Args:
            table: The table.
            column: The column that holds the documents.
            origin: Names the table in the error.

        Raises:
            DataError: If the table has no such column.
        """
        columns = document_columns(table.column_names, column, origin)
        self._column, self._table = columns[0], table.select_columns(columns)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._table)

    def read(self, numbers: Sequence[int]) -> list[Document | None]:
        """Read rows.

        Args:
            numbers: From 0, in any order.
        """
        columns = self._table[list(numbers)]
        rows = (dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True))
        return [document_of(row, self._column) for row in rows]


def is_path(name: str) -> bool:
    """Whether a name can only be a file, a glob or a folder, and no hub dataset.

    Args:
        name: What the user gave.
    """
    return name.startswith((".", "/", "~")) or Path(name).suffix in (*_TEXT_SUFFIXES, *_LOADERS) or "*" in name


def matching_files(name: str) -> list[Path]:
    """Return the files that a path, glob or folder stands for, sorted.

    Args:
        name: The path, glob or folder; ~ is the home folder.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return [path]  # also where its name holds what a glob would read otherwise
    if path.is_dir():
        known = (*_TEXT_SUFFIXES, *_LOADERS)
        return sorted(file for file in path.rglob("*") if file.is_file() and file.suffix in known)
    return sorted(Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file())


def open_files(files: Sequence[Path], column: str, origin: str, passages: bool) -> list[Part]:
    """Open text files and tables.

    Args:
        files: At least one.
        column: The column of a table that holds the documents.
        origin: Names the files in errors.
        passages: Whether to cut plain text files into passages.

    Raises:
        DataError: If files are of another kind or cannot be read, or a table lacks the column.
    """
    texts = [file for file in files if file.suffix in _TEXT_SUFFIXES]
    tables = [file for file in files if file.suffix in _LOADERS]
    if not texts and not tables:
        raise DataError(
            f"{origin}: cannot read {files[0].suffix or 'files without suffix'}; "
            f"give {', '.join((*_TEXT_SUFFIXES, *_LOADERS))} files"
        )
    parts: list[Part] = [TextFile(file, passages) for file in texts]
    for loader in sorted({_LOADERS[file.suffix] for file in tables}):
        chosen = [str(file) for file in tables if _LOADERS[file.suffix] == loader]
        try:
            table = datasets.load_dataset(loader, data_files=chosen, split="train")
        except Exception as error:
            cause = error.__cause__ or error  # datasets wraps it in "An error occurred while generating the dataset"
            raise DataError(f"{origin} cannot be read as {loader}: {one_line(cause)}") from error
        parts.append(TableRows(table, column, origin))
    return parts


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


def _passage_spans(path: Path) -> Iterator[tuple[int, int]]:
    if not path.stat().st_size:
        return
    with open(path, "rb") as handle, mmap(handle.fileno(), 0, access=ACCESS_READ) as content:
        start = paragraph = num_characters = 0
        for end, following in _paragraph_ends(content):
            num_characters += len(_decoded(content[paragraph:end], path, paragraph)) + 2 * (paragraph > start)
            if num_characters >= _PASSAGE_CHARACTERS:
                yield start, end
                start, num_characters = following, 0
            paragraph = following
        if start < len(content):
            yield start, len(content)


def _paragraph_ends(content: mmap) -> Iterator[tuple[int, int]]:
    """Where each paragraph ends, and the one after it begins."""
    for blank in _BLANK_LINE.finditer(content):
        yield blank.span()
    yield len(content), len(content)


def _decoded(content: bytes, path: Path, start: int) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason} at byte {start + error.start})") from None
