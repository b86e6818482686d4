from pathlib import Path

from minitron_nas.reporting.table_docs import describe_tables
from minitron_nas.resources import resource
from minitron_nas.storage.schemas import TABLES


def readme() -> str:
    path: Path = resource("reports", "README.md")
    return path.read_text(encoding="utf-8")


def test_the_readme_ends_with_the_description_of_the_schemas() -> None:
    reason = "run `python -m minitron_nas.reporting.table_docs` and put its output at the end of reports/README.md"
    assert readme().endswith(describe_tables() + "\n"), reason


def test_every_table_and_column_is_described_in_the_readme() -> None:
    sections = dict(part.split("\n", 1) for part in readme().split("\n### ")[1:])
    assert {name: part.count("\n| `") for name, part in sections.items()} == {
        table.file_name: len(table.columns) for table in TABLES
    }
    for table in TABLES:
        for column in table.columns:
            assert f"| `{column.name}` | {column.type} |" in sections[table.file_name]
