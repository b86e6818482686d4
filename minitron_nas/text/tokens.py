"""Packed token sequences, in memory or memory-mapped."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from minitron_nas.errors import CheckpointError
from minitron_nas.storage.arrays import map_arrays, write_arrays

IGNORE_LABEL = -100
"""The label of a token that has no next token in its document, or stands for what came before in it."""

BLOCK_TOKENS = 1 << 20
"""Tokens that are worked on at a time."""

_FINGERPRINT = "fingerprint"
_ADDED = "added"
_TAUGHT = "taught"


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
        added: (num_sequences,), bool or a number: whether the first token is a BOS that stands in no document, because
            the sequence begins inside one. It counts in no loss. None where no sequence has one.
        taught: (num_sequences, seq_len), bool or a number: the tokens whose next token is to be learned, where that is
            not every one; no other counts in a loss. None where all do.
    """

    input_ids: Tensor
    position_ids: Tensor
    known_fingerprint: str | None = None
    added: Tensor | None = None
    taught: Tensor | None = None

    @property
    def counts_all(self) -> bool:
        """Whether every token counts in a loss."""
        return self.added is None and self.taught is None

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
        """Return (num_sequences, seq_len), int64: each token's next token, or IGNORE_LABEL where none counts."""
        labels = torch.full(self.input_ids.shape, IGNORE_LABEL)
        inside = (self.position_ids[:, 1:].long() > 0) & self.counted()[:, :-1]
        labels[:, :-1] = torch.where(inside, self.input_ids[:, 1:].long(), labels[:, :-1])
        return labels

    def counted(self) -> Tensor:
        """Return (num_sequences, seq_len), bool: which tokens count in a loss; those that are taught, no added BOS."""
        counted = torch.ones(self.input_ids.shape, dtype=torch.bool)
        if self.taught is not None:
            counted &= self.taught.long() != 0
        if self.added is not None:
            counted[:, :1] = (self.added.long() == 0)[:, None]
        return counted

    def num_labels(self) -> Tensor:
        """Return (num_sequences,), int64: how many tokens of each sequence have a next token that counts."""
        return torch.cat([(block.labels() != IGNORE_LABEL).sum(dim=1) for block in self._blocks()])

    def num_counted(self) -> Tensor:
        """Return (num_sequences,), int64: how many tokens of each sequence count."""
        if self.taught is not None:
            return torch.cat([block.counted().sum(dim=1) for block in self._blocks()])
        whole = torch.full((self.num_sequences,), self.input_ids.shape[1])
        return whole if self.added is None else whole - (self.added.long() != 0).long()

    def first(self, num_sequences: int) -> Self:
        """Return the first sequences, without copying them.

        Args:
            num_sequences: How many; all where there are no more.
        """
        if num_sequences >= self.num_sequences:
            return self
        added, taught = (None if part is None else part[:num_sequences] for part in (self.added, self.taught))
        return type(self)(self.input_ids[:num_sequences], self.position_ids[:num_sequences], added=added, taught=taught)

    def sequences(self, indices: Tensor) -> Self:
        """Return some sequences in memory, int64.

        Args:
            indices: (num_sequences,), in any order.
        """
        rows = indices.cpu().numpy()
        added, taught = (None if part is None else _wide(part.numpy()[rows]) for part in (self.added, self.taught))
        ids, positions = (_wide(part.numpy()[rows]) for part in (self.input_ids, self.position_ids))
        return type(self)(ids, positions, added=added, taught=taught)

    def in_memory(self) -> Self:
        """Return all sequences in memory, int64."""
        added, taught = (None if part is None else part.long() for part in (self.added, self.taught))
        return type(self)(self.input_ids.long(), self.position_ids.long(), self.known_fingerprint, added, taught)

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
        return type(self)(ids, text.position_ids, added=text.added, taught=text.taught)

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
        save_blocks(self._blocks(), path, self.input_ids.shape[1], largest + 1, self.taught is not None)

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
            added = arrays.get(_ADDED)  # files of earlier versions have none: no sequence of theirs begins with more
            taught = arrays.get(_TAUGHT)
        except CheckpointError:
            raise
        except (AttributeError, FileNotFoundError, LookupError, OverflowError, TypeError, ValueError):
            raise _no_tokens(path) from None
        if ids.ndim != 2 or ids.shape != positions.shape or not isinstance(known, str):
            raise _no_tokens(path)
        if added is not None and added.shape != ids.shape[:1]:
            raise _no_tokens(path)
        if taught is not None and taught.shape != ids.shape:
            raise _no_tokens(path)
        found = torch.from_numpy(added) if added is not None and added.any() else None
        learned = torch.from_numpy(taught) if taught is not None else None
        tokens = cls(torch.from_numpy(ids), torch.from_numpy(positions), known, found, learned)
        if verify and replace(tokens, known_fingerprint=None).fingerprint != known:
            raise CheckpointError(f"{path} is not what was written there; delete it and repeat the command")
        return tokens

    def _blocks(self) -> Iterator[Self]:
        for _, block in self.batches(max(BLOCK_TOKENS // self.input_ids.shape[1], 1)):
            yield block


class ContentDigest:
    """The fingerprint of packed tokens, computed while they are read or written."""

    def __init__(self) -> None:
        """Start from nothing."""
        self._digests = (sha256(), sha256())
        self._added, self._any_added = sha256(), False
        self._taught, self._any_taught = sha256(), False

    def add(self, block: PackedTokens) -> None:
        """Add the sequences that come next.

        Args:
            block: As many as there are at a time; how they are cut does not matter.
        """
        for digest, part in zip(self._digests, (block.input_ids, block.position_ids), strict=True):
            digest.update(part.numpy().astype("<i4").tobytes())
        flags = _flags(block)
        self._added.update(flags.astype("<i4").tobytes())
        self._any_added |= bool(flags.any())
        if block.taught is not None:
            self._taught.update(_marks(block).tobytes())
            self._any_taught = True

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits."""
        digests = [*self._digests, *([self._added] if self._any_added else [])]
        digests += [self._taught] if self._any_taught else []
        return sha256(b"".join(digest.digest() for digest in digests)).hexdigest()[:16]


def save_blocks(
    blocks: Iterable[PackedTokens], path: Path, sequence_length: int, vocab_size: int, taught: bool = False
) -> None:
    """Write sequences as they come, in types as small as the vocabulary allows, whole or not at all.

    Args:
        blocks: The sequences.
        path: A safetensors file that `PackedTokens.load` reads.
        sequence_length: Tokens of a sequence.
        vocab_size: One more than the largest token id.
        taught: Whether the blocks say which tokens are taught.
    """
    dtypes = {"input_ids": token_dtype(vocab_size), "position_ids": token_dtype(sequence_length)}
    digest = ContentDigest()

    def rows() -> Iterator[dict[str, NDArray[Any]]]:
        for block in blocks:
            digest.add(block)
            arrays = {name: getattr(block, name).numpy().astype(dtype) for name, dtype in dtypes.items()}
            yield {**arrays, _ADDED: _flags(block), **({_TAUGHT: _marks(block)} if taught else {})}

    row_shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        **{name: ((sequence_length,), dtype) for name, dtype in dtypes.items()},
        _ADDED: ((), np.dtype(np.uint16)),
    }
    if taught:
        row_shapes[_TAUGHT] = ((sequence_length,), np.dtype(np.uint16))
    write_arrays(path, rows(), row_shapes, lambda: {_FINGERPRINT: digest.fingerprint})


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the smallest type that holds every token id, and that torch can read.

    Args:
        vocab_size: One more than the largest token id.
    """
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.int32)


def _no_tokens(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} holds no packed tokens; delete it and repeat the command that wrote it")


def _wide(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(array.astype(np.int64))


def _flags(block: PackedTokens) -> NDArray[np.uint16]:
    """Which sequences begin with an added BOS, (num_sequences,)."""
    added = block.added
    return np.zeros(block.num_sequences, np.uint16) if added is None else (added.numpy() != 0).astype(np.uint16)


def _marks(block: PackedTokens) -> NDArray[np.uint16]:
    """Which tokens are taught, (num_sequences, seq_len)."""
    assert block.taught is not None
    marks: NDArray[np.uint16] = (block.taught.numpy() != 0).astype(np.uint16)
    return marks
