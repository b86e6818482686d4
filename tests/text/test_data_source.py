"""How blends are written in plans and on the command line, and what is refused."""

import pytest

from minitron_nas.errors import PlanError
from minitron_nas.text.data_source import DataSource, read_sources


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
        ([{"path": "a", "weight": 0}], "source 1 of the blend: weight: .* greater than or equal to 0.000001"),
        ({"a": -1}, "source 1 of the blend: weight: .* greater than or equal to 0.000001"),
        ({"a": 1, "b": 1e-320}, "source 2 of the blend: weight: .* greater than or equal to 0.000001"),
        ({"a": 1e308, "b": 1e308}, "source 1 of the blend: weight: .* less than or equal to 1000000000000000"),
        ({"a": "much"}, "source 1 of the blend: weight: .* valid number"),
        ({"a": float("inf")}, "source 1 of the blend: weight: .* a finite number"),
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
