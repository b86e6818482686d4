"""What a command says of its text before it reads it."""

import gzip
import json

import datasets
import pytest

from minitron_nas.text.settings import TextSettings
from minitron_nas.text.survey import about_text

ROWS = "".join(json.dumps({"text": f"document {number}"}) + "\n" for number in range(3))


def said(data, **settings):
    return list(about_text(data, TextSettings(**settings)))


def test_files_rows_bytes_and_split_are_said_with_what_is_passed_over(tmp_path):
    for name in ("train-1.jsonl", "train-2.jsonl", "test.jsonl"):
        (tmp_path / name).write_text(ROWS)
    (tmp_path / "README.md").write_text("# Card")
    passed = "passed over: 1 file (card, licence or metadata: README.md), 1 file (split test: test.jsonl)"
    assert said(str(tmp_path)) == [f"text: {tmp_path}: 2 files, 6 rows, {2 * len(ROWS)} bytes, split train; {passed}"]


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("a.json", b'[{"text": "a"}, {"text": "b"}]', ", 2 rows"),
        ("a.jsonl", b'{"text": "a"}\n\n', ", 1 row"),
        ("a.txt", b"text", ""),
        ("a.jsonl.gz", gzip.compress(ROWS.encode(), mtime=0), ""),
        ("a.parquet", b"no parquet", ""),
    ],
    ids=lambda value: value if isinstance(value, str) else "content",
)
def test_rows_are_said_where_they_can_be_counted(tmp_path, name, content, rows):
    (tmp_path / name).write_bytes(content)
    assert said(str(tmp_path / name)) == [f"text: {tmp_path / name}: 1 file{rows}, {len(content)} bytes"]


def test_tables_of_arrow_are_counted_too(tmp_path):
    table = datasets.Dataset.from_dict({"text": ["a", "b", "c"]})
    table.to_parquet(tmp_path / "a.parquet")
    table.save_to_disk(tmp_path / "saved")
    assert ": 1 file, 3 rows" in said(str(tmp_path / "a.parquet"))[0]
    assert "3 rows" in said(str(tmp_path / "saved"))[0]


def test_every_source_of_a_blend_has_a_line(tmp_path):
    (tmp_path / "a.jsonl").write_text(ROWS)
    lines = said([{"path": str(tmp_path / "a.jsonl"), "weight": 1}, {"path": "some/where", "weight": 1, "split": "x"}])
    assert lines[0].startswith(f"text: {tmp_path / 'a.jsonl'}: 1 file, 3 rows")
    assert lines[1] == "text: some/where: hub dataset, split x"
