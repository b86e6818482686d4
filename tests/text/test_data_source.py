"""How blends are written in plans and on the command line, and what is refused."""

import pytest

from minitron_nas.errors import PlanError
from minitron_nas.text.data_source import DataSource, parse_data, read_sources


def test_sources_may_be_mappings_or_one_mapping_from_path_to_weight():
    listed = read_sources([{"path": "a.parquet", "weight": 0.3, "column": "body"}, {"path": "b", "weight": 1}])
    assert listed == (DataSource(path="a.parquet", weight=0.3, column="body"), DataSource(path="b", weight=1))
    assert read_sources({"a.parquet": 0.3, "b": 1})[1] == listed[1]
    assert read_sources(listed) == listed


@pytest.mark.parametrize(
    ("blend", "message"),
    [
        ([{"path": "a"}], "source 1 of the blend: weight: Field required"),
        ([{"path": "a", "weight": 1}, {"weight": 1}], "source 2 of the blend: path: Field required"),
        ([{"path": "a", "weight": 0}], "source 1 of the blend: weight: .* greater than 0"),
        ({"a": "much"}, "source 1 of the blend: weight: .* valid number"),
        ({"a": float("inf")}, "source 1 of the blend: weight: .* less than inf"),
        ([{"path": "a", "weight": 1, "columns": "x"}], "unknown key 'columns'; did you mean 'column'"),
        (
            ["a.parquet"],
            r"source 1 of the blend is 'a.parquet'; write a mapping such as \{path: a.parquet, weight: 0.3",
        ),
        ([], "a blend needs at least one source"),
    ],
)
def test_a_source_that_is_written_wrongly_is_an_error_that_names_it(blend, message):
    with pytest.raises(PlanError, match=message):
        read_sources(blend)


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
