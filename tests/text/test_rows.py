"""Rows that are not what they should be: read as they are meant, or refused with file and row."""

import json

import datasets
import hypothesis.strategies as st
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given

from minitron_nas.errors import DataError
from minitron_nas.testing import tiny_tokenizer
from minitron_nas.text.conversation import Conversation
from minitron_nas.text.plain import plain
from minitron_nas.text.settings import TextSettings
from minitron_nas.text.sources import read_documents, read_in_order
from minitron_nas.text.tokenization import tokenize

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]
PARTS = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in CHAT]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def read(path, **settings):
    return read_in_order(path, TextSettings(**settings))


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def written(template, messages, **others):
    """What a template makes of messages."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return Conversation.of(messages, fills_with_none=False, **others).render(tokenizer)


PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}"
TRIMMED = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] | trim }};{% endfor %}"
ADDED = "{% for m in messages %}{{ m.role + ': ' + m.content + ';' }}{% endfor %}"
LISTS = (
    "{% for m in messages %}{{ m.role }}: {% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}<{{ part.text }}>{% endfor %}{% endif %};{% endfor %}"
)


@pytest.mark.parametrize("column", ["messages", "conversations"])
@pytest.mark.parametrize(
    "cell",
    [
        CHAT,
        json.dumps(CHAT),
        json.dumps(SHAREGPT),
        f"\n {json.dumps(CHAT, indent=2)}",
        json.dumps({"messages": CHAT}),
        [json.dumps(turn) for turn in CHAT],
        {"role": ["user", "assistant"], "content": ["Hi", "Ho"]},
        {"from": ["human", "gpt"], "value": ["Hi", "Ho"]},
    ],
)
@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_conversation_is_one_in_every_form_that_it_is_kept_in(tmp_path, column, cell, form):
    if form == "jsonl":
        path = jsonl(tmp_path / "a.jsonl", [{column: cell}])
    else:
        pq.write_table(pa.Table.from_pylist([{column: cell}]), path := tmp_path / "a.parquet")
    assert read(path) == [Conversation(CHAT)]


@pytest.mark.parametrize("cell", [str(CHAT), json.dumps(CHAT)[:-5], '{"messages": ['])
def test_what_begins_like_json_and_is_none_is_refused_with_file_and_row(tmp_path, cell):
    rows = [{"messages": CHAT}, {"messages": cell}]
    with pytest.raises(DataError, match=r"a\.jsonl, row 2: column 'messages' holds .*, which is not JSON; write JSON"):
        read(jsonl(tmp_path / "a.jsonl", rows))


@pytest.mark.parametrize("text", ["User: Hi", "[INST] Hi [/INST] Ho", "[1] a note"])
def test_plain_text_in_a_column_of_conversations_is_text(tmp_path, text):
    assert read(jsonl(tmp_path / "a.jsonl", [{"messages": text}])) == [text]


@pytest.mark.parametrize("column", ["text", "content", "code"])
def test_json_in_a_column_of_text_is_text(tmp_path, column):
    text = json.dumps(CHAT)
    assert read(jsonl(tmp_path / "a.jsonl", [{column: text}]), column=column) == [text]


@pytest.mark.parametrize("cell", [json.dumps(CHAT), json.dumps(SHAREGPT, indent=1), json.dumps({"messages": CHAT})])
@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_json_of_turns_is_a_conversation_in_a_column_of_any_other_name(tmp_path, cell, form):
    if form == "jsonl":
        path = jsonl(tmp_path / "a.jsonl", [{"turns": cell}])
    else:
        pq.write_table(pa.Table.from_pylist([{"turns": cell}]), path := tmp_path / "a.parquet")
    assert read(path, column="turns") == [Conversation(CHAT)]


@pytest.mark.parametrize("text", ["[]", "[1]", "{}", '{"a": 1}', '[{"title": "Hi"}]', "[{a}]", '{"role": "user"}'])
def test_other_json_in_a_column_of_any_other_name_is_text(tmp_path, text):
    assert read(jsonl(tmp_path / "a.jsonl", [{"page": text}]), column="page") == [text]


@pytest.mark.parametrize(("cell", "fault"), [(str(CHAT), "is not JSON"), (json.dumps([*CHAT, 7]), "is no message of")])
def test_turns_that_are_none_are_refused_in_a_column_of_any_other_name(tmp_path, cell, fault):
    rows = [{"turns": json.dumps(CHAT)}, {"turns": cell}]
    with pytest.raises(DataError, match=rf"a\.jsonl, row 2: .* {fault}"):
        read(jsonl(tmp_path / "a.jsonl", rows), column="turns")


@pytest.mark.parametrize("template", [PLAIN, TRIMMED, ADDED])
@pytest.mark.parametrize("kind", ["text", "input_text", "output_text", None])
def test_parts_are_joined_where_a_template_takes_no_list(template, kind):
    parts = [{"text": "Hi"}, {"text": "there"}]
    parts = parts if kind is None else [{"type": kind, **part} for part in parts]
    assert written(template, [{"role": "user", "content": parts}]) == "user: Hi\nthere;"


def test_parts_stay_a_list_where_a_template_takes_one():
    assert written(LISTS, PARTS) == "user: <Hi>;assistant: <Ho>;"
    assert written(LISTS, CHAT) == "user: Hi;assistant: Ho;"


BROKEN_CONTENTS = [
    [{"type": "image_url", "image_url": {"url": "x"}}],
    [{"type": "text", "text": "Hi"}, {"type": "image"}],
    [{"type": "text"}],
    [["Hi"]],
    42,
    True,
    1.5,
]


@pytest.mark.parametrize("content", BROKEN_CONTENTS)
def test_content_that_is_no_text_is_refused_with_file_and_row(tmp_path, content):
    rows = [{"messages": CHAT}, {"messages": [{"role": "user", "content": content}]}]
    with pytest.raises(DataError, match=r"a\.jsonl, row 2: .* has (a part|content) that is no text"):
        read(jsonl(tmp_path / "a.jsonl", rows))


@pytest.mark.parametrize("turn", [{"role": None, "content": "Hi"}, {"role": 5, "content": "Hi"}, "Hi", 7, None, []])
def test_a_turn_that_is_none_is_refused_with_file_and_row(tmp_path, turn):
    with pytest.raises(DataError, match=r"a\.jsonl, row 1: .* is no message of a conversation; it needs 'role'"):
        read(jsonl(tmp_path / "a.jsonl", [{"messages": [turn]}]))


CALL = {"function": {"name": "add", "arguments": {"a": 1, "b": None}}}
CALLED = [{"role": "assistant", "content": None, "tool_calls": [CALL]}]


LONG = "long " * 100_000


@pytest.mark.parametrize(
    "row",
    [
        {"text": [LONG]},
        {"messages": [{"role": "user", "content": 7, "id": LONG}]},
        {"messages": [{"role": "user", "content": [{"type": "image", "data": LONG}]}]},
        {"messages": f'["{LONG}'},
        {"messages": CHAT, "tools": LONG},
        {"text": {"a": LONG}},
        {f"column {number}": "Hi" for number in range(10_000)},
    ],
)
def test_what_is_refused_is_shown_in_part_where_it_is_long(tmp_path, row):
    with pytest.raises(DataError) as refused:
        read(jsonl(tmp_path / "a.jsonl", [row]))
    assert len(str(refused.value)) < 1000


def test_a_template_that_repeats_what_it_refuses_is_cut_short():
    with pytest.raises(DataError, match="the chat template refuses a conversation") as refused:
        written("{{ raise_exception('no ' + messages[0].content) }}", [{"role": "user", "content": LONG}])
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("names", [["text", "text"], ["text", "id", "text"], ["messages", "tools", "tools"]])
def test_a_column_that_stands_twice_is_refused_by_name(tmp_path, names):
    cells = [pa.array(["Hi"]) for _ in names]
    pq.write_table(pa.Table.from_arrays(cells, names=names), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=rf"a\.parquet has 2 columns '{names[-1]}'; rename all but one"):
        read(tmp_path / "a.parquet")


def test_content_that_is_null_is_never_written_as_none():
    assert written(PLAIN, CALLED) == "assistant: ;"
    assert written(TRIMMED, CALLED) == "assistant: ;"
    assert written(ADDED, CALLED) == "assistant: ;"
    none = [{"role": "user", "content": "None of it"}, *CALLED]
    assert written(PLAIN, none) == "user: None of it;assistant: ;"


def test_a_null_inside_a_row_of_json_means_what_it_says(tmp_path):
    tools = [{"function": {"name": "add", "parameters": {"b": {"default": None, "enum": [1, None]}}}}]
    turns = [{**CALLED[0], "refusal": None}]
    expected = [Conversation(CALLED, tools)]
    assert read(jsonl(tmp_path / "a.jsonl", [{"messages": turns, "tools": tools}])) == expected
    assert read(jsonl(tmp_path / "b.jsonl", [{"messages": turns, "tools": json.dumps(tools)}])) == expected
    as_text = [{"messages": json.dumps(turns), "tools": json.dumps(tools)}]
    datasets.Dataset.from_list(as_text).to_parquet(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == expected


ARGUMENTS = "{{ messages[0].tool_calls[0].function.arguments%s }}"


@pytest.mark.parametrize("given", [{"a": 1, "b": None}, '{"a": 1, "b": null}'])
@pytest.mark.parametrize(("template", "expected"), [(" | tojson", '{"a": 1, "b": null}'), ("", '{"a": 1, "b": null}')])
def test_arguments_of_a_call_are_json_however_they_are_given_and_written(given, template, expected):
    turn = {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": given}}]}
    assert written(ARGUMENTS % template, [turn]) == expected
    assert written("{{ '>' + messages[0].tool_calls[0].function.arguments }}", [turn]) == f">{expected}"


def test_a_mapping_that_a_template_would_print_is_refused_with_file_and_row(tmp_path):
    rows = [{"messages": [{"role": "tool", "content": {"sum": 3}}]}]
    (chat,) = read(jsonl(tmp_path / "a.jsonl", rows))
    tokenizer = tiny_tokenizer()
    with pytest.raises(DataError, match=r"refuses a conversation \(it writes values as Python .*a\.jsonl, row 1\)"):
        chat.render(tokenizer)
    tokenizer.chat_template = "{{ messages[0].content | tojson }}"
    assert chat.render(tokenizer) == '{"sum": 3}'


@pytest.mark.parametrize("cell", [7, 1.5, True, {"a": 1}])
@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_cell_that_is_no_text_is_refused_with_file_and_row(tmp_path, cell, form):
    path = tmp_path / f"a.{form}"
    if form == "jsonl":
        jsonl(path, [{"text": "a"}, {"text": cell}])
    else:
        datasets.Dataset.from_list([{"text": None}, {"text": cell}]).to_parquet(path)
    with pytest.raises(DataError, match=rf"a\.{form}, row 2: column 'text' holds .*, which is neither text nor"):
        read(path)


@pytest.mark.parametrize("cell", [None, "", " \n", float("nan")])
def test_a_cell_without_anything_is_no_document(tmp_path, cell):
    assert read(jsonl(tmp_path / "a.jsonl", [{"text": "a"}, {"text": cell}, {"other": 1}])) == ["a"]


def test_text_kept_as_bytes_is_text_and_other_bytes_are_refused(tmp_path):
    table = pa.table({"text": pa.array([b"a", "ü".encode()], pa.binary())})
    pq.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == ["a", "ü"]
    pq.write_table(pa.table({"text": pa.array([b"a", b"\xff\xd8"], pa.binary())}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet, row 2: column 'text' holds bytes that are no UTF-8 text"):
        read(tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"a\.jsonl, row 1: column 'text' holds .*, which is binary"):
        read(jsonl(tmp_path / "a.jsonl", [{"text": "\0\0\1\0"}]))


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.large_binary()])
def test_text_in_every_type_of_arrow_is_text(tmp_path, kind):
    cells = [b"a", b"b"] if kind == pa.large_binary() else ["a", "b"]
    pq.write_table(pa.table({"text": pa.array(cells).cast(kind)}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == ["a", "b"]


@pytest.mark.parametrize("column", ["text", "tools"])
def test_a_type_that_datasets_does_not_know_is_refused_by_name(tmp_path, column):
    pairs = pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64()))
    pq.write_table(pa.table({"text": ["a"]} | {column: pairs}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=rf"a\.parquet: column '{column}' is of type map<.*>, which datasets"):
        read(tmp_path / "a.parquet")


HALVES = {
    "broken \ud83d emoji": "broken \ufffd emoji",
    "\ude00": "\ufffd",
    "\ud83d\ude00": "\U0001f600",
    "\ufeffbegins": "begins",
}


@pytest.mark.parametrize("text", HALVES)
def test_half_a_character_is_replaced_wherever_it_comes_from(tmp_path, text):
    def rows():
        yield {"text": text}

    streamed = list(read_documents(datasets.IterableDataset.from_generator(rows), TextSettings(), 0))
    chat = Conversation([{"role": "user", "content": text}])
    for documents in (streamed, read(jsonl(tmp_path / "a.jsonl", rows())), [chat]):
        list(tokenize(documents, tiny_tokenizer(), 320))
    assert streamed == read(tmp_path / "a.jsonl") == [HALVES[text]]


@given(st.text(st.characters(codec=None, categories=("Cs", "L", "So"))))
def test_every_text_becomes_one_that_can_be_written(text):
    assert len(plain(text).encode()) >= 0
    assert plain(plain(text)) == plain(text) or text.startswith("\ufeff")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('[{"text": "a"}, {"text": "b"}]', ["a", "b"]),
        ('[\n {"text": "a"},\n {"text": "b"}\n]\n', ["a", "b"]),
        ('{\n  "text": "a"\n}\n', ["a"]),
        ('\n\n{"text": "a"}\r\n\r\n{"text": "b"}', ["a", "b"]),
        ('{"text": "a\u2028b\x85c"}\n', ["a\u2028b\x85c"]),
        ("", []),
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_json_is_read_in_lines_arrays_and_objects(tmp_path, content, expected, suffix):
    (tmp_path / f"a{suffix}").write_text(content, encoding="utf-8", newline="")
    assert read(tmp_path / f"a{suffix}") == expected


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"text": "a"}\n{"te', r"row 2 cannot be read as json"),
        ('{"text": "a"}\n"b"\n', r"row 2 is \"b\", no JSON object"),
        ('["a", "b"]', r"row 1 is \"a\", no JSON object"),
        ('[{"text": "a"}', r"row 1 cannot be read as json"),
        ('{"text": "a"}' + "[" * 100_000, r"row 1 cannot be read as json"),
        ('{"body": "a"}', r"has no column 'text' but body"),
        ("<!DOCTYPE html><html></html>", r"row 1 cannot be read as json"),
    ],
)
def test_json_that_is_none_is_refused_before_any_document_is_read(tmp_path, content, reason):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(DataError, match=rf"a\.jsonl(, | ){reason}") as caught:
        read(tmp_path / "a.jsonl")
    assert "\n" not in str(caught.value)
