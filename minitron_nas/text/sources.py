"""Documents from whatever the user names: files, globs, folders, hub datasets, Dataset objects, blends."""

import random
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

import datasets
from xxhash import xxh3_64

from minitron_nas.errors import DataError
from minitron_nas.storage.ledger import fingerprint
from minitron_nas.storage.machine import expanded
from minitron_nas.text.data_source import DataSource, NamedText, blend_entries, read_sources
from minitron_nas.text.document import Document, document_columns, document_digest, document_of
from minitron_nas.text.embedded import EMBEDDED_TEXTS
from minitron_nas.text.files import is_path, one_line, open_files, read_parts
from minitron_nas.text.formats import READABLE
from minitron_nas.text.listing import Listing, list_files
from minitron_nas.text.settings import TextSettings

EMBEDDED = "embedded"
"""The name of the text that every machine has: Python's and the installed packages' documentation. A smaller one of
another kind is `embedded-benchmarks`."""

Table: TypeAlias = datasets.Dataset | datasets.IterableDataset
SingleData: TypeAlias = str | Path | Table
"""A path, a glob, a folder, a hub dataset's name, "embedded", or a `datasets` object."""

Blended: TypeAlias = Sequence[Mapping[str, Any] | DataSource] | Mapping[str, float]
Data: TypeAlias = SingleData | Blended
"""What a user may give as text: one of these, or a blend of them as `read_sources` takes it."""

_END_BYTES = 64 << 10
_SHUFFLE_BUFFER = 10_000
_ROWS_THAT_NAME_A_STREAM = 100


@dataclass(frozen=True, slots=True)
class TextSource:
    """One source of text, opened when it is read.

    Attributes:
        name: What a plan calls it.
        data: What the user gave.
        share: Of the tokens, in (0, 1].
        settings: Say which column, config and split to read.
    """

    name: str
    data: SingleData
    share: float
    settings: TextSettings


def open_sources(data: Data, settings: TextSettings) -> list[TextSource]:
    """Return the sources of data: one, or those of a blend with shares that add up to 1.

    Args:
        data: What the user gave.
        settings: Columns, configs and splits of sources that do not name their own.

    Raises:
        DataError: If a file is missing or empty.
        PlanError: If a blend is written wrongly.
    """
    if not _is_blend(data):
        return [TextSource(_source_name(data), data, 1.0, settings)]
    named, given = _named_blend(data)
    total = sum(source.weight for source in named)
    return [
        TextSource(source.path, whole, source.weight / total, _own_settings(source, settings))
        for source, whole in zip(named, given, strict=True)
    ]


def named_source(text: NamedText, settings: TextSettings, name: str) -> TextSource:
    """Return a text that a plan names beside its data.

    Args:
        text: The text.
        settings: Column, config and split where it does not name its own.
        name: What errors call it.
    """
    return TextSource(name, text.path, 1.0, _own_settings(text, settings))


def absolute_name(path: str) -> str:
    """Return a path, a glob or a folder from the root on, so that it can be read from anywhere; a hub name as it is.

    Args:
        path: What the user gave.

    Raises:
        DataError: If a file is missing or empty.
    """
    return _source_name(path)


def data_name(data: Data) -> str | list[dict[str, Any]]:
    """Return how a plan names the data: paths and names, or what tells a `datasets` object from others.

    Args:
        data: What the user gave.

    Raises:
        DataError: If a file is missing or empty; a hub dataset's name is not looked up yet.
        PlanError: If a blend is written wrongly.
    """
    if not _is_blend(data):
        return _source_name(data)
    return [source.model_dump(exclude_none=True) for source in _named_blend(data)[0]]


def data_fingerprint(data: Data, settings: TextSettings) -> str:
    """Return 16 hexadecimal digits that change when the text changes, without reading all of it.

    A file counts by its path, size and time of change, and its first and last block; what has no files here, by
    its name, in which `datasets` objects have their own fingerprints.

    Args:
        data: What the user gave.
        settings: Say which files of a folder are read.

    Raises:
        DataError: If a file is missing or empty.
        PlanError: If a blend is written wrongly.
    """
    sources = open_sources(data, settings)
    looks = [_looks(source) for source in sources]
    return fingerprint({"data": data_name(data), "files": looks})


def source_fingerprint(source: TextSource) -> str:
    """Return what `data_fingerprint` does, of one source.

    Args:
        source: The source.
    """
    return fingerprint({"data": _source_name(source.data), "files": _looks(source)})


def source_files(source: TextSource) -> list[Path]:
    """Return the files that are read of a source, those of folders that `Dataset.save_to_disk` wrote included.

    Args:
        source: The source.
    """
    files = source_listing(source).files
    return [inner for file in files for inner in (sorted(file.iterdir()) if file.is_dir() else [file])]


def source_listing(source: TextSource) -> Listing:
    """Return what of a source's files is read; nothing where it has none.

    Args:
        source: The source.
    """
    if not isinstance(source.data, str | Path) or source.data in EMBEDDED_TEXTS:
        return Listing()
    return list_files(str(source.data), source.settings)


def _looks(source: TextSource) -> list[list[str | int]]:
    return [_look(file) for file in source_files(source)]


def _look(file: Path) -> list[str | int]:
    status = file.stat()
    digest = xxh3_64()
    with open(file, "rb") as handle:
        digest.update(handle.read(_END_BYTES))
        handle.seek(max(status.st_size - _END_BYTES, 0))
        digest.update(handle.read(_END_BYTES))
    return [str(file), status.st_size, status.st_mtime_ns, digest.hexdigest()]


def read_documents(
    data: SingleData, settings: TextSettings, seed: int, seen: set[int] | None = None
) -> Iterator[Document]:
    """Yield distinct, non-empty documents of one source in an order that the seed decides.

    A plain text file is cut at blank lines into passages of about 4,000 characters, each of which
    counts as a document. Files and Dataset objects are shuffled as a whole; hub datasets and
    IterableDataset objects are streamed through a buffer of 10,000 documents.

    Args:
        data: One source's.
        settings: Says which column, config and split to read.
        seed: Decides the order.
        seen: Digests of documents to leave out; those of what is yielded are added.

    Raises:
        DataError: If there is no such data, or its table lacks the column.
    """
    seen = set() if seen is None else seen
    for document in _shuffled(data, settings, seed):
        digest = document_digest(document)
        if digest not in seen:
            seen.add(digest)
            yield document


def read_in_order(data: str | Path, settings: TextSettings) -> list[Document]:
    """Return all documents of files in their own order; a plain text file is one document.

    Args:
        data: A path, a glob or a folder.
        settings: Says which column of a table to read.

    Raises:
        DataError: If no file matches or its table lacks the column.
    """
    listing = list_files(str(data), settings)
    if not listing.files:
        raise DataError(f"no file matches {data}; give an existing text, jsonl or parquet file{_left(listing)}")
    return list(read_parts(open_files(listing.files, settings.column, passages=False)))


def _is_blend(data: Data) -> TypeGuard[Blended]:
    known = str | datasets.DatasetDict | datasets.IterableDatasetDict
    return isinstance(data, Mapping | Sequence) and not isinstance(data, known)


def _named_blend(blend: Blended) -> tuple[tuple[DataSource, ...], list[Any]]:
    """Return the checked sources with the names of their data, and the data themselves."""
    entries = [entry.model_dump() if isinstance(entry, DataSource) else entry for entry in blend_entries(blend)]
    given = [entry.get("path") if isinstance(entry, Mapping) else None for entry in entries]
    named = [
        {**entry, "path": _source_name(path)} if path is not None else entry
        for entry, path in zip(entries, given, strict=True)
    ]
    return read_sources(named), given


def _own_settings(source: NamedText, settings: TextSettings) -> TextSettings:
    own = source.model_dump(include={"column", "config", "split"}, exclude_none=True)
    return settings.model_copy(update=own)


def _source_name(data: SingleData) -> str:
    if isinstance(data, datasets.Dataset):
        return f"dataset:{data._fingerprint}"
    if isinstance(data, datasets.IterableDataset):
        # A stream has no fingerprint; reading its beginning again is what makes a repeated call go on with it.
        return f"stream:{fingerprint({'rows': [repr(row) for row in islice(data, _ROWS_THAT_NAME_A_STREAM)]})}"
    if isinstance(data, datasets.DatasetDict | datasets.IterableDatasetDict):
        raise DataError(
            f"the data has the splits {', '.join(data)}; give one of them, such as data[{next(iter(data))!r}]"
        )
    name = str(data)
    listing = list_files(name, None)
    files = listing.files
    if files and not any(file.stat().st_size for file in files):
        raise DataError(f"{name} is empty; give text to calibrate and train on")
    if not files and (is_path(name) or expanded(name).is_dir()):
        raise DataError(
            f"no file matches {name}{_from_here(name)}; give an existing file, glob, folder or a hub dataset's name"
            f"{_left(listing)}"
        )
    return str(Path(name).absolute()) if files else name


def _from_here(name: str) -> str:
    return "" if expanded(name).is_absolute() else f" in {Path.cwd()}"


def _left(listing: Listing) -> str:
    said = listing.about_passed_over()
    return f" (it can be {READABLE}; {said})" if said else ""


def _shuffled(data: SingleData, settings: TextSettings, seed: int) -> Iterable[Document]:
    if isinstance(data, datasets.Dataset):
        return _rows(data.shuffle(seed=seed), settings.column, "the Dataset", partial(_number_in, data, seed))
    if isinstance(data, datasets.IterableDataset):
        stream = data.shuffle(seed=seed, buffer_size=_SHUFFLE_BUFFER)
        return _rows(stream, settings.column, "the IterableDataset", partial(_number_of_stream, seed))
    if isinstance(data, str) and data in EMBEDDED_TEXTS:
        documents = list(EMBEDDED_TEXTS[data]())
        random.Random(seed).shuffle(documents)
        return documents
    files = list_files(str(data), settings).files
    if not files:
        return _hub_rows(str(data), settings, seed)
    parts = open_files(files, settings.column, passages=True)
    order = array("Q", range(sum(len(part) for part in parts)))
    random.Random(seed).shuffle(order)
    return read_parts(parts, order)


def open_hub(name: str, settings: TextSettings, *, streaming: bool) -> Any:
    """Open a dataset of the hub.

    Args:
        name: On the hub.
        settings: Configuration and split.
        streaming: Whether its rows come one by one as they are read; else all of it is fetched first.

    Raises:
        DataError: If it cannot be opened.
    """
    try:
        return datasets.load_dataset(name, settings.config, split=settings.split, streaming=streaming)
    except Exception as error:
        raise DataError(
            f"{name!r} is neither a file here nor a hub dataset that could be opened: {one_line(error)}"
        ) from error


def _hub_rows(name: str, settings: TextSettings, seed: int) -> Iterator[Document]:
    stream = open_hub(name, settings, streaming=True).shuffle(seed=seed, buffer_size=_SHUFFLE_BUFFER)
    return _rows(stream, settings.column, name, partial(_number_of_stream, seed))


def _rows(table: Table, column: str, origin: str, row_name: Callable[[int], str]) -> Iterator[Document]:
    """Yield the documents of a shuffled table.

    Args:
        table: Shuffled.
        column: The column that holds the documents.
        origin: Names the table in errors.
        row_name: What errors call the row that comes at a place, from 0.
    """
    columns = document_columns(table.column_names, column, origin)
    for place, row in enumerate(table):
        if columns[0] not in row:  # a stream that does not say its columns
            columns = document_columns(list(row), column, origin)
        try:
            document = document_of(row, columns[0])
        except DataError as error:
            raise DataError(f"{origin}, row {row_name(place)}: {error}") from None
        if document is not None:
            yield document


def _number_in(data: datasets.Dataset, seed: int, place: int) -> str:
    """Return the number, from 1, of the row of a Dataset that comes at a place when it is shuffled."""
    numbers = datasets.Dataset.from_dict({"number": range(1, len(data) + 1)}).shuffle(seed=seed)
    return str(numbers[place]["number"])


def _number_of_stream(seed: int, place: int) -> str:
    """Return which row of a shuffled stream it is: streams know no other numbers."""
    return f"{place + 1} of the stream as shuffled with seed={seed} and buffer_size={_SHUFFLE_BUFFER}"
