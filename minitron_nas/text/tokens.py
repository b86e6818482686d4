"""Packed token sequences, in memory or memory-mapped, and how documents become tokens."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from minitron_nas.errors import CheckpointError, DataError
from minitron_nas.storage.arrays import map_arrays, write_arrays
from minitron_nas.text.document import Document
from minitron_nas.text.token_log import TokenIds

IGNORE_LABEL = -100
"""The label of a token that has no next token in its document."""

_TOKENIZE_BATCH = 64
_BLOCK_TOKENS = 1 << 20
_FINGERPRINT = "fingerprint"


@dataclass(frozen=True, slots=True)
class PackedTokens:
    """Sequences of one length, filled with whole documents one after the other.

    What `load` returns is memory-mapped, in types as small as the numbers allow: take what is to be
    computed with from `sequences` or `batches`, or all of it with `in_memory`.

    Attributes:
        input_ids: (num_sequences, seq_len), int64; memory-mapped, uint16 or int32.
        position_ids: (num_sequences, seq_len), of the same types; 0 at each document's first token and at
            the start of a sequence. Attention in transformers does not cross such a border.
        known_fingerprint: The fingerprint that stands in the file.
    """

    input_ids: Tensor
    position_ids: Tensor
    known_fingerprint: str | None = None

    @property
    def num_sequences(self) -> int:
        """Number of sequences."""
        return int(self.input_ids.shape[0])

    @property
    def num_tokens(self) -> int:
        """Number of tokens."""
        return self.input_ids.numel()

    @property
    def fingerprint(self) -> str:
        """A hash of the content, whatever types it is in."""
        if self.known_fingerprint is not None:
            return self.known_fingerprint
        digest = ContentDigest()
        for block in self._blocks():
            digest.add(block)
        return digest.fingerprint

    def labels(self) -> Tensor:
        """Return (num_sequences, seq_len), int64: each token's next token, or IGNORE_LABEL at a border."""
        labels = torch.full(self.input_ids.shape, IGNORE_LABEL)
        inside = self.position_ids[:, 1:].long() > 0
        labels[:, :-1] = torch.where(inside, self.input_ids[:, 1:].long(), labels[:, :-1])
        return labels

    def num_labels(self) -> Tensor:
        """Return (num_sequences,), int64: how many tokens of each sequence have a next token."""
        return torch.cat([(block.position_ids[:, 1:] > 0).sum(dim=1) for block in self._blocks()])

    def first(self, num_sequences: int) -> Self:
        """Return the first sequences, without copying them.

        Args:
            num_sequences: How many; all where there are no more.
        """
        if num_sequences >= self.num_sequences:
            return self
        return type(self)(self.input_ids[:num_sequences], self.position_ids[:num_sequences])

    def sequences(self, indices: Tensor) -> Self:
        """Return some sequences in memory, int64.

        Args:
            indices: (num_sequences,), in any order.
        """
        rows = indices.cpu().numpy()
        return type(self)(_wide(self.input_ids.numpy()[rows]), _wide(self.position_ids.numpy()[rows]))

    def in_memory(self) -> Self:
        """Return all sequences in memory, int64."""
        return type(self)(self.input_ids.long(), self.position_ids.long(), self.known_fingerprint)

    def with_random_tokens(self, share: float, vocab_size: int, seed: int = 0) -> Self:
        """Return the sequences in memory, int64, some tokens replaced with any of the vocabulary.

        Args:
            share: How likely each token is replaced; the first of a document never is.
            vocab_size: Size of the vocabulary.
            seed: The same seed replaces the same tokens with the same ones.
        """
        text, random = self.in_memory(), torch.Generator().manual_seed(seed)
        chosen = torch.rand(self.input_ids.shape, generator=random) < share
        others = torch.randint(0, vocab_size, self.input_ids.shape, generator=random)
        ids = torch.where(chosen & (text.position_ids > 0), others, text.input_ids)
        return type(self)(ids, text.position_ids)

    def batches(self, size: int, begin: int = 0) -> Iterator[tuple[Tensor, Self]]:
        """Yield (sequence indices, their tokens) in order.

        Args:
            size: Sequences of one batch; the last may have fewer.
            begin: The first sequence.

        Yields:
            Indices, (batch,), and the sequences in memory, int64.
        """
        for start in range(begin, self.num_sequences, size):
            indices = torch.arange(start, min(start + size, self.num_sequences))
            yield indices, self.sequences(indices)

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all.

        Args:
            path: The file, which `load` reads.
        """
        largest = int(max((block.input_ids.max().item() for block in self._blocks()), default=0))
        save_blocks(self._blocks(), path, self.input_ids.shape[1], largest + 1)

    @classmethod
    def load(cls, path: Path, verify: bool = False) -> Self:
        """Memory-map a safetensors file.

        Args:
            path: What `save` wrote.
            verify: Whether to read all of it, and compare it with the fingerprint that stands in it.

        Raises:
            CheckpointError: If it is cut short, is no such file, or is not what was written.
        """
        try:
            arrays, about = map_arrays(path)
            ids, positions, known = arrays["input_ids"], arrays["position_ids"], about[_FINGERPRINT]
        except CheckpointError:
            raise
        except (AttributeError, FileNotFoundError, LookupError, OverflowError, TypeError, ValueError):
            raise _no_tokens(path) from None
        if ids.ndim != 2 or ids.shape != positions.shape or not isinstance(known, str):
            raise _no_tokens(path)
        tokens = cls(torch.from_numpy(ids), torch.from_numpy(positions), known)
        if verify and replace(tokens, known_fingerprint=None).fingerprint != known:
            raise CheckpointError(f"{path} is not what was written there; delete it and repeat the command")
        return tokens

    def _blocks(self) -> Iterator[Self]:
        for _, block in self.batches(max(_BLOCK_TOKENS // self.input_ids.shape[1], 1)):
            yield block


class ContentDigest:
    """The fingerprint of packed tokens, computed while they are read or written."""

    def __init__(self) -> None:
        """Start from nothing."""
        self._digests = (sha256(), sha256())

    def add(self, block: PackedTokens) -> None:
        """Add the sequences that come next.

        Args:
            block: As many as there are at a time; how they are cut does not matter.
        """
        for digest, part in zip(self._digests, (block.input_ids, block.position_ids), strict=True):
            digest.update(part.numpy().astype("<i4").tobytes())

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits."""
        return sha256(b"".join(digest.digest() for digest in self._digests)).hexdigest()[:16]


def pack(documents: Iterable[TokenIds], sequence_length: int) -> PackedTokens:
    """Lay documents end to end and cut them into sequences; a last part that fills none is left out.

    Args:
        documents: Integer arrays of shape (num_tokens,).
        sequence_length: Tokens of a sequence.
    """
    pieces = list(documents)
    ids = np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)
    positions = np.concatenate([np.arange(len(piece)) for piece in pieces]) if pieces else ids
    num_sequences = len(ids) // sequence_length
    shape = (num_sequences, sequence_length)
    used = num_sequences * sequence_length
    table = positions[:used].reshape(shape).astype(np.int64)
    starts = np.where(table == 0, np.arange(sequence_length), 0)
    starts = np.maximum.accumulate(starts, axis=1)
    table = np.arange(sequence_length) - starts
    return PackedTokens(torch.from_numpy(ids[:used].reshape(shape).astype(np.int64)), torch.from_numpy(table))


def packed_blocks(
    documents: Iterable[TokenIds], sequence_length: int, max_sequences: int | None = None
) -> Iterator[PackedTokens]:
    """Yield what `pack` would return, about a million tokens at a time.

    Args:
        documents: Integer arrays of shape (num_tokens,).
        sequence_length: Tokens of a sequence.
        max_sequences: Stop after so many sequences.
    """
    left = max_sequences
    waiting: list[TokenIds] = []
    num_waiting = 0
    for document in documents:
        waiting.append(document)
        num_waiting += len(document)
        if num_waiting < max(_BLOCK_TOKENS, sequence_length):
            continue
        block = pack(waiting, sequence_length)
        # A sequence begins here, so that the rest of a document counts from 0 like a document.
        waiting, num_waiting = _after(waiting, block.num_tokens), num_waiting - block.num_tokens
        if left is not None:
            block = block.first(left)
            left -= block.num_sequences
        yield block
        if left == 0:
            return
    block = pack(waiting, sequence_length)
    yield block if left is None else block.first(left)


def save_blocks(blocks: Iterable[PackedTokens], path: Path, sequence_length: int, vocab_size: int) -> None:
    """Write sequences as they come, in types as small as the vocabulary allows, whole or not at all.

    Args:
        blocks: The sequences.
        path: A safetensors file that `PackedTokens.load` reads.
        sequence_length: Tokens of a sequence.
        vocab_size: One more than the largest token id.
    """
    dtypes = {"input_ids": token_dtype(vocab_size), "position_ids": token_dtype(sequence_length)}
    digest = ContentDigest()

    def rows() -> Iterator[dict[str, NDArray[Any]]]:
        for block in blocks:
            digest.add(block)
            yield {name: getattr(block, name).numpy().astype(dtype) for name, dtype in dtypes.items()}

    row_shapes = {name: ((sequence_length,), dtype) for name, dtype in dtypes.items()}
    write_arrays(path, rows(), row_shapes, lambda: {_FINGERPRINT: digest.fingerprint})


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the smallest type that holds every token id, and that torch can read.

    Args:
        vocab_size: One more than the largest token id.
    """
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.int32)


def tokenize(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, vocab_size: int
) -> Iterator[NDArray[np.int64]]:
    """Yield each document's token ids, (num_tokens,), int64.

    A text is ended by the tokenizer's end-of-text token. A conversation is what the chat template makes
    of it, to which nothing is added.

    Args:
        documents: Texts and conversations.
        tokenizer: The teacher's.
        vocab_size: Of the model that reads the ids.

    Raises:
        DataError: If there is a conversation that the tokenizer has no template for, or that its template
            refuses; or if an id lies beyond the vocabulary.
    """
    stream = iter(documents)
    while batch := list(islice(stream, _TOKENIZE_BATCH)):
        texts = [document for document in batch if isinstance(document, str)]
        chats = [document.render(tokenizer) for document in batch if not isinstance(document, str)]
        text_ids = iter(tokenizer(texts, verbose=False)["input_ids"] if texts else ())
        chat_ids = iter(tokenizer(chats, add_special_tokens=False, verbose=False)["input_ids"] if chats else ())
        for document in batch:
            ids = _ended(next(text_ids), tokenizer.eos_token_id) if isinstance(document, str) else next(chat_ids)
            array = np.array(ids, dtype=np.int64)
            if (largest := int(array.max(initial=0))) >= vocab_size:
                raise DataError(
                    f"the tokenizer makes {tokenizer.convert_ids_to_tokens(largest)!r}, id {largest}, of a document, "
                    f"but the model has vocab_size={vocab_size}; take this token out of the text, or call "
                    "model.resize_token_embeddings and save the model again"
                )
            yield array


def _ended(ids: list[int], end: int | None) -> list[int]:
    return ids if end is None or ids[-1:] == [end] else [*ids, end]


def _after(pieces: list[TokenIds], num_tokens: int) -> list[TokenIds]:
    """Return what is left of pieces after their first tokens, with their borders."""
    for number, piece in enumerate(pieces):
        if num_tokens < len(piece):
            return [piece[num_tokens:], *pieces[number + 1 :]]
        num_tokens -= len(piece)
    return []


def _no_tokens(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} holds no packed tokens; delete it and repeat the command that wrote it")


def _wide(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(array.astype(np.int64))
