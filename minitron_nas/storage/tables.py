"""Reading and writing the Parquet tables of `schemas.py`."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from minitron_nas.storage.atomic import remove, whole_file
from minitron_nas.storage.schemas import Table

Row: TypeAlias = Mapping[str, Any]

_BATCH_ROWS = 1 << 16
"""Of a table, in memory as Python values: a model with experts has millions of scores."""


def write_rows(folder: Path, table: Table, rows: Iterable[Row]) -> None:
    """Write a whole table, whole or not at all; a column that a row lacks is null.

    Raises:
        ValueError: If a row has a column that the table lacks.
    """
    schema, stream = table.arrow_schema(), iter(rows)
    with whole_file(folder / table.file_name) as partial, pq.ParquetWriter(partial, schema) as writer:
        while batch := [dict(row) for row in islice(stream, _BATCH_ROWS)]:
            unknown = set().union(*batch) - {column.name for column in table.columns}
            if unknown:
                raise ValueError(f"{table.file_name} has no column {', '.join(sorted(unknown))}")
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))


Filters: TypeAlias = list[tuple[str, str, Any]]
"""Conditions that rows must meet, as pyarrow reads them: column, operator, value."""


def read_rows(folder: Path, table: Table, filters: Filters | None = None) -> list[dict[str, Any]]:
    """Read a table as plain rows; a table that was never written has none.

    Args:
        folder: Where the table lies.
        table: Its schema.
        filters: Which rows; all without it.
    """
    path = folder / table.file_name
    rows: list[dict[str, Any]] = pq.read_table(path, filters=filters).to_pylist() if path.exists() else []
    return rows


def read_frame(folder: Path, table: Table) -> pd.DataFrame:
    """Read a table as a DataFrame with the schema's columns, empty if it was never written."""
    path = folder / table.file_name
    if not path.exists():
        empty: pd.DataFrame = table.arrow_schema().empty_table().to_pandas()
        return empty
    return pd.read_parquet(path)


def unite_rows(folder: Path, table: Table, parts: Sequence[Path]) -> None:
    """Make a table of the rows in the files of parts, in their order; a table that holds them already is left alone.

    Args:
        folder: Where the table lies; without any part it goes.
        table: Its schema.
        parts: Folders in each of which `write_rows` may have written some of its rows; a column that did not exist
            then is null.
    """
    files = [file for part in parts if (file := part / table.file_name).exists()]
    path = folder / table.file_name
    if path.is_dir() or not files:
        remove(path)
    if not files:
        return
    schema = table.arrow_schema()
    rows = pa.concat_tables([schema.empty_table(), *map(pq.read_table, files)], promote_options="default")
    whole = rows.select(schema.names).cast(schema)
    written = pa.BufferOutputStream()
    pq.write_table(whole, written)
    content = written.getvalue().to_pybytes()
    if not path.exists() or path.read_bytes() != content:
        with whole_file(path) as partial:
            partial.write_bytes(content)
