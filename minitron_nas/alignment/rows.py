"""Conversations and preferences from the rows of a table, read as text is: the same files, the same turns."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeAlias

import datasets

from minitron_nas.errors import ColumnError, DataError
from minitron_nas.storage.machine import expanded
from minitron_nas.text.conversation import Conversation
from minitron_nas.text.document import CHAT_COLUMNS, TEXT_COLUMN, Document, document_digest
from minitron_nas.text.files import Part, is_path, open_files
from minitron_nas.text.formats import PROSE, kind_of
from minitron_nas.text.listing import list_files
from minitron_nas.text.settings import TextSettings
from minitron_nas.text.sources import open_hub
from minitron_nas.text.tables import TableRows
from minitron_nas.text.turns import ASSISTANT

Rows: TypeAlias = str | Path | datasets.Dataset
"""What a user may give: a file, a glob, a folder, a hub dataset's name, or a Dataset."""

_PROMPT, _COMPLETION, _CHOSEN, _REJECTED = "prompt", "completion", "chosen", "rejected"
_NAME_THEM = "name the column of conversations with --set text.column=NAME, or rename the columns"
_ROWS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Answer:
    """A conversation whose turns from a place on are to be learned.

    Attributes:
        conversation: All turns.
        first: The first turn that counts; of those, the assistant's are learned.
    """

    conversation: Conversation
    first: int = 0

    @property
    def digest(self) -> int:
        """64 bits that the same answers share."""
        return document_digest(self.conversation)


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to the same prompt."""

    chosen: Answer
    rejected: Answer

    @property
    def digest(self) -> int:
        """64 bits that the same preferences share."""
        return hash((self.chosen.digest, self.rejected.digest))


def read_answers(data: Rows, settings: TextSettings) -> Iterator[Answer]:
    """Yield the conversations of a table; a row without one is passed over.

    They stand in the column that the settings name, in `messages` or `conversations`, or in `prompt` and `completion`,
    each of them text or turns; of the latter the completion alone is learned.

    Args:
        data: Files or a dataset.
        settings: Column, configuration and split.

    Raises:
        DataError: If there is no such data or column, or a row holds something else; names file and row.
    """
    tables = _tables(data, settings)
    if settings.column != TEXT_COLUMN:
        candidates: tuple[tuple[str, ...], ...] = ((settings.column,),)
    else:
        candidates = (*((name,) for name in CHAT_COLUMNS), (_PROMPT, _COMPLETION))
    for table in tables:
        columns = table.choose(candidates, _NAME_THEM)
        for origin, cells in table.rows(columns):
            if len(columns) == 2:
                if (answer := _joined(cells[0], cells[1], origin)) is not None:
                    yield answer
            elif isinstance(cells[0], str):
                raise DataError(
                    f"{origin}: column {columns[0]!r} holds text ({cells[0][:40]!r}), no conversation; write turns "
                    'such as {"role": "user", "content": ...}, or the columns prompt and completion'
                )
            elif cells[0] is not None:
                yield Answer(cells[0])


def read_preferences(data: Rows, settings: TextSettings) -> Iterator[Preference]:
    """Yield the preferences of a table with `chosen`, `rejected` and mostly `prompt`; an empty row is passed over.

    Each is text or turns. Text becomes a user's turn or an assistant's. Without `prompt`, or where both answers begin
    with it already, the prompt is the turns with which both begin.

    Args:
        data: Files or a dataset.
        settings: Configuration and split.

    Raises:
        DataError: If there is no such data or column, or a row holds something else; names file and row.
    """
    for table in _tables(data, settings):
        columns = table.choose(((_CHOSEN, _REJECTED, _PROMPT), (_CHOSEN, _REJECTED)), "rename the columns")
        for origin, (chosen, rejected, *prompt) in table.rows(columns):
            asked = prompt[0] if prompt else None
            if any(cell is not None for cell in (chosen, rejected, asked)):
                yield _preference(asked, chosen, rejected, origin)


class _Table:
    """One file, or a dataset: rows by number, a column at a time."""

    def __init__(self, source: Path | datasets.Dataset, name: str) -> None:
        self._source, self._name = source, name

    def choose(self, candidates: Sequence[tuple[str, ...]], remedy: str) -> tuple[str, ...]:
        """Return the first columns that the table has.

        Args:
            candidates: Those that would do.
            remedy: What to do where it has none of them.

        Raises:
            DataError: If it has none of them.
        """
        for columns in candidates:
            try:
                for column in columns:
                    self._part(column)
            except ColumnError as error:
                fault = error
            else:
                return columns
        wanted = ", or ".join(" and ".join(columns) for columns in candidates)
        names = str(fault).partition("but ")[2].partition(";")[0]
        raise DataError(f"{self._name} has neither {wanted}, but {names}; {remedy}") from None

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[str, tuple[Document | None, ...]]]:
        """Yield the name of each row and its cells."""
        parts = [self._part(column) for column in columns]
        for start in range(0, len(parts[0]), _ROWS_AT_ONCE):
            numbers = range(start, min(start + _ROWS_AT_ONCE, len(parts[0])))
            cells = zip(*(part.read(numbers) for part in parts), strict=True)
            for number, row in zip(numbers, cells, strict=True):
                yield f"{self._name}, row {number + 1}", row

    def _part(self, column: str) -> Part:
        if isinstance(self._source, Path):
            return open_files([self._source], column, passages=False)[0]
        return TableRows(self._source, column, self._name)


def _tables(data: Rows, settings: TextSettings) -> list[_Table]:
    if isinstance(data, datasets.Dataset):
        return [_Table(data, "the Dataset")]
    name = str(data)
    files = list_files(name, settings).files
    prose = next((file for file in files if kind_of(file) == PROSE), None)
    if prose is not None:
        raise DataError(f"{prose} is plain text, which holds no conversations; give jsonl, json or parquet with turns")
    if files:
        return [_Table(file, str(file)) for file in files]
    if is_path(name) or expanded(name).exists():
        raise DataError(f"no file matches {name}; give an existing file, glob, folder or a hub dataset's name")
    return [_Table(open_hub(name, settings, streaming=False), name)]


def _turns(cell: Document | None, role: str) -> list[dict[str, Any]]:
    """The turns of a cell: its own, or text as one turn."""
    if cell is None:
        return []
    return [{"role": role, "content": cell}] if isinstance(cell, str) else list(cell.messages)


def _tools(*cells: Document | None) -> list[Any] | None:
    return next((cell.tools for cell in cells if isinstance(cell, Conversation) and cell.tools), None)


def _joined(prompt: Document | None, answer: Document | None, origin: str) -> Answer | None:
    asked, told = _turns(prompt, "user"), _turns(answer, ASSISTANT)
    if not asked and not told:
        return None
    if not asked or not told:
        empty = _COMPLETION if asked else _PROMPT
        raise DataError(f"{origin}: column {empty!r} is empty; fill it in, or take the row out")
    return Answer(Conversation([*asked, *told], _tools(prompt, answer), origin), len(asked))


def _preference(prompt: Document | None, chosen: Document | None, rejected: Document | None, origin: str) -> Preference:
    if chosen is None or rejected is None:
        empty = _CHOSEN if chosen is None else _REJECTED
        raise DataError(f"{origin}: column {empty!r} is empty; fill it in, or take the row out")
    tools = _tools(prompt, chosen, rejected)
    better, worse = _turns(chosen, ASSISTANT), _turns(rejected, ASSISTANT)
    if better == worse:
        raise DataError(f"{origin}: chosen and rejected are the same, which prefers nothing; take the row out")
    if ASSISTANT in (better[0]["role"], worse[0]["role"]):  # without their prompt
        asked = _turns(prompt, "user")
        better, worse = [*asked, *better], [*asked, *worse]
    alike = (one == other for one, other in zip(better[:-1], worse[:-1], strict=False))
    shared = sum(takewhile(bool, alike))
    if not shared:
        raise DataError(f"{origin}: there is no prompt, neither in its own column nor at the beginning of both answers")
    return Preference(
        Answer(Conversation(better, tools, origin), shared), Answer(Conversation(worse, tools, origin), shared)
    )
