"""Rows of tables with any content: documents, or a `DataError` that names file and row; never anything else."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minitron_nas.errors import DataError
from minitron_nas.text.conversation import Conversation
from minitron_nas.text.files import open_files, read_parts

KEYS = st.sampled_from(
    ["text", "messages", "conversations", "role", "content", "from", "value", "type", "tools", "tool_calls"]
)
PLAIN: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(
        ["user", "assistant", "system", "text", "\ud800", "[]", '[{"role": "user", "content": "a"}]', "{"]
    )
)
CELLS = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)
ROWS = st.lists(st.dictionaries(KEYS, CELLS, max_size=3) | CELLS, min_size=1, max_size=4)
COLUMNS = st.sampled_from(
    [
        pa.array(["a", None, ""]),
        pa.array([b"a", b"\xff\xfe", None]),
        pa.array([1, 2, None]),
        pa.array([["a"], [], None]),
        pa.array([{"role": "user"}, {"role": None}, None]),
        pa.array([[{"role": "user", "content": "a"}], [{"role": "x", "content": None}], []]),
        pa.array([[{"content": [{"type": "text", "text": "a"}], "role": "user"}], None, None]),
        pa.array([0.5, float("nan"), None]),
        pa.array(["a", "b", "a"]).dictionary_encode(),
        pa.array([None, None, None]),
        pa.array([1, 2, 3], pa.timestamp("ns")),
        pa.array([b"abc", b"def", None], pa.binary(3)),
        pa.array(["a", None, "b"], pa.large_string()),
        pa.array([[("a", 1)], [], None], pa.map_(pa.string(), pa.int64())),
    ]
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield tmp_path_factory.mktemp("rows")


def read(file: Path) -> str:
    """Read the documents of a file; returns why it was refused."""
    try:
        documents = list(read_parts(open_files([file], "text", passages=False)))
    except DataError as error:
        refusal = str(error)
    else:
        refusal = ""
        assert all(isinstance(each, str | Conversation) for each in documents)
    assert "\n" not in refusal
    assert not refusal or file.name in refusal
    return refusal


@settings(max_examples=200)
@given(rows=ROWS, as_lines=st.booleans())
def test_any_rows_of_json_are_documents_or_refused_by_name(rows: list[Any], as_lines: bool, folder: Path) -> None:
    file = folder / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) if as_lines else json.dumps(rows, indent=1))
    read(file)


@given(
    content=st.binary(max_size=40),
    begin=st.sampled_from([b"", b"[", b"{", b'{"text": "a"}\n', b"PAR1", b"\xef\xbb\xbf"]),
)
def test_any_bytes_are_documents_or_refused_by_name(content: bytes, begin: bytes, folder: Path) -> None:
    for suffix in (".jsonl", ".parquet", ".json.gz", ".jsonl.zst"):
        file = folder / f"bytes{suffix}"
        file.write_bytes(begin + content)
        read(file)


@settings(max_examples=200)
@given(cells=st.dictionaries(KEYS, COLUMNS, min_size=1, max_size=3), place=st.floats(0, 1), new=st.binary(max_size=3))
def test_any_parquet_columns_are_documents_or_refused_by_name(
    cells: dict[str, pa.Array], place: float, new: bytes, folder: Path
) -> None:
    file = folder / "rows.parquet"
    pq.write_table(pa.table(cells), file)
    read(file)
    content = file.read_bytes()
    begin = int(place * len(content))
    file.write_bytes(content[:begin] + new + content[begin + len(new) :])
    read(file)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=5_000)
@given(rows=ROWS)
def test_many_rows_of_json_are_documents_or_refused_by_name(rows: list[Any], folder: Path) -> None:
    file = folder / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    read(file)
