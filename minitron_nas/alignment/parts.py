"""What an alignment trains on and what it holds out: conversations in tokens, packed without cutting any in two."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch

from minitron_nas.errors import DataError
from minitron_nas.text.tokens import PackedTokens
from minitron_nas.text.turns import TurnTokens

HELD_OUT_SHARE = 10
"""One in so many rows is held out where no other rows are named for it."""

_OPEN_SEQUENCES = 64


class Row(Protocol):
    """What is read of one row."""

    @property
    def digest(self) -> int:
        """64 bits that rows share which say the same."""


R = TypeVar("R", bound=Row)


@dataclass(frozen=True, slots=True)
class Parts(Generic[R]):
    """Distinct rows in random order; no row is in both."""

    train: tuple[R, ...]
    held_out: tuple[R, ...]


def split_rows(rows: Iterable[R], others: Iterable[R] | None, most_held_out: int, seed: int) -> Parts[R]:
    """Split rows into what is trained on and what is held out.

    Without others a tenth is held out, at least one row and at most `most_held_out`; else that many of the others, and
    no row that stands among these is trained on.

    Args:
        rows: To train on.
        others: To hold out.
        most_held_out: How many are held out at most.
        seed: Decides the order.

    Raises:
        DataError: If nothing is left to train on or to hold out; says how many rows there were.
    """
    held_out = _distinct(others or (), set(), seed)[:most_held_out]
    seen = {row.digest for row in held_out}
    distinct = _distinct(rows, seen, seed)
    if others is None:
        count = min(max(len(distinct) // HELD_OUT_SHARE, 1), most_held_out)
        held_out, distinct = distinct[:count], distinct[count:]
    if not held_out or not distinct:
        raise DataError(
            f"the data holds {len(distinct)} rows to train on that stand nowhere else and {len(held_out)} to hold out; "
            "at least one of each is needed, so give more rows"
        )
    return Parts(tuple(distinct), tuple(held_out))


def _distinct(rows: Iterable[R], seen: set[int], seed: int) -> list[R]:
    """Return the rows that were not seen, each once, in an order that the seed decides."""
    found = {row.digest: row for row in rows if row.digest not in seen}
    order = list(found.values())
    random.Random(seed).shuffle(order)
    return order


@dataclass(frozen=True, slots=True)
class Read:
    """Conversations in tokens, as far as they can be learned from.

    Attributes:
        turns: Of each conversation that something is learned from.
        num_cut: Conversations that were cut at the length of a sequence.
        num_left_out: Conversations of which nothing would be learned: their answers lie behind that length, or the
            template writes them in a way that no model has to.
        num_answers: Turns of assistants in all conversations.
        num_learned: Of these, the turns that are learned.
    """

    turns: tuple[TurnTokens, ...]
    num_cut: int
    num_left_out: int
    num_answers: int
    num_learned: int

    @property
    def num_tokens(self) -> int:
        """Tokens that are learned."""
        return sum(int(turn.written.sum()) for turn in self.turns)

    @property
    def end_ids(self) -> frozenset[int]:
        """Special tokens that end an assistant's turn."""
        return frozenset(chain.from_iterable(turn.end_ids for turn in self.turns))

    def about(self, part: str) -> list[str]:
        """Say what became of the conversations of a part, in lines."""
        said = []
        if self.num_cut:
            said.append(f"{part}: {self.num_cut:,} conversations are longer than text.sequence_length and were cut")
        if self.num_left_out:
            said.append(f"{part}: {self.num_left_out:,} conversations hold no answer that can be learned")
        if self.num_learned < self.num_answers:
            said.append(
                f"{part}: {self.num_answers - self.num_learned:,} of {self.num_answers:,} answers are read but not "
                "learned: the chat template writes them otherwise once other turns follow"
            )
        return said


def read_all(whole: Sequence[TurnTokens], length: int) -> Read:
    """Read conversations up to the length of a sequence.

    Args:
        whole: The conversations.
        length: Tokens of a sequence.

    Raises:
        DataError: If no answer can be learned from any of them.
    """
    kept = [turns.first(length) for turns in whole]
    learned = tuple(turns for turns in kept if turns.written[1:].any())
    if not learned:
        found = sum(turns.num_found for turns in whole)
        raise DataError(
            f"no answer of {len(whole):,} conversations lies within text.sequence_length={length}; raise it"
            if found
            else "the chat template writes no answer as it would be written after its own prompt; put {% generation %} "
            "and {% endgeneration %} around what the assistant writes in it"
        )
    return Read(
        learned,
        sum(len(turns.ids) > length for turns in whole),
        len(whole) - len(learned),
        sum(turns.num_turns for turns in whole),
        sum(turns.num_found for turns in whole),
    )


def pack_turns(conversations: Sequence[TurnTokens], length: int) -> PackedTokens:
    """Lay whole conversations into sequences, each into the first that has room; padding counts in no loss.

    A token counts if the assistant writes its next one.

    Args:
        conversations: None is longer than a sequence.
        length: Tokens of a sequence.
    """
    full: list[list[TurnTokens]] = []
    room: list[int] = []
    for turns in conversations:
        begin = max(len(full) - _OPEN_SEQUENCES, 0)
        place = next((place for place in range(begin, len(full)) if room[place] >= len(turns.ids)), None)
        if place is None:
            full.append([])
            room.append(length)
            place = len(full) - 1
        full[place].append(turns)
        room[place] -= len(turns.ids)
    ids, positions, taught = (np.zeros((len(full), length), dtype=np.int64) for _ in range(3))
    for number, sequence in enumerate(full):
        begin = 0
        for turns in sequence:
            end = begin + len(turns.ids)
            ids[number, begin:end] = turns.ids
            positions[number, begin:end] = np.arange(end - begin)
            taught[number, begin : end - 1] = turns.written[1:]
            begin = end
        positions[number, begin:] = np.arange(length - begin)
    return PackedTokens(torch.from_numpy(ids), torch.from_numpy(positions), taught=torch.from_numpy(taught))
