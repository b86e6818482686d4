"""A document: plain text, or a conversation that the tokenizer's chat template turns into text."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import xxhash
from transformers import PreTrainedTokenizerBase

from minitron_nas.errors import DataError

TEXT_COLUMN = "text"
CHAT_COLUMNS = ("messages", "conversations")
TOOLS_COLUMN = "tools"

_COLUMN_HINT = "--set text.column=NAME, or in a blend with the source's own column=NAME"
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}

Tools: TypeAlias = Sequence[object] | str | None
"""A cell that describes functions: a list, JSON text, or nothing."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation as chat templates read it.

    Attributes:
        messages: Turns, each with `role`, `content` and whatever else the template knows.
        tools: Descriptions of the functions that the assistant may call; None without any.
    """

    messages: Sequence[dict[str, Any]]
    tools: list[Any] | None = None

    @classmethod
    def of(cls, messages: Sequence[object], tools: Tools = None) -> Self:
        """Read the cells of a table's row.

        Fields that are missing from a turn but not from others are None in a table; they are left out.
        Turns with `from` and `value` (ShareGPT) become `role` and `content`.

        Args:
            messages: The conversation's cell: turns with a role or a sender.
            tools: The cell of the functions that the assistant may call, as a list or as JSON text.

        Raises:
            DataError: If a turn has neither a role nor a sender.
        """
        turns = [_turn(_without_none(message)) for message in messages]
        return cls(turns, _tools(tools))

    def render(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Return the text that the tokenizer's chat template makes of it, special tokens included.

        Args:
            tokenizer: The teacher's.

        Raises:
            DataError: If the tokenizer has no chat template, or the template refuses the conversation.
        """
        if not tokenizer.chat_template:
            raise DataError(
                "the data holds conversations, and the teacher's tokenizer has no chat template; add one to the "
                f"teacher's folder (chat_template.jinja), or name a column of plain text with {_COLUMN_HINT}"
            )
        try:
            text = tokenizer.apply_chat_template(list(self.messages), tools=self.tools, tokenize=False)
        except Exception as error:
            beginning = json.dumps(list(self.messages), ensure_ascii=False, default=str)[:120]
            raise DataError(
                f"the chat template refuses a conversation ({' '.join(str(error).split())}): {beginning}...; "
                "take it out of the data"
            ) from error
        assert isinstance(text, str)
        return text


Document = str | Conversation
"""What becomes one run of tokens that sees no other."""


def document_digest(document: Document) -> int:
    """Return 64 bits that two documents share if they say the same; white space around a text says nothing.

    Args:
        document: A text or a conversation.
    """
    if isinstance(document, str):
        return xxhash.xxh3_64_intdigest(document.strip().encode("utf-8", "replace"))
    content = json.dumps([list(document.messages), document.tools], sort_keys=True, default=str)
    return xxhash.xxh3_64_intdigest(content.encode("utf-8", "replace"))


def document_of(row: Mapping[str, Any], column: str) -> Document | None:
    """Return the document of a table's row, or None if its cell is empty or missing.

    Args:
        row: Cells by column.
        column: The column that holds the document.

    Raises:
        DataError: If the cell is neither text nor a conversation.
    """
    cell = row[column]
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return None
    if isinstance(cell, str):
        return cell
    if isinstance(cell, Sequence):
        return Conversation.of(cell, row.get(TOOLS_COLUMN)) if len(cell) else None
    raise DataError(
        f"column {column!r} holds {cell!r}, which is neither text nor a conversation (a list of messages); name "
        f"another column with {_COLUMN_HINT}"
    )


def document_columns(names: Sequence[str] | None, wanted: str, origin: str) -> list[str]:
    """Return the columns of a table that its documents are read from, the documents' own first.

    Args:
        names: The table's columns; None if a stream does not say them.
        wanted: What the settings name.
        origin: Names the table in the error.

    Raises:
        DataError: If the table has no such column.
    """
    if names is None:
        return [wanted]
    candidates = (wanted, *(CHAT_COLUMNS if wanted == TEXT_COLUMN else ()))
    column = next((name for name in candidates if name in names), None)
    if column is None:
        raise DataError(f"{origin} has no column {wanted!r} but {', '.join(names)}; choose one with {_COLUMN_HINT}")
    return [column, *([TOOLS_COLUMN] if TOOLS_COLUMN in names and column != TOOLS_COLUMN else [])]


def _turn(message: object) -> dict[str, Any]:
    if isinstance(message, Mapping) and "role" in message:
        return dict(message)
    if isinstance(message, Mapping) and {"from", "value"} <= message.keys():
        others = {key: value for key, value in message.items() if key not in {"from", "value"}}
        sender = message["from"]
        return {"role": _SHAREGPT_ROLES.get(sender, sender), "content": message["value"], **others}
    raise DataError(
        f"{message!r} is no message of a conversation; it needs 'role' and 'content', or 'from' and 'value'"
    )


def _tools(cell: Tools) -> list[object] | None:
    tools = cell
    if isinstance(cell, str):
        try:
            tools = json.loads(cell) if cell.strip() else None
        except ValueError:
            raise DataError(
                f"column 'tools' holds {cell[:80]!r}, which is not JSON; write a list of functions"
            ) from None
    return [_without_none(tool) for tool in tools] if tools else None


def _without_none(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return [_without_none(inner) for inner in value] if isinstance(value, list) else value
