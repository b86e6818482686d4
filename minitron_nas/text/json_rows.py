"""Rows of JSON files: lines, an array, or one object."""

import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from minitron_nas.errors import DataError
from minitron_nas.text.content import Content
from minitron_nas.text.document import Document, document_columns, document_of

_ROWS_THAT_SHOW_COLUMNS = 100
_SPACE = b" \t\r\n"


class JsonRows:
    """The rows of a JSON file, parsed when they are read, the wanted column of each only."""

    def __init__(self, content: Content, column: str) -> None:
        """Find the rows, and look at the first ones and the last.

        Args:
            content: Of the file.
            column: The column that holds the documents.

        Raises:
            DataError: If a row that is looked at is no JSON object, or no row has the column.
        """
        self._content, self._column = content, column
        self._whole = _whole_rows(content)
        ends = array("q", () if self._whole is not None else chain.from_iterable(_lines(content)))
        self._spans = np.array(ends, dtype=np.int64).reshape(-1, 2)
        shown = [*range(min(len(self), _ROWS_THAT_SHOW_COLUMNS)), *([len(self) - 1] if len(self) else [])]
        names = dict.fromkeys(name for row in self._rows(shown) for name in row)
        if names:
            document_columns(list(names), column, str(content.path))

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._spans) if self._whole is None else len(self._whole)

    def read(self, numbers: Sequence[int]) -> list[Document | None]:
        """Read rows.

        Args:
            numbers: From 0, in any order.
        """
        return [self._document(row, number) for row, number in zip(self._rows(numbers), numbers, strict=True)]

    def _document(self, row: dict[str, Any], number: int) -> Document | None:
        try:
            columns = document_columns(list(row), self._column, "")
        except DataError:
            return None  # other rows of the file have the column
        return document_of(row, columns[0], f"{self._content.path}, row {number + 1}", False)

    def _rows(self, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
        if self._whole is not None:
            yield from (self._checked(self._whole[number], number) for number in numbers)
            return
        with self._content.reader() as read:
            for number in numbers:
                yield self._checked(self._parsed(read, number), number)

    def _parsed(self, read: Callable[[int, int], bytes], number: int) -> object:
        line = read(*self._spans[number].tolist())
        try:
            return json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _no_json(self._content.path, number, line, error) from None

    def _checked(self, row: object, number: int) -> dict[str, Any]:
        if not isinstance(row, dict):
            raise DataError(
                f"{self._content.path}, row {number + 1} is {json.dumps(row)[:80]}, no JSON object; write rows such as "
                '{"text": ...}'
            )
        return row


def count_rows(content: Content) -> int:
    """Return the number of rows, without reading more of them than where they end.

    Args:
        content: Of a JSON file.

    Raises:
        DataError: If it begins like an array or an object over several lines, and is none.
    """
    whole = _whole_rows(content)
    return sum(1 for _ in _lines(content)) if whole is None else len(whole)


def _lines(content: Content) -> Iterator[tuple[int, int]]:
    """Where each line that is not empty begins and ends."""
    if content.begin == content.end:
        return
    with content.mapped() as (bytes_, offset):
        begin = content.begin - offset
        while begin < len(bytes_):
            end = bytes_.find(b"\n", begin)
            end = len(bytes_) if end < 0 else end
            if bytes_[begin:end].strip(_SPACE):
                yield begin + offset, end + offset
            begin = end + 1


def _whole_rows(content: Content) -> list[Any] | None:
    """Return the rows of a file that is one array, or one object over several lines; None of any other."""
    if content.begin == content.end:
        return None
    with content.mapped() as (bytes_, offset):
        begin = content.begin - offset
        while bytes_[begin : begin + 1].strip() == b"" and begin < len(bytes_):
            begin += 1
        first = bytes_[begin : begin + 1]
        end = bytes_.find(b"\n", begin)
        line = bytes_[begin : end if end >= 0 else len(bytes_)]
        if first != b"[" and line.strip() != b"{":
            return None
        text = bytes_[begin:]
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _no_json(content.path, 0, text, error) from None
    return found if isinstance(found, list) else [found]


def _no_json(path: Path, number: int, line: bytes, error: Exception) -> DataError:
    shown = line[:80].decode("utf-8", "replace")
    reason = " ".join(str(error).split())
    return DataError(f"{path}, row {number + 1} cannot be read as json ({reason}): {shown!r}; mend it, or take it out")
