"""Documents from whatever the user names: files, globs, folders, hub datasets, Dataset objects."""

import glob
import random
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import datasets

from minitron_nas.distillation.embedded_text import embedded_documents
from minitron_nas.distillation.settings import TextSettings
from minitron_nas.errors import DataError

EMBEDDED = "embedded"
"""The name of the text that every machine has: Python's and the installed packages' documentation."""

_LOADERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".ndjson": "json"}
_TEXT_SUFFIXES = (".txt", ".md", ".rst", ".text")
_PASSAGE_CHARACTERS = 4000
_SHUFFLE_BUFFER = 10_000


def read_documents(data: Any, settings: TextSettings, seed: int) -> Iterator[str]:
    """Yield distinct, non-empty documents in an order that the seed decides.

    A plain text file is cut at blank lines into passages of about 4,000 characters, each of which
    counts as a document.

    Args:
        data: A path, a glob, a folder, a hub dataset's name, "embedded", or a `datasets.Dataset`.
        settings: Says which column, config and split to read.
        seed: Decides the order.

    Raises:
        DataError: If there is no such data, or its table lacks the column.
    """
    seen: set[bytes] = set()
    for text in _shuffled(data, settings, seed):
        digest = sha256(text.strip().encode("utf-8", "replace")).digest()
        if text.strip() and digest not in seen:
            seen.add(digest)
            yield text


def data_name(data: Any) -> str:
    """Return how a plan names the data: its path or name, or a Dataset object's fingerprint.

    Raises:
        DataError: If a file is missing or empty; a hub dataset's name is not looked up yet.
    """
    if isinstance(data, datasets.Dataset):
        return f"dataset:{data._fingerprint}"
    if isinstance(data, datasets.IterableDataset):
        raise DataError("an IterableDataset cannot be resumed; pass its hub name, its files or a Dataset")
    name = str(data)
    files = _matching_files(name)
    if files and not any(file.stat().st_size for file in files):
        raise DataError(f"{name} is empty; give text to calibrate and train on")
    if not files and _is_path(name):
        raise DataError(f"no file matches {name}; give an existing file, glob, folder or a hub dataset's name")
    return str(Path(name).absolute()) if files else name


def read_in_order(data: Any, settings: TextSettings) -> list[str]:
    """Return all documents of files in their own order; a plain text file is one document.

    Raises:
        DataError: If no file matches or its table lacks the column.
    """
    files = _matching_files(str(data))
    if not files:
        raise DataError(f"no file matches {data}; give an existing text, jsonl or parquet file")
    return list(_read_files(files, settings, str(data), passages=False))


def _shuffled(data: Any, settings: TextSettings, seed: int) -> Iterable[str]:
    if isinstance(data, datasets.Dataset):
        return _column(data.shuffle(seed=seed), settings.column, "the Dataset")
    if data == EMBEDDED:
        return _reordered(embedded_documents(), seed)
    files = _matching_files(str(data))
    if not files:
        return _hub_column(str(data), settings, seed)
    return _reordered(_read_files(files, settings, str(data), passages=True), seed)


def _read_files(files: list[Path], settings: TextSettings, origin: str, passages: bool) -> Iterator[str]:
    texts = [file for file in files if file.suffix in _TEXT_SUFFIXES]
    tables = [file for file in files if file.suffix in _LOADERS]
    if not texts and not tables:
        raise DataError(
            f"{origin}: cannot read {files[0].suffix or 'files without suffix'}; "
            f"give {', '.join((*_TEXT_SUFFIXES, *_LOADERS))} files"
        )
    for file in texts:
        yield from _passages(file) if passages else (_content(file),)
    for loader in sorted({_LOADERS[file.suffix] for file in tables}):
        chosen = [str(file) for file in tables if _LOADERS[file.suffix] == loader]
        try:
            table = datasets.load_dataset(loader, data_files=chosen, split="train")
        except Exception as error:
            cause = error.__cause__ or error  # datasets wraps it in "An error occurred while generating the dataset"
            raise DataError(f"{origin} cannot be read as {loader}: {_one_line(cause)}") from error
        yield from _column(table, settings.column, origin)


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or Path(name).suffix in (*_TEXT_SUFFIXES, *_LOADERS) or "*" in name


def _matching_files(name: str) -> list[Path]:
    path = Path(name)
    if path.is_dir():
        known = (*_TEXT_SUFFIXES, *_LOADERS)
        return sorted(file for file in path.rglob("*") if file.is_file() and file.suffix in known)
    return sorted(Path(match) for match in glob.glob(name, recursive=True) if Path(match).is_file())


def _hub_column(name: str, settings: TextSettings, seed: int) -> Iterator[str]:
    try:
        stream = datasets.load_dataset(name, settings.config, split=settings.split, streaming=True)
    except Exception as error:
        raise DataError(
            f"{name!r} is neither a file here nor a hub dataset that could be opened: {_one_line(error)}"
        ) from error
    return iter(_column(stream.shuffle(seed=seed, buffer_size=_SHUFFLE_BUFFER), settings.column, name))


def _column(table: Any, column: str, origin: str) -> Iterator[str]:
    names = table.column_names
    if names is not None and column not in names:
        raise DataError(
            f"{origin} has no column {column!r} but {', '.join(names)}; choose one with --set text.column=NAME"
        )
    for example in table:
        if isinstance(example[column], str):
            yield example[column]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _passages(file: Path) -> Iterator[str]:
    passage = ""
    for paragraph in _content(file).split("\n\n"):
        passage = f"{passage}\n\n{paragraph}" if passage else paragraph
        if len(passage) >= _PASSAGE_CHARACTERS:
            yield passage
            passage = ""
    if passage:
        yield passage


def _content(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text ({error.reason} at byte {error.start})") from None


def _reordered(documents: Iterable[str], seed: int) -> list[str]:
    ordered = list(documents)
    random.Random(seed).shuffle(ordered)
    return ordered
