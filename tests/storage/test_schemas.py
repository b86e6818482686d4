import re

import pyarrow as pa
import pytest

from minitron_nas.architecture.spec import SHAPE_FIELDS
from minitron_nas.storage.schemas import CANDIDATES, EVALUATIONS, SCHEMA_VERSION, TABLES, Table

each_table = pytest.mark.parametrize("table", TABLES, ids=lambda table: table.file_name)


def test_table_files_are_distinct_parquet_files() -> None:
    names = [table.file_name for table in TABLES]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z]+\.parquet", name) for name in names)


@each_table
def test_columns_are_distinct_and_hold_the_key(table: Table) -> None:
    names = [column.name for column in table.columns]
    assert len(set(names)) == len(names)
    assert set(table.key) <= set(names)


@each_table
def test_every_column_is_described_in_the_file(table: Table) -> None:
    schema = table.arrow_schema()
    assert schema.metadata == {b"minitron_nas_schema_version": str(SCHEMA_VERSION).encode()}
    for field, column in zip(schema, table.columns, strict=True):
        assert field.metadata == {b"description": column.description.encode()}
        assert column.description


@each_table
def test_counts_are_integers_and_measures_are_floats(table: Table) -> None:
    for column in table.columns:
        if column.name.startswith("num_") or column.name.endswith("_bytes"):
            assert column.type == pa.int64()
        if column.name.endswith(("_nats", "seconds", "_per_second")):
            assert column.type == pa.float64()


@pytest.mark.parametrize("table", [CANDIDATES, EVALUATIONS], ids=lambda table: table.file_name)
def test_shapes_are_written_in_the_words_of_architecture(table: Table) -> None:
    names = [column.name for column in table.columns]
    first = names.index(SHAPE_FIELDS[0])
    assert tuple(names[first : first + len(SHAPE_FIELDS)]) == SHAPE_FIELDS
