import json
from math import inf, nan

import pytest

from minitron_nas.cli.command import print_json
from minitron_nas.cli.values import parse_data, parse_size
from minitron_nas.errors import PlanError


@pytest.mark.parametrize("size", ["4 billion", "", "-1"])
def test_a_size_that_is_no_count_is_refused(size: str) -> None:
    with pytest.raises(PlanError, match=r"--size: '.*' is not a count; write a number such as 8e9 or '110M'"):
        parse_size(size)


def test_a_size_may_be_told_in_other_units() -> None:
    assert [parse_size(size).label for size in ("4.5B", "memory=6GB", "decode=2x")] == [
        "4.5B",
        "memory-6GB",
        "decode-2.0x",
    ]
    with pytest.raises(PlanError, match=r"--size: size 'weight=6GB': 'weight' is no unit of a size"):
        parse_size("weight=6GB")


@pytest.mark.parametrize("name", ["corpus/*.parquet", "owner/name", "/folder/a=b/*.jsonl", "a=b", "a=0.3=b"])
def test_one_name_is_no_blend(name):
    assert parse_data([name]) == name


def test_an_existing_path_is_a_name_whatever_it_looks_like(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "year=2024").mkdir()
    assert parse_data(["year=2024"]) == "year=2024"
    assert parse_data(["year=2024=2", "b=1"])[0] == {"path": "year=2024", "weight": 2.0}


def test_a_blend_is_paths_with_weights_and_keys_of_their_own():
    values = ["a.parquet=0.3", "owner/name=7e-1,column=body,config=en,split=test"]
    assert parse_data(values) == [
        {"path": "a.parquet", "weight": 0.3},
        {"path": "owner/name", "weight": 0.7, "column": "body", "config": "en", "split": "test"},
    ]


def test_one_source_may_name_its_column():
    assert parse_data(["a.parquet=1,column=body"]) == [{"path": "a.parquet", "weight": 1.0, "column": "body"}]


def test_several_names_need_weights():
    with pytest.raises(
        PlanError, match=r"--data b.jsonl has no weight; a blend is written --data a.parquet=0.3 --data"
    ):
        parse_data(["a.parquet=1", "b.jsonl"])


def test_a_weight_that_is_no_number_is_an_error():
    with pytest.raises(PlanError, match="weight: .* valid number"):
        parse_data(["a.parquet=1.2.3", "b=1"])


def test_what_is_printed_is_json_whatever_the_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": nan, "b": [inf, 1.5, ("c", -inf)], "d": None})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "a": None,
        "b": [None, 1.5, ["c", None]],
        "d": None,
    }
