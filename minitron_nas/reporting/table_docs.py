"""The description of every table as Markdown, for `reports/README.md`.

`python -m minitron_nas.reporting.table_docs` prints it; a test holds the README to it.
"""

import sys

from minitron_nas.storage.schemas import TABLES, Table


def describe_tables() -> str:
    """Return one Markdown table per Parquet table of a run, column by column."""
    return "\n\n".join(_describe(table) for table in TABLES)


def _describe(table: Table) -> str:
    rows = [f"| `{c.name}` | {c.type} | {c.description.replace('|', chr(92) + '|')} |" for c in table.columns]
    title = f"### {table.file_name}\n\nOne row per {', '.join(table.key)}.\n"
    return "\n".join([title, "| column | type | what it says |", "|---|---|---|", *rows])


if __name__ == "__main__":
    sys.stdout.write(describe_tables() + "\n")
