"""Tokens of documents on disk, in the order in which they were read, and how many of them are wanted."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from minitron_nas.text.settings import TextSettings

TokenIds: TypeAlias = NDArray[np.integer[Any]]
"""The token ids of a document, (num_tokens,)."""


@dataclass(frozen=True, slots=True)
class TokenStream:
    """The tokens of documents, in turn.

    Attributes:
        pieces: Integer arrays of shape (num_tokens,); read once.
        bos: What a sequence that begins inside a document is to begin with; None for nothing.
    """

    pieces: Iterable[TokenIds]
    bos: int | None = None

    def __iter__(self) -> Iterator[TokenIds]:
        """Return the documents' iterator."""
        return iter(self.pieces)


ONE_PASS_TOKENS = 10**9
"""Without a token budget, training text is read up to this many tokens."""


@dataclass(frozen=True, slots=True)
class Goals:
    """Tokens that are wanted of a text.

    Attributes:
        length: Of a sequence.
        validation: For validation.
        calibration: For calibration.
        train: What may be read for training.
        needed: What is enough for training.
    """

    length: int
    validation: int
    calibration: int
    train: int
    needed: int

    @classmethod
    def of(cls, settings: TextSettings, train_tokens: int | None) -> Self:
        """Return the goals of settings.

        Args:
            settings: Sizes of the parts.
            train_tokens: Training tokens needed, or None for one pass over the text.
        """
        length = settings.sequence_length
        wanted = train_tokens if train_tokens is not None else ONE_PASS_TOKENS
        return cls(
            length,
            settings.validation_samples * length,
            settings.calibration_samples * length,
            wanted + length,
            (min(wanted, train_tokens or length) - 1) // length * length + length,
        )

    @property
    def total(self) -> int:
        """Tokens of all parts."""
        return self.validation + self.calibration + self.train


class TokenLog:
    """Tokens of one source's documents.

    Attributes:
        lengths: Tokens of each document.
        num_tokens: Of all documents.
        enough: Whether the source has met its share of all goals.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        """Begin with no document.

        Args:
            path: The file to write.
            dtype: Numpy type of a token.
        """
        self.lengths = array("q")
        self.num_tokens = 0
        self.enough = False
        self._path, self._dtype = path, dtype

    def fill(self, pieces: Iterable[TokenIds], share: float, goals: Goals) -> Iterator[int]:
        """Write documents until a share of all goals is met, and yield the tokens of each.

        Validation and calibration read the first tokens of documents only.

        Args:
            pieces: Integer arrays of shape (num_tokens,).
            share: Of the goals, in (0, 1].
            goals: Of all sources together.
        """
        missing = [share * goals.validation, share * goals.calibration]
        spent = 0
        with open(self._path, "wb", buffering=1 << 20) as file:
            for piece in pieces:
                file.write(piece.astype(self._dtype).tobytes())
                self.lengths.append(len(piece))
                self.num_tokens += len(piece)
                yield len(piece)
                if missing:
                    missing[0] -= min(len(piece), goals.length)
                    spent = self.num_tokens
                    if missing[0] <= 0:
                        missing.pop(0)
                elif self.num_tokens - spent >= share * goals.train:
                    self.enough = True
                    return

    def num_first(self, length: int) -> int:
        """Return the number of tokens among the first `length` of each document.

        Args:
            length: Tokens of a document that count.
        """
        return int(np.minimum(np.array(self.lengths, dtype=np.int64), length).sum())

    def reader(self) -> "LogReader":
        """Return a reader of all documents, once they are written."""
        return LogReader(self._path, self._dtype, self.lengths)


class LogReader:
    """Documents of a finished log, in any order."""

    def __init__(self, path: Path, dtype: np.dtype[Any], lengths: Sequence[int]) -> None:
        """Map the file.

        Args:
            path: What `TokenLog.fill` has written.
            dtype: Numpy type of a token.
            lengths: Tokens of each document.
        """
        self._ends = np.cumsum(np.array(lengths, dtype=np.int64))
        self._tokens = np.memmap(path, dtype=dtype, mode="r") if len(self._ends) else np.empty(0, dtype)

    def piece(self, document: int, limit: int | None = None) -> TokenIds:
        """Return a document's tokens, (num_tokens,).

        Args:
            document: Its number, from 0.
            limit: Return at most so many, from its beginning.
        """
        end = int(self._ends[document])
        start = int(self._ends[document - 1]) if document else 0
        return self._tokens[start : end if limit is None else min(end, start + limit)]
