"""Packed token sequences, and the split of text into calibration, validation and training."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from minitron_nas.distillation.losses import IGNORE_LABEL
from minitron_nas.distillation.settings import TextSettings
from minitron_nas.errors import DataError
from minitron_nas.storage.atomic import whole_file

ONE_PASS_TOKENS = 10**9
"""Without a token budget, training text is read up to this many tokens."""

_TOKENIZE_BATCH = 64
_MIN_CALIBRATION_SEQUENCES = 4


@dataclass(frozen=True, slots=True)
class PackedTokens:
    """Sequences of one length, filled with whole documents one after the other.

    Attributes:
        input_ids: (num_sequences, seq_len), int64.
        position_ids: (num_sequences, seq_len), int64; 0 at each document's first token and at the
            start of a sequence. Attention in transformers does not cross such a border.
    """

    input_ids: Tensor
    position_ids: Tensor

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
        """A hash of the content."""
        digest = sha256(self.input_ids.numpy().tobytes())
        digest.update(self.position_ids.numpy().tobytes())
        return digest.hexdigest()[:16]

    def labels(self) -> Tensor:
        """Return (num_sequences, seq_len): each token's next token, or IGNORE_LABEL at a border."""
        labels = torch.full_like(self.input_ids, IGNORE_LABEL)
        inside = self.position_ids[:, 1:] > 0
        labels[:, :-1] = torch.where(inside, self.input_ids[:, 1:], labels[:, :-1])
        return labels

    def first(self, num_sequences: int) -> Self:
        """Return the first sequences."""
        return type(self)(self.input_ids[:num_sequences], self.position_ids[:num_sequences])

    def batches(self, size: int, begin: int = 0) -> Iterator[tuple[Tensor, Self]]:
        """Yield (sequence indices, their tokens) in order, from sequence `begin` on."""
        for start in range(begin, self.num_sequences, size):
            indices = torch.arange(start, min(start + size, self.num_sequences))
            yield indices, type(self)(self.input_ids[indices], self.position_ids[indices])

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        tensors = {"input_ids": self.input_ids.int(), "position_ids": self.position_ids.int()}
        with whole_file(path) as partial:
            save_file(tensors, partial)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a safetensors file."""
        tensors = load_file(path)
        return cls(tensors["input_ids"].long(), tensors["position_ids"].long())


@dataclass(frozen=True, slots=True)
class TokenSplits:
    """Text split by document, so that no document is in two parts."""

    calibration: PackedTokens
    validation: PackedTokens
    train: PackedTokens

    def save(self, folder: Path) -> None:
        """Write one file per part."""
        for name in self.__dataclass_fields__:
            getattr(self, name).save(folder / f"{name}.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""
        return cls(*(PackedTokens.load(folder / f"{name}.safetensors") for name in cls.__dataclass_fields__))


def pack(documents: Iterable[Any], sequence_length: int) -> PackedTokens:
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


def tokenize(documents: Iterable[str], tokenizer: Any) -> Iterator[Any]:
    """Yield each document's token ids, ended by the tokenizer's end-of-text token."""
    stream = iter(documents)
    while batch := list(islice(stream, _TOKENIZE_BATCH)):
        for ids in tokenizer(batch, verbose=False)["input_ids"]:
            ending = (
                []
                if tokenizer.eos_token_id is None or ids[-1:] == [tokenizer.eos_token_id]
                else [tokenizer.eos_token_id]
            )
            yield np.array([*ids, *ending], dtype=np.int64)


def split_tokens(
    documents: Iterable[str], tokenizer: Any, settings: TextSettings, train_tokens: int | None
) -> TokenSplits:
    """Read as many documents as are needed and split them.

    Validation and calibration take the first `sequence_length` tokens of a document each, so that
    they see many documents; training takes whole documents.

    Args:
        documents: Distinct documents in random order.
        tokenizer: The teacher's tokenizer.
        settings: Sizes of the parts.
        train_tokens: Training tokens needed, or None for one pass over the text.

    Raises:
        DataError: If the text is too short; the message says tokens found and needed.
    """
    length = settings.sequence_length
    validation_goal, calibration_goal = settings.validation_samples * length, settings.calibration_samples * length
    wanted = train_tokens if train_tokens is not None else ONE_PASS_TOKENS
    pieces: list[Any] = []
    missing_held_out = [validation_goal, calibration_goal]
    found = spent = 0
    enough = False
    for piece in tokenize(documents, tokenizer):
        pieces.append(piece)
        found += len(piece)
        if missing_held_out:
            missing_held_out[0] -= min(len(piece), length)
            spent = found
            if missing_held_out[0] <= 0:
                missing_held_out.pop(0)
        elif found - spent >= wanted + length:
            enough = True
            break
    validation_tokens = validation_goal if enough else min(validation_goal, found // 10)
    calibration_tokens = calibration_goal if enough else min(calibration_goal, found // 5)
    validation, rest = _take(pieces, validation_tokens, length)
    calibration, rest = _take(rest, calibration_tokens, length)
    train = pack(rest, length)
    needed = (min(wanted, train_tokens or length) - 1) // length * length + length
    available = train.num_tokens * settings.max_epochs
    least_calibration = min(_MIN_CALIBRATION_SEQUENCES, settings.calibration_samples)
    if not validation.num_sequences or calibration.num_sequences < least_calibration or available < needed:
        # Of more text at least seven tenths are for training, less what does not fill a sequence of a part.
        missing = max(ceil(needed / settings.max_epochs) - train.num_tokens, 0)
        enough_tokens = max(found + ceil((missing + 3 * length) / 0.7), 5 * _MIN_CALIBRATION_SEQUENCES * length)
        raise DataError(
            f"the text is too short: {found:,} tokens found, of which {train.num_tokens:,} are for training after "
            f"validation ({validation.num_tokens:,}) and calibration ({calibration.num_tokens:,}); about "
            f"{enough_tokens:,} are needed ({needed:,} for training); add text, lower distillation.tokens or "
            "text.sequence_length, or allow repeats with text.max_epochs"
        )
    return TokenSplits(calibration, validation, train)


def _take(pieces: list[Any], goal: int, length: int) -> tuple[PackedTokens, list[Any]]:
    """Pack the beginnings of the first documents until `goal` tokens are reached."""
    taken, total = [], 0
    for piece in pieces:
        if total >= goal:
            break
        taken.append(piece[:length])
        total += len(taken[-1])
    return pack(taken, length).first(max(1, goal // length)), pieces[len(taken) :]
