from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minitron_nas.storage.schemas import EXCLUSIONS, SCORES, TABLES, Column
from minitron_nas.storage.tables import read_frame, read_rows, unite_rows, write_rows

ROWS = [
    {"size": "94M", "rule": "size_window", "reason": "too large", "num_shapes": 12},
    {"size": "110M", "rule": "size_window", "reason": "too large", "num_shapes": 7},
    {"size": "110M", "rule": "heads_fill_groups", "reason": None, "num_shapes": 1},
]


def exclusion(size: str, num_shapes: int) -> dict[str, object]:
    return {"size": size, "rule": "size_window", "reason": "too large", "num_shapes": num_shapes}


def test_rows_come_back_as_they_went_in(tmp_path: Path) -> None:
    write_rows(tmp_path / "run", EXCLUSIONS, ROWS)
    assert read_rows(tmp_path / "run", EXCLUSIONS) == ROWS


def test_rows_that_come_in_batches_are_one_table_and_only_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minitron_nas.storage.tables._BATCH_ROWS", 2)
    write_rows(tmp_path, EXCLUSIONS, iter(ROWS))
    assert read_rows(tmp_path, EXCLUSIONS) == ROWS
    with pytest.raises(ValueError, match="has no column shapes"):
        write_rows(tmp_path, EXCLUSIONS, [*ROWS, {"shapes": 1}])
    assert read_rows(tmp_path, EXCLUSIONS) == ROWS


def test_a_column_that_a_row_lacks_is_null(tmp_path: Path) -> None:
    row = {"axis": "hidden", "index": 3, "score": 0.5, "rank": 0}
    write_rows(tmp_path, SCORES, [row])
    assert read_rows(tmp_path, SCORES) == [{"layer": None, "expert": None, **row}]


def test_a_column_that_the_table_lacks_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^exclusions\.parquet has no column shapes$"):
        write_rows(tmp_path, EXCLUSIONS, [*ROWS, {"size": "94M", "rule": "r", "shapes": 1}])
    assert list(tmp_path.iterdir()) == []


def test_a_value_of_another_type_is_refused_and_the_old_table_stays(tmp_path: Path) -> None:
    write_rows(tmp_path, EXCLUSIONS, ROWS)
    with pytest.raises(pa.ArrowInvalid, match="Could not convert 'many'"):
        write_rows(tmp_path, EXCLUSIONS, [{"size": "94M", "rule": "r", "num_shapes": "many"}])
    assert read_rows(tmp_path, EXCLUSIONS) == ROWS


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.file_name)
def test_an_empty_table_has_its_schema(tmp_path: Path, table: object) -> None:
    write_rows(tmp_path, table, [])
    assert pq.read_schema(tmp_path / table.file_name).equals(table.arrow_schema(), check_metadata=True)
    assert read_rows(tmp_path, table) == []


@pytest.mark.parametrize("written", [False, True])
def test_a_frame_has_the_schemas_columns_written_or_not(tmp_path: Path, written: bool) -> None:
    if written:
        write_rows(tmp_path, EXCLUSIONS, ROWS)
    frame = read_frame(tmp_path, EXCLUSIONS)
    assert list(frame.columns) == ["size", "rule", "reason", "num_shapes"]
    assert len(frame) == (3 if written else 0)
    assert frame["num_shapes"].dtype == "int64"


def test_a_table_that_was_never_written_has_no_rows(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "absent", EXCLUSIONS) == []


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """Rows of two stages, and a stage that has said nothing."""
    write_rows(tmp_path / "one", EXCLUSIONS, ROWS[:1])
    write_rows(tmp_path / "two", EXCLUSIONS, ROWS[1:])
    return [tmp_path / name for name in ("one", "silent", "two")]


def test_a_table_is_the_union_of_what_stages_said_in_their_order(tmp_path: Path, parts: list[Path]) -> None:
    unite_rows(tmp_path, EXCLUSIONS, parts)
    assert read_rows(tmp_path, EXCLUSIONS) == ROWS
    unite_rows(tmp_path, EXCLUSIONS, parts[::-1])
    assert read_rows(tmp_path, EXCLUSIONS) == [*ROWS[1:], *ROWS[:1]]
    assert pq.read_schema(tmp_path / EXCLUSIONS.file_name).equals(EXCLUSIONS.arrow_schema(), check_metadata=True)


def test_rows_of_before_a_column_was_added_have_none_of_it(tmp_path: Path, parts: list[Path]) -> None:
    unite_rows(tmp_path, EXCLUSIONS, parts)
    good = (tmp_path / EXCLUSIONS.file_name).read_bytes()
    newer = replace(EXCLUSIONS, columns=(*EXCLUSIONS.columns, Column("rank", pa.int64(), "new")))
    write_rows(tmp_path / "three", newer, [{**ROWS[0], "rank": 7}])
    unite_rows(tmp_path, newer, [*parts, tmp_path / "three"])
    assert [row["rank"] for row in read_rows(tmp_path, newer)] == [None, None, None, 7]
    unite_rows(tmp_path, EXCLUSIONS, parts)
    assert (tmp_path / EXCLUSIONS.file_name).read_bytes() == good


def test_a_table_of_nothing_goes(tmp_path: Path, parts: list[Path]) -> None:
    unite_rows(tmp_path, EXCLUSIONS, parts)
    unite_rows(tmp_path, EXCLUSIONS, parts[1:2])
    assert not (tmp_path / EXCLUSIONS.file_name).exists()


def test_a_folder_in_the_place_of_a_table_makes_way_for_it(tmp_path: Path, parts: list[Path]) -> None:
    unite_rows(tmp_path, EXCLUSIONS, parts)
    table = tmp_path / EXCLUSIONS.file_name
    good = table.read_bytes()
    for present in (parts, []):
        table.unlink()
        (table / "inside").mkdir(parents=True)
        unite_rows(tmp_path, EXCLUSIONS, present)
        assert table.read_bytes() == good if present else not table.exists()


@pytest.mark.parametrize("content", [None, b"", b"PAR1 and no more"])
def test_a_table_that_is_gone_or_damaged_is_made_again_to_the_byte(
    tmp_path: Path, parts: list[Path], content: bytes | None
) -> None:
    table = tmp_path / EXCLUSIONS.file_name
    unite_rows(tmp_path, EXCLUSIONS, parts)
    good = table.read_bytes()
    table.unlink()
    if content is not None:
        table.write_bytes(content)
    unite_rows(tmp_path, EXCLUSIONS, parts)
    assert table.read_bytes() == good


def test_a_table_that_is_right_is_not_written_again(tmp_path: Path, parts: list[Path]) -> None:
    unite_rows(tmp_path, EXCLUSIONS, parts)
    before = (tmp_path / EXCLUSIONS.file_name).stat()
    unite_rows(tmp_path, EXCLUSIONS, parts)
    after = (tmp_path / EXCLUSIONS.file_name).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
