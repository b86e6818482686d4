"""What lies beside the weights of two models and changes what a user gets of them, though their logits are equal."""

import copy
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Self

from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from minitron_nas.models.checkpoint import Checkpoint
from minitron_nas.pipeline.steps.check import Check
from minitron_nas.storage.foreign import read_object
from minitron_nas.text.settings import TextSettings
from minitron_nas.text.sources import read_in_order

_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_TOKENS = ("bos_token", "eos_token", "pad_token")
_GENERATION: Mapping[str, Any] = {
    "do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": None, "typical_p": 1.0,
    "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "num_beams": 1, "max_length": 20, "max_new_tokens": None,
    "min_new_tokens": None, "bad_words_ids": None, "suppress_tokens": None, "stop_strings": None,
}  # fmt: skip
"""What says how text is written, and what transformers does where a folder does not say."""

SAME_TOKENS = ("tokenizer", "vocabulary")
"""Checks without which nothing that two models say can be compared."""

_CONVERSATION = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "It is 4."},
    {"role": "user", "content": "Thank you."},
]


@dataclass(frozen=True, slots=True)
class Companions:
    """What lies beside a model's weights.

    Attributes:
        config: Its config, with the defaults of transformers.
        generation: The content of its `generation_config.json`; empty without one.
        tokenizer: Its tokenizer.
        vocab_size: Rows of its embedding.
    """

    config: Any
    generation: Mapping[str, Any]
    tokenizer: PreTrainedTokenizerBase
    vocab_size: int

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Self:
        """Read a folder.

        Args:
            checkpoint: The model.
        """
        file = checkpoint.path / "generation_config.json"
        return cls(
            AutoConfig.for_model(**copy.deepcopy(checkpoint.config)),
            read_object(file) if file.is_file() else {},
            AutoTokenizer.from_pretrained(checkpoint.path, trust_remote_code=False),
            checkpoint.architecture.vocab_size,
        )

    def special_tokens(self) -> dict[str, Any]:
        """Return which tokens begin, end and fill a text: by the config, by the settings of generation, in text."""
        stated = {name: getattr(self.config, name, None) for name in _IDS}
        said = {name: self.generation.get(name, stated[name]) for name in _IDS}
        return {
            **{f"{name} of config.json": _as_list(number) for name, number in stated.items()},
            **{f"{name} of generation": _as_list(number) for name, number in said.items()},
            **{f"{name} of the tokenizer": getattr(self.tokenizer, name, None) for name in _TOKENS},
        }

    def generated_by(self) -> dict[str, Any]:
        """Return how text is written unless a caller says otherwise."""
        stated = {name: self.generation.get(name) for name in _GENERATION}
        return {name: _GENERATION[name] if value is None else value for name, value in stated.items()}

    def context(self) -> dict[str, Any]:
        """Return how long a text may be, and on which side a shorter one is filled."""
        return {
            "max_position_embeddings": getattr(self.config, "max_position_embeddings", None),
            "model_max_length": self.tokenizer.model_max_length,
            "padding_side": self.tokenizer.padding_side,
        }


_SETTINGS: Mapping[str, Callable[[Companions], Mapping[str, Any]]] = {
    "chat_template": lambda its: {"chat_template": its.tokenizer.chat_template},
    "special_tokens": Companions.special_tokens,
    "generation": Companions.generated_by,
    "context": Companions.context,
}
"""Checks of settings: what each looks at, by name."""


def checks_of_settings(base: Companions, other: Companions, limit: float | None) -> Iterator[Check]:
    """Yield a check for every kind of setting: how many differ, and which.

    Args:
        base: Of the first model.
        other: Of the second.
        limit: The most of a kind that may differ.
    """
    for kind, read in _SETTINGS.items():
        first, second = read(base), read(other)
        told = [f"{name} is {_beside(first[name], second[name])}" for name in first if first[name] != second[name]]
        yield Check(kind, float(len(told)), limit, words=", ".join(told) or "the same")


def checks_of_tokens(base: Companions, other: Companions, text: str | Path, settings: TextSettings) -> list[Check]:
    """Return checks of tokens: their ids, rows for them, and whether both models cut and write a text alike.

    Looked at are all of a text, and a conversation as the first model's template writes it.

    Args:
        base: Of the first model.
        other: Of the second.
        text: Text, jsonl or parquet files.
        settings: Column, split and configuration to read.

    Raises:
        DataError: If there is no text.
    """
    first, second = base.tokenizer, other.tokenizer
    ids, words = _Differences("token"), _Differences("character")
    used: set[int] = {first.eos_token_id} - {None}
    for sample in _samples(first, text, settings):
        mine, theirs = (list(each(sample, verbose=False)["input_ids"]) for each in (first, second))
        used.update(mine)
        ids.look(first.convert_ids_to_tokens(mine), second.convert_ids_to_tokens(theirs))
        words.look(first.decode(mine, skip_special_tokens=True), second.decode(mine, skip_special_tokens=True))
    beyond = sorted(number for number in used if number >= other.vocab_size)
    lacking = f"the text needs {len(beyond)} ids that have no row, such as {first.convert_ids_to_tokens(beyond[:1])}"
    sizes = float(base.vocab_size), float(other.vocab_size)
    return [
        _same_ids(first.get_vocab(), second.get_vocab()),
        _none("vocabulary", len(beyond), lacking if beyond else "a row for every id of the text", *sizes),
        _none("text_as_tokens", ids.count, ids.told),
        _none("tokens_as_text", words.count, words.told),
    ]


@dataclass(slots=True)
class _Differences:
    """Samples that two tokenizers read or write otherwise: how many of how many, and where the first one begins to."""

    unit: str
    total: int = 0
    count: int = 0
    first: str = ""

    def look(self, one: Sequence[str], other: Sequence[str]) -> None:
        """Count a sample.

        Args:
            one: By the first.
            other: By the second.
        """
        self.total += 1
        if one == other:
            return
        self.count += 1
        if not self.first:
            shared = _shared(one, other)
            self.first = f"from {self.unit} {shared:,} on: {_beside(one[shared:], other[shared:])}"

    @property
    def told(self) -> str:
        """The same in words."""
        return f"{self.count:,} of {self.total:,} texts differ, one {self.first}" if self.count else "the same"


def _same_ids(first: Mapping[str, int], second: Mapping[str, int]) -> Check:
    different = {token for token, _ in first.items() ^ second.items()}
    words = f"{len(different)} tokens are missing or have other ids" if different else "the same"
    return _none("tokenizer", len(different), words, float(len(first)), float(len(second)))


def _none(measure: str, count: int, words: str, base: float | None = None, other: float | None = None) -> Check:
    """A check that there is none of something."""
    return Check(measure, float(count), 0.0, "at most", base, other, words=words)


def _samples(tokenizer: PreTrainedTokenizerBase, text: str | Path, settings: TextSettings) -> Iterator[str]:
    for document in read_in_order(text, settings):
        yield document if isinstance(document, str) else document.render(tokenizer)
    if tokenizer.chat_template:
        with suppress(Exception):  # a template may refuse these turns
            yield str(tokenizer.apply_chat_template(_CONVERSATION, tokenize=False, add_generation_prompt=True))


def _as_list(given: Any) -> list[Any]:
    return sorted(given) if isinstance(given, list) else [] if given is None else [given]


def _beside(one: Any, other: Any) -> str:
    """Two values, shortened; texts from where they part."""
    if isinstance(one, str) and isinstance(other, str):
        shared = _shared(one, other)
        one, other = one[shared:], other[shared:]
    return f"{reprlib.repr(one)} and {reprlib.repr(other)}"


def _shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How long the beginning is that two texts or lists have in common."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
