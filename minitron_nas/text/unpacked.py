"""How much text there is, and how much disk reading it takes: compressed files and parquet are unpacked."""

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from minitron_nas.errors import MinitronNasError
from minitron_nas.text.document import document_columns
from minitron_nas.text.formats import PARQUET, compression_of, kind_of
from minitron_nas.text.settings import TextSettings
from minitron_nas.text.sources import Data, open_sources, source_files

_LOOKED_AT_BYTES = 8 << 20
_BLOCK = 1 << 20

_UNPACK: dict[str, Callable[[IO[bytes]], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": lambda file: pa.CompressedInputStream(pa.PythonFile(file), "zstd"),
}


def unpacked_bytes(data: Data, settings: TextSettings) -> int:
    """Return the bytes that reading a text takes beside the text; 0 where it is read as it lies.

    Files that unpack to less than 8 MiB count exactly, larger ones as their beginning has it. What cannot be read
    counts nothing: what is wrong with it is said when it is read.

    Args:
        data: What the user gave.
        settings: Columns, configs and splits of sources that do not name their own.

    Raises:
        DataError: If a file is missing or empty, or there is no such split.
    """
    sources = open_sources(data, settings)
    return sum(_bytes_beside(file, source.settings.column) for source in sources for file in source_files(source))


def text_bytes(data: Data, settings: TextSettings) -> int | None:
    """Return about how many bytes of text data hold, unpacked; None where it has no files, or not all of it.

    Args:
        data: What the user gave.
        settings: Columns, configs and splits of sources that do not name their own.

    Raises:
        DataError: If a file is missing or empty, or there is no such split.
    """
    total = 0
    for source in open_sources(data, settings):
        files = source_files(source)
        if not files:
            return None
        total += sum(_bytes_beside(file, source.settings.column) or file.stat().st_size for file in files)
    return total


def _bytes_beside(file: Path, column: str) -> int:
    try:
        packed = compression_of(file)
        if packed is not None:
            return _unpacked(file, packed)
        return _column_bytes(file, column) if kind_of(file) == PARQUET else 0
    except (OSError, EOFError, ValueError, lzma.LZMAError, pa.ArrowException, MinitronNasError):
        return 0


def _unpacked(file: Path, packed: str) -> int:
    made = 0
    with open(file, "rb") as raw, _UNPACK[packed](raw) as content:
        while made < _LOOKED_AT_BYTES:
            block = content.read(_BLOCK)
            if not block:
                return made
            made += len(block)
        return made * file.stat().st_size // max(raw.tell(), 1)


def _column_bytes(file: Path, column: str) -> int:
    about = pq.read_metadata(file)
    wanted = set(document_columns(about.schema.to_arrow_schema().names, column, str(file)))
    groups = (about.row_group(number) for number in range(about.num_row_groups))
    chunks = (group.column(number) for group in groups for number in range(group.num_columns))
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in wanted)
