"""What the figure with axes of the reader's choice draws: points that can be checked by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minitron_nas.reporting import measures
from minitron_nas.reporting.explorer import explorer
from minitron_nas.reporting.measures import run_points
from minitron_nas.reporting.run_record import RunRecord, read_run


@pytest.fixture(scope="module")
def run(finished_run: Path) -> RunRecord:
    return read_run(finished_run)


@pytest.fixture(scope="module")
def drawn(run: RunRecord) -> dict[str, Any]:
    return explorer([("", run)])


def by_measure(drawn: dict[str, Any], group: str) -> dict[str, dict[str, Any]]:
    """The points of a group by name, with their shape and their values by measure."""
    names = [measure["name"] for measure in drawn["measures"]]
    (points,) = [each["points"] for each in drawn["groups"] if each["name"] == group]
    return {name: {"shape": shape, **dict(zip(names, values, strict=True))} for name, shape, *values in points}


def test_a_student_stands_at_what_was_measured_of_it(drawn: dict[str, Any]) -> None:
    student = by_measure(drawn, "student")["110M"]
    assert (student["num_parameters"], student["kl_nats"]) == (108_855_000, 0.2137)
    assert student["shape"] == "l28-h576-f1152-q9-k3"
    assert student["decode_share"] == pytest.approx(52.4 / 63.1, rel=1e-5)
    assert student["peak_memory_bytes"] == pytest.approx(108_855_360 * 6 / 1e9, rel=1e-5)
    assert student["tasks"] == pytest.approx((0.553 + 0.674 + 0.531) / 3 - 0.11 * 0.2137, rel=1e-5)


def test_every_kind_of_model_has_a_marker_of_its_own(drawn: dict[str, Any]) -> None:
    assert {group["name"]: (group["symbol"], len(group["points"])) for group in drawn["groups"]} == {
        "candidate, untrained": ("circle-open", 16),
        "trial, best rung": ("circle-open", 7),
        "random-weights baseline": ("x", 2),
        "depth-only baseline": ("triangle-down", 2),
        "student": ("diamond", 2),
    }


def test_a_measure_that_nothing_is_known_by_is_not_offered(run: RunRecord, drawn: dict[str, Any]) -> None:
    names = [measure["name"] for measure in drawn["measures"]]
    assert "prefill_seconds" not in names
    assert "tasks" in names
    without = explorer([("", replace(run, benchmarks=run.benchmarks.iloc[:0]))])
    assert "tasks" not in [measure["name"] for measure in without["measures"]]


def test_tasks_that_not_all_models_were_asked_count_for_none(run: RunRecord) -> None:
    fewer = run.benchmarks[(run.benchmarks["task"] != "piqa") | (run.benchmarks["model"] != "94M")]
    teacher = run_points(replace(run, benchmarks=fewer))[0]
    assert teacher.values["tasks"] == pytest.approx((0.553 + 0.531) / 2)


def test_memory_is_counted_for_models_as_for_candidates(run: RunRecord) -> None:
    told = replace(run, plan={**run.plan, "search": {"batch_size": 2, "context_tokens": 1000}})
    teacher = run_points(told)[0]
    assert teacher.values["memory_bytes"] == 2 * 134_515_008 + 2 * 1000 * 4 * 30 * 3 * 64
    hybrid = replace(told, evaluations=told.evaluations.assign(state_bytes_per_sequence=5_000_000))
    assert run_points(hybrid)[0].values["memory_bytes"] == teacher.values["memory_bytes"] + 2 * 5_000_000


def test_of_a_run_that_does_not_say_what_models_keep_their_memory_is_not_told(run: RunRecord) -> None:
    earlier = run.evaluations.drop(columns=["kv_cache_bytes_per_token", "state_bytes_per_sequence"])
    plan = {**run.plan, "search": {"batch_size": 2, "context_tokens": 1000}}
    teacher = run_points(replace(run, plan=plan, evaluations=earlier))[0]
    assert teacher.values["memory_bytes"] is None
    assert teacher.values["num_parameters"] == 134_515_008


def test_each_size_is_a_band_and_a_line_and_the_teacher_stands_beside_the_groups(drawn: dict[str, Any]) -> None:
    bands = [(size["label"], size["low"], size["line"], size["high"]) for size in drawn["sizes"]]
    assert bands == [
        ("110M", 104_500_000, 110_000_000, 115_500_000),
        ("94M", 89_300_000, 94_000_000, 98_700_000),
    ]
    (teacher,) = drawn["teachers"]
    assert teacher[:2] == ["teacher", 134_515_000]


def test_a_size_in_memory_is_a_line_of_memory_and_a_band_of_parameters(run: RunRecord) -> None:
    rows = run.candidates[run.candidates["size"] == "94M"].assign(size="memory-300MB", memory_bytes=3e8)
    empty = {name: getattr(run, name).iloc[:0] for name in ("exclusions", "trials", "curves", "evaluations")}
    told = replace(run, candidates=rows, plan={"sizes": ["memory=300MB"]}, lineages={}, **empty)
    sizes = {size["measure"]: size for size in explorer([("", told)])["sizes"]}
    assert sizes["num_parameters"]["line"] is None
    assert sizes["memory_bytes"]["line"] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("objectives", "across"),
    [
        (["kl"], "num_parameters"),
        (["kl", "memory_bytes", "num_parameters"], "memory_bytes"),
        (["kl", "decode_seconds"], "num_parameters"),
    ],
    ids=["none", "memory", "one that nothing is known by"],
)
def test_what_the_search_weighed_beside_kl_is_shown_across(run: RunRecord, objectives: list[str], across: str) -> None:
    plan = {**run.plan, "search": {"objectives": objectives, "batch_size": 1, "context_tokens": 4096}}
    assert explorer([("", replace(run, plan=plan))])["across"] == across


def test_of_many_candidates_those_of_the_front_are_drawn_first(run: RunRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "MAX_POINTS", 4)
    screened = [point.name for point in run_points(run) if point.kind == "screened"]
    front = run.candidates[run.candidates["on_front"] == True]["candidate"]  # noqa: E712
    assert sorted(screened) == sorted(front)
    assert explorer([("", run)])["left_out"] == 16 - 4 + 7 - 4


def test_an_empty_run_has_a_teacher_and_no_groups(new_run: Path) -> None:
    drawn = explorer([("", read_run(new_run))])
    assert (drawn["groups"], len(drawn["teachers"])) == ([], 1)


def test_points_of_several_runs_are_told_apart_by_name_and_colour(run: RunRecord) -> None:
    drawn = explorer([("a", run), ("b", run)])
    students = [each for each in drawn["groups"] if each["name"].endswith("student")]
    assert [name for name, *_ in drawn["teachers"]] == ["teacher"]  # the same of both
    assert [(each["name"], each["points"][0][0]) for each in students] == [
        ("a student", "a 110M"),
        ("b student", "b 110M"),
    ]
    assert students[0]["colour"] != students[1]["colour"]
