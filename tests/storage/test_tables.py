from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minitron_nas.storage.schemas import EXCLUSIONS, SCORES, TABLES
from minitron_nas.storage.tables import read_frame, read_rows, replace_rows, write_rows

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


def test_new_rows_take_the_place_of_those_with_the_same_values(tmp_path: Path) -> None:
    write_rows(tmp_path, EXCLUSIONS, ROWS)
    replace_rows(tmp_path, EXCLUSIONS, {"size": "110M"}, [exclusion("110M", 9)])
    assert read_rows(tmp_path, EXCLUSIONS) == [ROWS[0], exclusion("110M", 9)]


def test_rows_that_agree_only_in_part_keep_their_place(tmp_path: Path) -> None:
    write_rows(tmp_path, EXCLUSIONS, ROWS)
    same = {"size": "110M", "rule": "size_window"}
    replace_rows(tmp_path, EXCLUSIONS, same, [exclusion("110M", 9)])
    assert read_rows(tmp_path, EXCLUSIONS) == [ROWS[0], ROWS[2], exclusion("110M", 9)]


def test_replacing_into_no_table_writes_it(tmp_path: Path) -> None:
    replace_rows(tmp_path, EXCLUSIONS, {"size": "94M"}, ROWS[:1])
    assert read_rows(tmp_path, EXCLUSIONS) == ROWS[:1]


def test_a_stage_that_runs_twice_leaves_the_same_bytes(tmp_path: Path) -> None:
    write_rows(tmp_path, EXCLUSIONS, ROWS)
    replace_rows(tmp_path, EXCLUSIONS, {"size": "110M"}, [exclusion("110M", 9)])
    once = (tmp_path / EXCLUSIONS.file_name).read_bytes()
    replace_rows(tmp_path, EXCLUSIONS, {"size": "110M"}, [exclusion("110M", 9)])
    assert (tmp_path / EXCLUSIONS.file_name).read_bytes() == once
