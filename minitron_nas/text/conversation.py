"""A conversation: from the cells of a table's row to the text that the tokenizer's chat template makes of it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeAlias

from transformers import PreTrainedTokenizerBase

from minitron_nas.errors import DataError
from minitron_nas.text.plain import plain

COLUMN_HINT = "--set text.column=NAME, or in a blend with the source's own column=NAME"
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
_TEXT_PARTS = frozenset(("text", "input_text", "output_text"))

Tools: TypeAlias = Sequence[object] | str | None
"""A cell that describes functions: a list, JSON text, or nothing."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation as chat templates read it.

    Attributes:
        messages: Turns, each with `role`, `content` and whatever else the template knows. Content is text, None, a list
            of parts of text, or a mapping.
        tools: Descriptions of the functions that the assistant may call; None without any.
        origin: File and row, for messages.
    """

    messages: Sequence[dict[str, Any]]
    tools: list[Any] | None = None
    origin: str = field(default="", compare=False)

    @classmethod
    def of(
        cls,
        messages: Sequence[object] | Mapping[str, Any],
        tools: Tools = None,
        origin: str = "",
        fills_with_none: bool = True,
    ) -> Self:
        """Read the cells of a table's row.

        Turns with `from` and `value` (ShareGPT) become `role` and `content`. What is None in a turn is left out, but
        for its content.

        Args:
            messages: The conversation's cell: turns with a role or a sender, as mappings or JSON text each, or columns
                of them.
            tools: The cell of the functions that the assistant may call, as a list or as JSON text.
            origin: File and row, for messages.
            fills_with_none: Whether the table fills fields that a row lacks with None, as Arrow does: then None is left
                out at every depth. Otherwise it means what it says.

        Raises:
            DataError: If a turn has neither a role nor a sender, or content that is no text.
        """
        turns = [_turn(message, fills_with_none) for message in _rows_of(messages)]
        return cls(turns, _tools(tools, fills_with_none), origin)

    def render(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Return the text that the tokenizer's chat template makes of it, special tokens included.

        Args:
            tokenizer: The teacher's.

        Raises:
            DataError: If the tokenizer has no chat template, or the template refuses the conversation.
        """
        return self.written(tokenizer)[0]

    def written(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[dict[str, Any]]]:
        """Return what `render` does, and the turns in the form in which the template has taken them.

        A template that takes no parts, no missing content or no arguments in this form would write them as Python
        prints them. It then gets text: the parts joined, nothing, or the arguments as JSON.

        Args:
            tokenizer: The teacher's.

        Raises:
            DataError: If the tokenizer has no chat template, or the template refuses the conversation.
        """
        if not tokenizer.chat_template:
            raise DataError(
                f"the data holds conversations{self._where()}, and the teacher's tokenizer has no chat template; add "
                f"one to the teacher's folder (chat_template.jinja), or name a column of plain text with {COLUMN_HINT}"
            )
        first: Exception | None = None
        for messages in _readings(self.messages):
            try:
                text = tokenizer.apply_chat_template(messages, tools=self.tools, tokenize=False)
            except Exception as error:  # noqa: BLE001  # templates raise whatever they like
                first = first or error
                continue
            assert isinstance(text, str)
            if not _is_printed(text, messages, self.tools):
                return plain(text), messages
        reason = " ".join(str(first).split())[:200] if first else "it writes values as Python prints them"
        beginning = json.dumps(list(self.messages), ensure_ascii=False, default=str)[:120]
        raise DataError(
            f"the chat template refuses a conversation ({reason}){self._where()}: {beginning}...; "
            "take it out of the data"
        ) from first

    def _where(self) -> str:
        return f" ({self.origin})" if self.origin else ""


def _rows_of(messages: object) -> Sequence[object]:
    """Return turns, also of a mapping of columns, which `datasets` makes of some lists of mappings."""
    if not isinstance(messages, Mapping):
        return messages if isinstance(messages, Sequence) else [messages]
    if "messages" in messages:
        return _rows_of(messages["messages"])
    lengths = {len(column) if isinstance(column, list) else None for column in messages.values()}
    if len(lengths) != 1 or None in lengths:
        return [messages]
    return [dict(zip(messages, cells, strict=True)) for cells in zip(*messages.values(), strict=True)]


def _turn(given: object, fills_with_none: bool) -> dict[str, Any]:
    message = given
    if isinstance(given, str) and given.lstrip().startswith("{"):
        message = _parsed(given, "a message")
    if isinstance(message, Mapping) and {"from", "value"} <= message.keys() and "role" not in message:
        others = {key: value for key, value in message.items() if key not in {"from", "value"}}
        sender = message["from"]
        role = _SHAREGPT_ROLES.get(sender, sender) if isinstance(sender, str) else sender
        message = {"role": role, "content": message["value"], **others}
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise DataError(
            f"{given!r:.200} is no message of a conversation; it needs 'role' and 'content', or 'from' and 'value'"
        )
    turn = {key: value for key, value in message.items() if value is not None}
    if fills_with_none:
        turn = {key: _without_none(value) for key, value in turn.items()}
    if "content" in message:
        turn["content"] = _content(turn.get("content"), given)
    return turn


def _content(content: object, message: object) -> object:
    if content is None or isinstance(content, str | Mapping):
        return content
    if isinstance(content, list):
        return [{"type": "text", "text": _text_of(part, message)} for part in content]
    raise DataError(f"{message!r:.200} has content that is no text; write text, or a list of parts of text")


def _text_of(part: object, message: object) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type", "text") in _TEXT_PARTS and isinstance(part.get("text"), str):
        return str(part["text"])
    raise DataError(
        f"{message!r:.200} has a part that is no text: {part!r:.200}; a language model reads text alone, so "
        "take it out of the data"
    )


def _tools(cell: Tools, fills_with_none: bool) -> list[object] | None:
    if isinstance(cell, str):
        tools, fills_with_none = (_parsed(cell, "column 'tools'") if cell.strip() else None), False
    else:
        tools = cell
    if not tools:
        return None
    if not isinstance(tools, list):
        raise DataError(f"column 'tools' holds {tools!r:.80}, which is no list; write a list of functions")
    listed = [_parsed(tool, "column 'tools'") if isinstance(tool, str) else tool for tool in tools]
    return [_without_none(tool) for tool in listed] if fills_with_none else listed


def _parsed(text: str, what: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        hint = "a list of functions" if "tools" in what else "JSON"
        raise DataError(f"{what} holds {text[:80]!r}, which is not JSON; write {hint}") from None


def parsed_messages(text: str, column: str) -> Sequence[object] | Mapping[str, Any]:
    """Return the turns that a cell holds as JSON text.

    Args:
        text: The cell.
        column: Its column, for the error.

    Raises:
        DataError: If it is not JSON.
    """
    found = _parsed(text, f"column {column!r}")
    assert isinstance(found, list | dict)  # it begins like one
    return found


def _without_none(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return [_without_none(inner) for inner in value] if isinstance(value, list) else value


def _readings(messages: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield the ways to hand a conversation over, most structure first."""
    parsed = [_with_arguments(message, as_text=False) for message in messages]
    written = [_with_arguments(message, as_text=True) for message in messages]
    seen: list[list[dict[str, Any]]] = []
    for each in (parsed, written):
        for reading in (each, [_with_text(message) for message in each]):
            if reading not in seen:
                seen.append(reading)
                yield reading


def _with_text(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content", "")
    if content is None:
        return {**message, "content": ""}
    if isinstance(content, list):
        return {**message, "content": "\n".join(part["text"] for part in content)}
    return message


def _with_arguments(message: dict[str, Any], as_text: bool) -> dict[str, Any]:
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    return {**message, "tool_calls": [_call(call, as_text) for call in calls]}


def _call(call: object, as_text: bool) -> object:
    if not isinstance(call, Mapping):
        return call
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _call(call["function"], as_text)}
    arguments = call.get("arguments")
    if isinstance(arguments, Mapping) and as_text:
        return {**call, "arguments": json.dumps(arguments, ensure_ascii=False)}
    if isinstance(arguments, str) and not as_text and arguments.lstrip().startswith("{"):
        try:
            return {**call, "arguments": json.loads(arguments)}
        except ValueError:
            return call
    return call


def _is_printed(text: str, messages: Sequence[dict[str, Any]], tools: object) -> bool:
    """Whether a template has written a value as Python prints it."""
    odd = [content for each in messages if isinstance(content := each.get("content"), list | Mapping)]
    odd += [arguments for each in messages for arguments in _arguments(each)]
    if any(str(value) in text and str(value) != json.dumps(value, default=str) for value in odd):
        return True
    if all(each.get("content", "") is not None for each in messages):
        return False
    said = json.dumps([list(messages), tools], ensure_ascii=False, default=str)
    return text.count("None") > said.count("None")


def _arguments(message: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if isinstance(function, Mapping) and isinstance(arguments := function.get("arguments"), Mapping):
            yield arguments
