"""The tokens of a conversation, and which of them an assistant writes."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from minitron_nas.errors import DataError
from minitron_nas.text.conversation import Conversation
from minitron_nas.text.plain import plain

ASSISTANT = "assistant"

_MARKED = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
"""The tag by which a template itself says what an assistant writes."""


@dataclass(frozen=True, slots=True)
class TurnTokens:
    """A conversation as a model reads it.

    Attributes:
        ids: (num_tokens,), int64.
        written: (num_tokens,), bool: what the assistant writes, the token that ends its turn included.
        num_turns: Turns of the assistant that were to be found.
        num_found: Of these, the turns whose tokens are in `written`.
        end_ids: Special tokens that end a turn of the assistant.
    """

    ids: NDArray[np.int64]
    written: NDArray[np.bool_]
    num_turns: int
    num_found: int
    end_ids: frozenset[int]

    def first(self, num_tokens: int) -> "TurnTokens":
        """Return the beginning.

        Args:
            num_tokens: How many tokens; all where there are no more.
        """
        beginning = (self.ids[:num_tokens], self.written[:num_tokens])
        return TurnTokens(*beginning, self.num_turns, self.num_found, self.end_ids)


def turn_tokens(conversation: Conversation, tokenizer: PreTrainedTokenizerBase, first: int = 0) -> TurnTokens:
    """Return the tokens that the chat template makes of a conversation, and which of them the assistant writes.

    A template with `{% generation %}` says so itself. Of any other, a turn begins where the template's own prompt for
    an answer ends, and ends with what the template writes of the conversation up to it; where that is no special token,
    the one that opens the next turn ends it. Both have to be beginnings of the whole: a turn which the template writes
    otherwise once others follow, as some do with thoughts, is what no model has to write in that place, and counts as
    read.

    Args:
        conversation: The turns.
        tokenizer: Has a chat template, and tells where in a text its tokens lie.
        first: The first turn that counts; those before it are read only.

    Raises:
        DataError: If the template refuses the conversation, or there is no turn of an assistant among those that count.
    """
    text, messages = conversation.written(tokenizer)
    places = [number for number, message in enumerate(messages) if message["role"] == ASSISTANT and number >= first]
    if not places:
        raise DataError(
            f"{conversation.origin or 'a conversation'}: no turn is an assistant's, so there is nothing to learn from; "
            "take it out, or name the assistant's role 'assistant'"
        )
    if not tokenizer.is_fast:
        raise DataError(
            "the tokenizer does not tell where in a text its tokens lie, which takes a tokenizer.json; save it with "
            "transformers' fast tokenizer"
        )
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, offsets = np.array(coded["input_ids"], dtype=np.int64), np.array(coded["offset_mapping"]).reshape(-1, 2)
    if _MARKED.search(str(tokenizer.get_chat_template(tools=conversation.tools))):
        before = sum(message["role"] == ASSISTANT for message in messages[:first])
        turns = _marked(tokenizer, messages, conversation.tools)[before:]
    else:
        spans = _spans(tokenizer, messages, conversation.tools, text, places)
        # A token that reaches over a border is none that is written after a prompt.
        turns = [
            ((offsets[:, 0] >= begin) & (offsets[:, 1] <= end) & (offsets[:, 1] > offsets[:, 0])).nonzero()[0]
            for begin, end in spans
        ]
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    turns = [_with_end(turn, ids, special) for turn in turns if len(turn)]
    written = np.zeros(len(ids), dtype=np.bool_)
    for turn in turns:
        written[turn] = True
    ends = frozenset(int(ids[turn[-1]]) for turn in turns) & special
    return TurnTokens(ids, written, len(places), len(turns), ends)


def _with_end(turn: NDArray[np.int64], ids: NDArray[np.int64], special: set[int]) -> NDArray[np.int64]:
    """The places of a turn with that of the token which ends it, which may be the one that opens the next turn."""
    last = int(turn[-1])
    opens = last + 1 < len(ids) and int(ids[last]) not in special and int(ids[last + 1]) in special
    return np.append(turn, last + 1) if opens else turn


def _marked(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, Any]], tools: list[Any] | None
) -> list[NDArray[np.int64]]:
    """The places of the tokens of each turn that the template marks itself."""
    coded: Any = tokenizer.apply_chat_template(
        list(messages), tools=tools, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    places = np.array(coded["assistant_masks"], dtype=np.int64).nonzero()[0]
    return [turn for turn in np.split(places, (np.diff(places) > 1).nonzero()[0] + 1) if len(turn)]


def _write(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, Any]], tools: list[Any] | None, prompt: bool
) -> str | None:
    """What the template makes of turns, with the beginning of an answer or without; None where it refuses them."""
    try:
        text = tokenizer.apply_chat_template(list(messages), tools=tools, tokenize=False, add_generation_prompt=prompt)
    except Exception:  # noqa: BLE001  # templates raise whatever they like
        return None
    return plain(str(text))


def _spans(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, Any]],
    tools: list[Any] | None,
    text: str,
    places: Sequence[int],
) -> Iterator[tuple[int, int]]:
    """Yield where in the text the turns at some places begin and end, of those that are found."""
    for place in places:
        before = _write(tokenizer, messages[:place], tools, prompt=True)
        upto = _write(tokenizer, messages[: place + 1], tools, prompt=False)
        if before is None or upto is None or not upto.startswith(before) or not text.startswith(upto):
            continue
        yield len(before), len(before) + len(_without_tail(upto[len(before) :], tokenizer))


def _without_tail(answer: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """An answer without the white space that a template puts behind the token which ends it."""
    stripped = answer.rstrip()
    ends = tuple(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return stripped if ends and stripped.endswith(ends) else answer
