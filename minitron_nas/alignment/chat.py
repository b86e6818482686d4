"""How a student is talked to: the chat template and the tokens that end an answer, its own or an instruct model's."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from minitron_nas.errors import CheckpointError, DataError
from minitron_nas.models.checkpoint import Checkpoint
from minitron_nas.pruning.export import copy_companions
from minitron_nas.storage.atomic import read_json, write_json

_GENERATION = "generation_config.json"
_END, _TOKEN_KEYS = "eos_token_id", ("bos_token_id", "eos_token_id", "pad_token_id")
_PROBE = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})


def open_chat(
    student: Checkpoint, name: str, folder: Path, instruct: Path | None, instruct_name: str
) -> PreTrainedTokenizerBase:
    """Write what lies beside the aligned student's weights, and return its tokenizer.

    From an instruct model come the chat template, the tokens that begin and end a text, and the settings of
    generation; the vocabulary stays the student's own.

    Args:
        student: The student.
        name: What errors call it.
        folder: Gets tokenizer, template, generation settings and terms of use.
        instruct: The instruct model's folder; None for the student's own template.
        instruct_name: What errors call it.

    Raises:
        DataError: If there is no chat template.
        CheckpointError: If the vocabulary lacks a token that the template writes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    copy_companions(student.path, folder)
    own: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(student.path, trust_remote_code=False)
    if instruct is None:
        if not own.chat_template:
            raise DataError(
                f"the tokenizer of {name} has no chat template; take an instruct model's with --template-from MODEL"
            )
        return own
    other: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(instruct, trust_remote_code=False)
    if not other.chat_template:
        raise DataError(f"the tokenizer of {instruct_name} has no chat template; name an instruct model's")
    generation = read_json(instruct / _GENERATION) if (instruct / _GENERATION).is_file() else {}
    vocab_size = student.architecture.vocab_size
    lacking = sorted(token for token in _needed(other, generation) if _own_id(own, token, vocab_size) is None)
    if lacking:
        raise CheckpointError(
            f"the vocabulary of {name} lacks {', '.join(map(repr, lacking))}, which the chat template of "
            f"{instruct_name} writes; take the template of an instruct model of the student's own family"
        )
    own.chat_template = other.chat_template
    for role in ("bos_token", "eos_token", "pad_token"):
        token = getattr(other, role)
        if token is not None and _own_id(own, str(token), vocab_size) is not None:
            setattr(own, role, token)
    for file in folder.glob("chat_template*"):
        file.unlink()
    own.save_pretrained(folder)
    if generation:
        tokens = {key: _translated(generation[key], other, own, vocab_size) for key in _TOKEN_KEYS if key in generation}
        write_json(folder / _GENERATION, {**generation, **tokens})
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def end_generation(folder: Path, end_ids: Iterable[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Let generation stop where an answer ends, beside where it stopped before; return all such tokens' ids.

    Args:
        folder: What `open_chat` wrote.
        end_ids: Tokens that end an assistant's turn.
        tokenizer: What it returned.
    """
    path = folder / _GENERATION
    generation: dict[str, Any] = read_json(path) if path.is_file() else {}
    given = generation.get(_END, tokenizer.eos_token_id)
    before = given if isinstance(given, list) else [given] if given is not None else []
    ends = list(dict.fromkeys([*sorted(end_ids), *before]))
    if ends:
        write_json(path, {**generation, _END: ends if len(ends) > 1 else ends[0]})
    return ends


def _needed(other: PreTrainedTokenizerBase, generation: dict[str, Any]) -> set[str]:
    """The special tokens that a template writes, those that end what it writes, and those that end generation."""
    template = other.chat_template
    source = template if isinstance(template, str) else json.dumps(template)
    try:
        source += str(other.apply_chat_template(list(_PROBE), tokenize=False, add_generation_prompt=True))
    except Exception:  # noqa: BLE001  # a template may refuse these turns; its own words are looked at anyway
        source += ""
    added = {token.content for token in other.added_tokens_decoder.values()}
    needed = {token for token in added if token in source}
    ends = generation.get(_END)
    ids = ends if isinstance(ends, list) else [ends] if ends is not None else []
    return {*needed, *(str(other.convert_ids_to_tokens(number)) for number in ids)}


def _own_id(own: PreTrainedTokenizerBase, token: str, vocab_size: int) -> int | None:
    """The id of a token that the student reads as one, if it does."""
    ids = own(token, add_special_tokens=False, verbose=False)["input_ids"]
    return ids[0] if len(ids) == 1 and ids[0] < vocab_size and own.convert_ids_to_tokens(ids[0]) == token else None


def _translated(given: Any, other: PreTrainedTokenizerBase, own: PreTrainedTokenizerBase, vocab_size: int) -> Any:
    """Ids of the instruct model as the student's."""
    if isinstance(given, list):
        return [_translated(number, other, own, vocab_size) for number in given]
    return None if given is None else _own_id(own, str(other.convert_ids_to_tokens(given)), vocab_size)
