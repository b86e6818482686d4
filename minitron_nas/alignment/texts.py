"""The conversations or preferences of an alignment in tokens: what is trained on, and what is held out."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from minitron_nas.alignment.parts import Parts, R, Read, pack_turns, read_all, split_rows
from minitron_nas.alignment.preference import Pair
from minitron_nas.alignment.rows import Preference, Rows, read_answers, read_preferences
from minitron_nas.errors import DataError
from minitron_nas.text.settings import TextSettings
from minitron_nas.text.tokens import PackedTokens
from minitron_nas.text.turns import TurnTokens, turn_tokens


@dataclass(frozen=True, slots=True)
class AlignmentTexts:
    """Conversations in tokens; of preferences those with what was chosen.

    Attributes:
        train: To train on.
        held_out: To validate on.
        length: Tokens of a sequence.
        pairs: Of preferences, in tokens; empty otherwise.
        held_out_pairs: The same that are held out.
    """

    train: Read
    held_out: Read
    length: int
    pairs: tuple[Pair, ...] = ()
    held_out_pairs: tuple[Pair, ...] = ()

    @property
    def packed_held_out(self) -> PackedTokens:
        """What is held out, in sequences."""
        return pack_turns(self.held_out.turns, self.length)


def read_conversations(
    data: Rows, validation: Rows | None, tokenizer: PreTrainedTokenizerBase, text: TextSettings, seed: int
) -> AlignmentTexts:
    """Read conversations to learn the answers of.

    Args:
        data: To train on.
        validation: To hold out; without it a part of the data.
        tokenizer: With the chat template.
        text: Length of a sequence, column, split and number of rows that are held out.
        seed: Decides the order of rows.

    Raises:
        DataError: If there is no such data, or a row is no conversation that can be learned from; names file and row.
    """
    parts = _split(read_answers, data, validation, text, seed)
    train, held_out = (
        read_all([turn_tokens(row.conversation, tokenizer, row.first) for row in rows], text.sequence_length)
        for rows in (parts.train, parts.held_out)
    )
    return AlignmentTexts(train, held_out, text.sequence_length)


def read_pairs(
    data: Rows, validation: Rows | None, tokenizer: PreTrainedTokenizerBase, text: TextSettings, seed: int
) -> AlignmentTexts:
    """Read preferences, with the same arguments and errors as `read_conversations`.

    Args:
        data: To train on.
        validation: To hold out; without it a part of the data.
        tokenizer: With the chat template.
        text: Length of a sequence, split and number of rows that are held out.
        seed: Decides the order of rows.

    Raises:
        DataError: If there is no such data, or a row is no preference that can be learned from; names file and row.
    """
    parts = _split(read_preferences, data, validation, text, seed)
    train, held_out = (_read_pairs(rows, tokenizer, text.sequence_length) for rows in (parts.train, parts.held_out))
    return AlignmentTexts(train[0], held_out[0], text.sequence_length, train[1], held_out[1])


def _split(
    read: Callable[[Rows, TextSettings], Iterable[R]],
    data: Rows,
    validation: Rows | None,
    text: TextSettings,
    seed: int,
) -> Parts[R]:
    others = None if validation is None else read(validation, text)
    return split_rows(read(data, text), others, text.validation_samples, seed)


def _read_pairs(
    rows: Sequence[Preference], tokenizer: PreTrainedTokenizerBase, length: int
) -> tuple[Read, tuple[Pair, ...]]:
    """Return the conversations with what was chosen, of those preferences that can be learned, and these in tokens."""
    chosen, rejected = (
        [turn_tokens(answer.conversation, tokenizer, answer.first) for answer in answers]
        for answers in ([row.chosen for row in rows], [row.rejected for row in rows])
    )
    pairs = [_pair(better, worse, length) for better, worse in zip(chosen, rejected, strict=True)]
    read = read_all(chosen, length)
    kept = tuple(turns.first(length) for turns, pair in zip(chosen, pairs, strict=True) if pair is not None)
    if not kept:
        raise DataError(f"no prompt of {len(rows):,} preferences lies within text.sequence_length={length}; raise it")
    found = tuple(pair for pair in pairs if pair is not None)
    return replace(read, turns=kept, num_left_out=len(rows) - len(kept)), found


def _pair(chosen: TurnTokens, rejected: TurnTokens, length: int) -> Pair | None:
    """Return the tokens of a preference, cut at a length; None where nothing is left of an answer."""
    if not chosen.written.any() or not rejected.written.any():
        return None
    begins = [int(turns.written.argmax()) for turns in (chosen, rejected)]
    first = min(begins)
    if (chosen.ids[:first] != rejected.ids[:first]).any() or first >= length:
        return None
    # The end of an answer is the end of what is written: what a template puts behind it is no answer.
    better, worse = (
        turns.ids[first : min(int(turns.written.nonzero()[0][-1]) + 1, length)].tolist() for turns in (chosen, rejected)
    )
    return Pair(chosen.ids[:first].tolist(), better, worse)
