"""Conversations: how rows become them, what the chat template makes of them, and what is refused."""

import pytest

from minitron_nas.errors import DataError
from minitron_nas.testing import tiny_tokenizer
from minitron_nas.text.conversation import Conversation
from minitron_nas.text.document import document_columns, document_digest, document_of

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]


@pytest.mark.parametrize("cell", [None, "", " \n", []])
def test_an_empty_cell_is_no_document(cell):
    assert document_of({"text": cell}, "text") is None


def test_a_cell_that_is_neither_text_nor_a_conversation_is_an_error_that_shows_it():
    with pytest.raises(DataError, match="column 'id' holds 7, which is neither text nor a conversation"):
        document_of({"id": 7}, "id")


def test_turns_of_sharegpt_become_roles_and_contents():
    turns = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Ho"},
        {"from": "tool", "value": "3", "name": "add"},
    ]
    assert Conversation.of(turns).messages == [
        {"role": "system", "content": "Be brief."},
        *CHAT,
        {"role": "tool", "content": "3", "name": "add"},
    ]


def test_fields_that_a_table_filled_with_nothing_are_left_out_at_every_depth():
    call = {"function": {"name": "add", "arguments": {"a": 1, "b": None}}, "id": None}
    turns = [{"role": "assistant", "content": "Ho", "tool_calls": [call]}, {**CHAT[0], "tool_calls": None}]
    expected = {"function": {"name": "add", "arguments": {"a": 1}}}
    assert Conversation.of(turns).messages == [{**CHAT[1], "tool_calls": [expected]}, CHAT[0]]


@pytest.mark.parametrize("cell", [{"role": ["user"], "content": []}, {"messages": None}, {"messages": 7}, {}])
def test_an_object_that_holds_no_turns_is_an_error(cell):
    with pytest.raises(DataError, match="is no message of a conversation; it needs 'role' and 'content', or 'from'"):
        Conversation.of(cell)


@pytest.mark.parametrize("turn", ["Hi", {"content": "Hi"}, {"from": "human"}, {"from": [], "value": "Hi"}])
def test_a_turn_without_a_speaker_is_an_error(turn):
    with pytest.raises(DataError, match="is no message of a conversation; it needs 'role' and 'content', or 'from'"):
        Conversation.of([turn])


@pytest.mark.parametrize("tools", [None, "", " ", []])
def test_no_tools_are_none(tools):
    assert Conversation.of(CHAT, tools).tools is None


def test_tools_that_are_no_json_are_an_error():
    with pytest.raises(DataError, match="column 'tools' holds 'add', which is not JSON"):
        Conversation.of(CHAT, "add")


def test_the_template_gets_system_turns_and_tools():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for tool in tools %}[{{ tool.name }}]{% endfor %}"
        "{% for message in messages %}{{ message.role }}: {{ message.content }};{% endfor %}"
    )
    chat = Conversation([{"role": "system", "content": "Be brief."}, *CHAT], [{"name": "add"}])
    assert chat.render(tokenizer) == "[add]system: Be brief.;user: Hi;assistant: Ho;"


def test_a_tokenizer_without_a_template_is_an_error_that_says_what_to_do():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(DataError, match=r"has no chat template; add one .* or name a column of plain text with --set"):
        Conversation(CHAT).render(tokenizer)


def test_a_conversation_that_the_template_refuses_is_shown():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(
        DataError, match=r"refuses a conversation \(System role not supported\): .*\"Hi\".*; take it out"
    ):
        Conversation(CHAT).render(tokenizer)


def test_documents_that_say_the_same_have_the_same_digest():
    assert document_digest(" a\n") == document_digest("a") != document_digest("b")
    reordered = [dict(reversed(turn.items())) for turn in CHAT]
    assert document_digest(Conversation(CHAT)) == document_digest(Conversation(reordered))
    others = [Conversation(CHAT[:1]), Conversation(CHAT, [{"name": "add"}])]
    assert len({document_digest(chat) for chat in (Conversation(CHAT), *others)}) == 3


@pytest.mark.parametrize(
    ("names", "wanted", "columns"),
    [
        (["text", "messages"], "text", ["text"]),
        (["id", "messages", "conversations"], "text", ["messages"]),
        (["conversations", "tools"], "text", ["conversations", "tools"]),
        (["body", "messages"], "body", ["body"]),
        (None, "text", ["text"]),
    ],
)
def test_the_columns_of_a_table(names, wanted, columns):
    assert document_columns(names, wanted, "it") == columns


def test_a_column_that_is_named_is_never_replaced_by_conversations():
    message = (
        "it has no column 'body' but id, messages; choose one with --set text.column=NAME, or in a blend with the "
        "source's own column=NAME$"
    )
    with pytest.raises(DataError, match=message):
        document_columns(["id", "messages"], "body", "it")
