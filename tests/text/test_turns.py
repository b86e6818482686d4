import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from minitron_nas.errors import DataError
from minitron_nas.testing import tiny_tokenizer
from minitron_nas.text.conversation import Conversation
from minitron_nas.text.turns import turn_tokens

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must take turns') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ first if loop.first }}{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] }}{{ eos_token }}"
    "{% else %}{{ raise_exception('no system role') }}{% endif %}{% endfor %}"
)
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = CHATML.replace(
    "{{ m['content'] }}<|im_end|>\n",
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m['content'] }}<|im_end|>{% endif %}\n",
)

# What stands between these, the end included, is an answer: read off the text, without the template.
ANSWERS = {
    "chatml": (CHATML, r"<\|im_start\|>assistant\n(.*?<\|im_end\|>)", "<|im_end|>"),
    "llama": (LLAMA, r"<\|start_header_id\|>assistant<\|end_header_id\|>\n\n(.*?<\|eot_id\|>)", "<|eot_id|>"),
    "gemma": (GEMMA, r"<start_of_turn>model\n(.*?<end_of_turn>)", "<end_of_turn>"),
    "mistral": (MISTRAL, r"\[/INST\](.*?<\|im_end\|>)", "<|im_end|>"),
    "marked": (MARKED, r"<\|im_start\|>assistant\n(.*?<\|im_end\|>)", "<|im_end|>"),
}
ASKED = {"role": "user", "content": "  two\nlines? "}
TOLD = {"role": "assistant", "content": "Yes, é and 😀."}
MORE = [{"role": "user", "content": "And now: assistant\n?"}, {"role": "assistant", "content": "no\n\n- more"}]


def tokenizer_of(template: str) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    ends = ["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>", "<end_of_turn>"]
    tokenizer.add_special_tokens({"additional_special_tokens": ends})
    tokenizer.chat_template = template
    return tokenizer


def expected(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, Any]], pattern: str) -> list[str]:
    """The tokens of each answer, found by where it stands in the text and coded by itself."""
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    return [
        token
        for answer in re.findall(pattern, text, re.DOTALL)
        for token in tokenizer.convert_ids_to_tokens(tokenizer(answer, add_special_tokens=False)["input_ids"])
    ]


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize(
    "messages", [[ASKED, TOLD], [ASKED, TOLD, *MORE], [ASKED, TOLD, ASKED]], ids=["one", "two", "open"]
)
def test_what_an_assistant_writes_is_its_turns_and_nothing_else(name: str, messages: list[dict[str, Any]]) -> None:
    template, pattern, end = ANSWERS[name]
    tokenizer = tokenizer_of(template)
    turns = turn_tokens(Conversation.of(messages), tokenizer)
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert turns.ids.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
    written = tokenizer.convert_ids_to_tokens(turns.ids[turns.written].tolist())
    assert written == expected(tokenizer, messages, pattern)
    assert tokenizer.convert_ids_to_tokens(list(turns.end_ids)) == [end]
    assert turns.num_found == turns.num_turns == sum(message["role"] == "assistant" for message in messages)


@pytest.mark.parametrize("name", ["chatml", "llama", "gemma", "marked"])
def test_a_system_turn_is_read_only(name: str) -> None:
    template, pattern, _ = ANSWERS[name]
    tokenizer, messages = tokenizer_of(template), [{"role": "system", "content": "Be brief."}, ASKED, TOLD]
    turns = turn_tokens(Conversation.of(messages), tokenizer)
    written = tokenizer.convert_ids_to_tokens(turns.ids[turns.written].tolist())
    assert written == expected(tokenizer, messages, pattern)


@pytest.mark.parametrize("name", ANSWERS)
def test_turns_before_the_first_that_counts_are_read_only(name: str) -> None:
    template, pattern, _ = ANSWERS[name]
    tokenizer, messages = tokenizer_of(template), [ASKED, TOLD, *MORE]
    turns = turn_tokens(Conversation.of(messages), tokenizer, first=3)
    last = expected(tokenizer, [ASKED, MORE[1]], pattern)
    assert tokenizer.convert_ids_to_tokens(turns.ids[turns.written].tolist()) == last
    assert turns.num_turns == 1


def test_an_answer_that_is_written_otherwise_once_others_follow_is_read_only() -> None:
    tokenizer = tokenizer_of(THINKS)
    turns = turn_tokens(Conversation.of([ASKED, TOLD, *MORE]), tokenizer)
    assert (turns.num_turns, turns.num_found) == (2, 1)
    assert tokenizer.decode(turns.ids[turns.written]) == "<think>\n\n</think>\n\nno\n\n- more<|im_end|>"


def test_a_template_that_ends_answers_with_no_token_has_no_end() -> None:
    tokenizer = tokenizer_of("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}")
    turns = turn_tokens(Conversation.of([ASKED, TOLD]), tokenizer)
    assert turns.end_ids == frozenset()
    assert tokenizer.decode(turns.ids[turns.written]) == f"assistant: {TOLD['content']}\n"


def test_an_answer_that_nothing_else_ends_is_ended_by_what_opens_the_next_turn() -> None:
    tokenizer = tokenizer_of(
        "{% for m in messages %}<|{{ {'user': 'start_header_id', 'assistant': 'eot_id'}[m['role']] }}|>\n"
        "{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<|eot_id|>\n{% endif %}"
    )
    turns = turn_tokens(Conversation.of([ASKED, TOLD, *MORE]), tokenizer)
    answers = [TOLD["content"] + "<|start_header_id|>", "no\n\n- more"]
    assert tokenizer.decode(turns.ids[turns.written]) == "".join(answers)
    assert tokenizer.convert_ids_to_tokens(list(turns.end_ids)) == ["<|start_header_id|>"]


def test_a_conversation_without_an_answer_is_refused_by_its_row() -> None:
    tokenizer, asked = tokenizer_of(CHATML), Conversation.of([ASKED], origin="a.jsonl, row 7")
    with pytest.raises(DataError, match=r"a\.jsonl, row 7: no turn is an assistant's"):
        turn_tokens(asked, tokenizer)


def test_calls_of_functions_are_written_by_the_assistant() -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] or '' }}"
        "{% for c in m['tool_calls'] or [] %}{{ c['arguments'] | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "add", "arguments": json.dumps({"a": 1})}]}
    tokenizer = tokenizer_of(template)
    turns = turn_tokens(Conversation.of([ASKED, call, {"role": "tool", "content": "1"}, TOLD]), tokenizer)
    assert tokenizer.decode(turns.ids[turns.written]) == '{"a": 1}<|im_end|>' + TOLD["content"] + "<|im_end|>"


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "llama3", "gemma3", "phi3"])
def test_published_templates_agree_with_where_trl_marks_them(name: str, trl_template: Callable[[str], str]) -> None:
    """trl has marked these templates by hand, in some of them a line break too early."""
    conversation = Conversation.of(
        [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello there."}]
    )
    plain, marked = tokenizer_of(trl_template(name)), tokenizer_of(trl_template(f"{name}_training"))
    found, told = turn_tokens(conversation, plain), turn_tokens(conversation, marked)
    text, other = (one.decode(turns.ids[turns.written]) for one, turns in ((plain, found), (marked, told)))
    assert text.strip() == other.strip()
    assert "Hello there." in text


@pytest.fixture
def trl_template() -> Callable[[str], str]:
    from importlib.util import find_spec
    from pathlib import Path

    spec = find_spec("trl")
    if spec is None or spec.origin is None:
        pytest.skip("trl is not installed")
    folder = Path(spec.origin).parent / "chat_templates"
    return lambda name: (folder / f"{name}.jinja").read_text(encoding="utf-8")
