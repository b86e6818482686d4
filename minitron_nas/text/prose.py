"""Plain text files."""

import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from mmap import mmap
from pathlib import Path

import numpy as np

from minitron_nas.errors import DataError
from minitron_nas.text.content import Content
from minitron_nas.text.document import Document
from minitron_nas.text.plain import plain

_PASSAGE_CHARACTERS = 4000
_BLANK_LINE = re.compile(rb"\r?\n[ \t]*\r?\n")
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


class TextFile:
    """A plain text file, whole or cut at blank lines into passages of about 4,000 characters."""

    def __init__(self, content: Content, passages: bool) -> None:
        """Find where the passages begin and end.

        Args:
            content: Of the file.
            passages: Whether to cut it.

        Raises:
            DataError: If the file is not UTF-8, or no text.
        """
        self._content = content
        spans = _passage_spans(content) if passages else [(content.begin, content.end)]
        self._spans = np.array(array("q", chain.from_iterable(spans)), dtype=np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        """Return the number of passages."""
        return len(self._spans)

    def read(self, numbers: Sequence[int]) -> list[Document | None]:
        """Read passages; line ends become newlines.

        Args:
            numbers: From 0, in any order.
        """
        with self._content.reader() as read:
            return [self._passage(read, *self._spans[number].tolist()) for number in numbers]

    def _passage(self, read: Callable[[int, int], bytes], start: int, end: int) -> Document | None:
        text = _decoded(read(start, end), self._content.path, start - self._content.begin)
        text = plain(text.replace("\r\n", "\n").replace("\r", "\n"))
        return text if text.strip() else None


def _passage_spans(content: Content) -> Iterator[tuple[int, int]]:
    if content.begin == content.end:
        return
    with content.mapped() as (bytes_, offset):
        start = paragraph = content.begin
        num_characters = 0
        for end, following in _paragraph_ends(bytes_, content.begin - offset):
            end, following = end + offset, following + offset  # noqa: PLW2901
            piece = _decoded(bytes_[paragraph - offset : end - offset], content.path, paragraph - content.begin)
            num_characters += len(piece) + 2 * (paragraph > start)
            if num_characters >= _PASSAGE_CHARACTERS:
                yield start, end
                start, num_characters = following, 0
            paragraph = following
        if start < content.end:
            yield start, content.end


def _paragraph_ends(content: mmap, begin: int) -> Iterator[tuple[int, int]]:
    """Where each paragraph ends, and the one after it begins."""
    for blank in _BLANK_LINE.finditer(content, begin):
        yield blank.span()
    yield len(content), len(content)


def _decoded(content: bytes, path: Path, start: int) -> str:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        hint = " but looks like UTF-16; convert it first" if not start and content[:2] in _UTF16_BOMS else ""
        reason = f"{error.reason} at byte {start + error.start}"
        raise DataError(f"{path} is not UTF-8 text ({reason}){hint}") from None
    if "\0" in text:
        raise DataError(
            f"{path} is no text: it holds a zero byte, as binary files and those in UTF-16 do (beyond byte {start}); "
            "convert it to UTF-8, or take it out"
        )
    return text
