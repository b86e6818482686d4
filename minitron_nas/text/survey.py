"""What is read of a text, counted before any work."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from minitron_nas.settings import about_bytes
from minitron_nas.text.content import Content, Spool
from minitron_nas.text.formats import JSON, PARQUET, SAVED_FOLDER, compression_of, kind_of
from minitron_nas.text.json_rows import count_rows
from minitron_nas.text.settings import TextSettings
from minitron_nas.text.sources import Data, TextSource, open_sources, source_files, source_listing

_COUNTED_BYTES = 1 << 30
"""Rows of JSON are counted where all of a source's files are no larger."""


def about_text(data: Data, settings: TextSettings) -> Iterator[str]:
    """Yield a line for each source: files, rows and bytes that are read, of which split, and what is passed over.

    Args:
        data: What the user gave.
        settings: Columns, configs and splits of sources that do not name their own.

    Raises:
        DataError: If a file is missing or empty, or there is no such split.
    """
    return (_about(source) for source in open_sources(data, settings))


def _about(source: TextSource) -> str:
    listing, files = source_listing(source), source_files(source)
    if not files:
        return f"text: {source.name}{_of_hub(source)}"
    num_bytes = sum(file.stat().st_size for file in files)
    rows = _num_rows(listing.files, num_bytes)
    parts = [
        f"{len(files):,} file{'s' * (len(files) > 1)}",
        *([f"{rows:,} row{'s' * (rows != 1)}"] if rows is not None else []),
        about_bytes(num_bytes),
        *([f"split {listing.split}"] if listing.split is not None else []),
    ]
    said = listing.about_passed_over()
    return f"text: {source.name}: {', '.join(parts)}{f'; {said}' if said else ''}"


def _of_hub(source: TextSource) -> str:
    named = isinstance(source.data, str) and "/" in source.data
    return f": hub dataset, split {source.settings.split}" if named else ""


def _num_rows(files: Sequence[Path], num_bytes: int) -> int | None:
    """The rows of tables; None where there are none, or they cannot be counted quickly."""
    kinds = {kind_of(file) for file in files}
    if not kinds <= {JSON, PARQUET, SAVED_FOLDER} or any(compression_of(file) for file in files):
        return None
    if JSON in kinds and num_bytes > _COUNTED_BYTES:
        return None
    try:
        return sum(map(_rows_of, files))
    except (OSError, pa.ArrowException, ValueError):
        return None  # what is wrong is said when it is read


def _rows_of(file: Path) -> int:
    kind = kind_of(file)
    if kind == PARQUET:
        return int(pq.read_metadata(file).num_rows)
    if kind == SAVED_FOLDER:
        return len(datasets.load_from_disk(str(file)))
    return count_rows(Content.of(file, Spool()))
