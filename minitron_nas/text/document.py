"""A document: plain text, or a conversation."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import xxhash

from minitron_nas.errors import ColumnError, DataError
from minitron_nas.text.conversation import COLUMN_HINT, Conversation, parsed_messages
from minitron_nas.text.plain import plain

TEXT_COLUMN = "text"
CHAT_COLUMNS = ("messages", "conversations")
TOOLS_COLUMN = "tools"

_CHAT_NAMES = frozenset((*CHAT_COLUMNS, "conversation", "chat", "dialog", "dialogue"))
"""Columns that mean a conversation, also where they hold it as JSON text."""

_TEXT_NAMES = frozenset((TEXT_COLUMN, "content", "code"))
"""Columns that mean text, also where it is JSON."""

_JSON_OF_TURNS = re.compile(r"\s*(\[\s*[{\]\"]|\{)")
_PRINTED_TURNS = re.compile(r"\s*\[\s*\{'(role|from|content|value)': ")
"""How Python prints turns, which is no JSON."""

_MOST_NAMES = 20
_MOST_ZEROS = 0.1

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


def document_of(row: Mapping[str, Any], column: str, origin: str = "", fills_with_none: bool = True) -> Document | None:
    """Return the document of a table's row, or None if its cell is empty or missing.

    Args:
        row: Cells by column.
        column: The column that holds the document.
        origin: File and row, for errors.
        fills_with_none: Whether the table fills what a row lacks with None.

    Raises:
        DataError: If the cell is neither text nor a conversation.
    """
    try:
        return _document(row[column], column, row.get(TOOLS_COLUMN), origin, fills_with_none)
    except DataError as error:
        raise DataError(f"{origin}: {error}" if origin else str(error)) from None


def document_columns(names: Sequence[str] | None, wanted: str, origin: str) -> list[str]:
    """Return the columns of a table that its documents are read from, the documents' own first.

    Args:
        names: The table's columns; None if a stream does not say them.
        wanted: What the settings name.
        origin: Names the table in the error.

    Raises:
        ColumnError: If the table has no such column.
        DataError: If it has one twice.
    """
    if names is None:
        return [wanted]
    candidates = (wanted, *(CHAT_COLUMNS if wanted == TEXT_COLUMN else ()))
    column = next((name for name in candidates if name in names), None)
    if column is None:
        others = f" and {len(names) - _MOST_NAMES:,} more" if len(names) > _MOST_NAMES else ""
        raise ColumnError(
            f"{origin} has no column {wanted!r} but {', '.join(names[:_MOST_NAMES])}{others}; choose one with "
            f"{COLUMN_HINT}"
        )
    columns = [column, *([TOOLS_COLUMN] if TOOLS_COLUMN in names and column != TOOLS_COLUMN else [])]
    for name in columns:
        if names.count(name) > 1:
            raise DataError(f"{origin} has {names.count(name)} columns {name!r}; rename all but one")
    return columns


def _document(cell: object, column: str, tools: Any, origin: str, fills_with_none: bool) -> Document | None:
    if isinstance(cell, bytes):
        cell = _decoded(cell, column)
    if cell is None or cell == [] or (isinstance(cell, float) and math.isnan(cell)):
        return None
    if isinstance(cell, str):
        text = plain(cell)
        if not text.strip():
            return None
        if _JSON_OF_TURNS.match(text) and (column in _CHAT_NAMES or (column not in _TEXT_NAMES and _is_turns(text))):
            turns = parsed_messages(text, column)
            return Conversation.of(turns, tools, origin, fills_with_none=False) if turns else None
        if text.count("\0") > _MOST_ZEROS * len(text):
            raise DataError(
                f"column {column!r} holds {text[:20]!r}, which is binary; name another column with {COLUMN_HINT}"
            )
        return text
    if isinstance(cell, Sequence) or (isinstance(cell, Mapping) and column in _CHAT_NAMES):
        return Conversation.of(cell, tools, origin, fills_with_none)
    raise DataError(
        f"column {column!r} holds {cell!r:.200}, which is neither text nor a conversation (a list of messages); name "
        f"another column with {COLUMN_HINT}"
    )


def _is_turns(text: str) -> bool:
    """Whether JSON text, or what Python prints, is turns of which the first says who speaks."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return _PRINTED_TURNS.match(text) is not None
    turns = found.get("messages") if isinstance(found, dict) else found
    first = turns[0] if isinstance(turns, list) and turns else None
    return isinstance(first, dict) and ({"role", "content"} <= first.keys() or {"from", "value"} <= first.keys())


def _decoded(cell: bytes, column: str) -> str:
    try:
        return cell.decode("utf-8")
    except UnicodeDecodeError:
        raise DataError(
            f"column {column!r} holds bytes that are no UTF-8 text ({cell[:20]!r}); name another column with "
            f"{COLUMN_HINT}"
        ) from None
