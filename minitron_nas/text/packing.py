"""Documents laid end to end and cut into sequences, each of which may begin as the tokenizer begins a text."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from minitron_nas.text.token_log import TokenIds, TokenStream
from minitron_nas.text.tokens import BLOCK_TOKENS, PackedTokens

Documents = Iterable[TokenIds] | TokenStream
"""Integer arrays of shape (num_tokens,); a stream says what a sequence that begins inside a document begins with."""


def pack(documents: Documents, sequence_length: int) -> PackedTokens:
    """Lay documents end to end and cut them into sequences; a last part that fills none is left out.

    Args:
        documents: Integer arrays; of a `TokenStream` with a BOS, each sequence that begins inside a document begins
            with it.
        sequence_length: Tokens of a sequence.
    """
    return pack_all(documents, sequence_length)[0]


def pack_all(documents: Documents, sequence_length: int) -> tuple[PackedTokens, PackedTokens]:
    """Return what `pack` does, and what is left over as one shorter sequence, if anything is.

    Args:
        documents: As `pack` takes them.
        sequence_length: Tokens of a sequence.
    """
    strip = _Strip(documents, sequence_length)
    for document in documents:
        strip.add(document)
    return strip.whole(), strip.rest()


def packed_blocks(
    documents: Documents, sequence_length: int, max_sequences: int | None = None
) -> Iterator[PackedTokens]:
    """Yield what `pack` would return, about a million tokens at a time.

    Args:
        documents: As `pack` takes them.
        sequence_length: Tokens of a sequence.
        max_sequences: Stop after so many sequences.
    """
    left = max_sequences
    strip = _Strip(documents, sequence_length)
    for document in documents:
        strip.add(document)
        if strip.num_tokens < max(BLOCK_TOKENS, sequence_length):
            continue
        block = strip.whole()
        if left is not None:
            block = block.first(left)
            left -= block.num_sequences
        yield block
        if left == 0:
            return
    block = strip.whole()
    yield block if left is None else block.first(left)


class _Strip:
    """Documents end to end, from the beginning of a sequence on.

    Attributes:
        num_tokens: In it, BOS tokens that were put between included.
    """

    def __init__(self, documents: Documents, sequence_length: int) -> None:
        """Begin with no token.

        Args:
            documents: Says whether sequences begin with BOS.
            sequence_length: Tokens of a sequence.
        """
        self._length = sequence_length
        # A sequence of one token would hold nothing else.
        self._bos = documents.bos if isinstance(documents, TokenStream) and sequence_length > 1 else None
        self._ids: list[TokenIds] = []
        self._places: list[NDArray[np.int64]] = []
        self.num_tokens = 0

    def add(self, document: TokenIds) -> None:
        """Lay a document at the end.

        Args:
            document: (num_tokens,).
        """
        if self._bos is not None:
            room = self._length - self.num_tokens % self._length
            document = np.insert(document, np.arange(room, len(document), self._length - 1), self._bos)
        self._ids.append(document)
        self._places.append(np.arange(len(document)))
        self.num_tokens += len(document)

    def whole(self) -> PackedTokens:
        """Return the whole sequences, and keep the rest only."""
        ids, places = self._joined()
        used = len(ids) // self._length * self._length
        self._ids, self._places, self.num_tokens = [ids[used:]], [places[used:]], len(ids) - used
        return self._packed(ids[:used], places[:used], self._length)

    def rest(self) -> PackedTokens:
        """Return what fills no sequence as a sequence of its own; none where nothing is left."""
        ids, places = self._joined()
        return self._packed(ids, places, max(len(ids), 1))

    def _joined(self) -> tuple[TokenIds, NDArray[np.int64]]:
        if not self._ids:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        return np.concatenate(self._ids), np.concatenate(self._places)

    def _packed(self, ids: TokenIds, places: NDArray[np.int64], length: int) -> PackedTokens:
        """Cut into rows; places count from 0 in every document."""
        shape = (len(ids) // length, length)
        table = places.reshape(shape)
        added = None
        if self._bos is not None and (inside := table[:, 0] > 0).any():
            added = torch.from_numpy(inside)
        starts = np.maximum.accumulate(np.where(table == 0, np.arange(length), 0), axis=1)
        positions = torch.from_numpy(np.arange(length) - starts)
        return PackedTokens(torch.from_numpy(ids.reshape(shape).astype(np.int64)), positions, added=added)
