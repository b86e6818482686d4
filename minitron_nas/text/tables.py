"""Rows of Arrow tables: parquet files, `datasets` objects, and what these have written."""

import os
from collections.abc import Sequence
from mmap import ACCESS_READ, mmap
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.table import InMemoryTable

from minitron_nas.errors import DataError
from minitron_nas.text.content import Content, Spool
from minitron_nas.text.conversation import COLUMN_HINT
from minitron_nas.text.document import Document, document_columns, document_of

_ROWS_OF_A_BATCH = 1024


class TableRows:
    """The rows of a table that lies on disk."""

    def __init__(self, table: datasets.Dataset, column: str, origin: str) -> None:
        """Choose the columns to read.

        Args:
            table: The table.
            column: The column that holds the documents.
            origin: Names the table in errors.

        Raises:
            DataError: If the table has no such column.
        """
        columns = document_columns(table.column_names, column, origin)
        self._column, self._table, self._origin = columns[0], table.select_columns(columns), origin

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._table)

    def read(self, numbers: Sequence[int]) -> list[Document | None]:
        """Read rows.

        Args:
            numbers: From 0, in any order.
        """
        columns = self._table[list(numbers)]
        rows = (dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True))
        return [
            document_of(row, self._column, f"{self._origin}, row {number + 1}", fills_with_none=True)
            for row, number in zip(rows, numbers, strict=True)
        ]


def parquet_table(content: Content, column: str, spool: Spool) -> datasets.Dataset:
    """Return the wanted columns of a parquet file as a memory-mapped table.

    Args:
        content: Of the file.
        column: The column that holds the documents.
        spool: Gets the columns.

    Raises:
        DataError: If it is no parquet file, lacks the column or keeps it as a type that `datasets` does not know.
        DiskSpaceError: If the disk is full.
    """
    path = content.path
    try:
        file = pq.ParquetFile(path)
        columns = document_columns(file.schema_arrow.names, column, str(path))
        schema = pa.schema([_plain_field(file.schema_arrow.field(name), path) for name in columns])
        with spool.writing(path) as sink:
            begin = sink.tell()
            with pa.ipc.new_stream(sink, schema) as writer:
                for batch in file.iter_batches(_ROWS_OF_A_BATCH, columns=columns):
                    writer.write_batch(batch.select(columns).cast(schema))
    except (pa.ArrowException, KeyError, NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.strerror is not None:
            raise  # of the system, not of what the file says
        raise DataError(f"{path} cannot be read as parquet: {' '.join(str(error).split())}") from error
    return _mapped_table(spool, begin)


def _mapped_table(spool: Spool, begin: int) -> datasets.Dataset:
    size = os.fstat(spool.descriptor).st_size - begin
    content = mmap(spool.descriptor, size, access=ACCESS_READ, offset=begin)  # goes with the table that looks into it
    table = pa.ipc.open_stream(pa.py_buffer(content)).read_all()
    return datasets.Dataset(InMemoryTable(table.replace_schema_metadata(None)))


def _plain_field(field: pa.Field, path: Path) -> pa.Field:
    """The column as its values are, where these are kept as categories."""
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    plain = pa.field(field.name, kind)
    try:
        datasets.Features.from_arrow_schema(pa.schema([plain]))
    except ValueError:
        raise DataError(
            f"{path}: column {field.name!r} is of type {kind}, which datasets {datasets.__version__} cannot read; "
            f"write it as text or as lists of messages, or name another column with {COLUMN_HINT}"
        ) from None
    return plain
