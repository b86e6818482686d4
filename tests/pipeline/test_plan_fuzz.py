"""Plans with any content: a plan, or a `PlanError` that says what is wrong; never anything else."""

import datetime as dt
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from minitron_nas.errors import PlanError
from minitron_nas.pipeline.plan import FamilyPlan, deciding, load_plan, make_plan

LEAST = {"teacher": "owner/name", "sizes": ["110M"], "data": "embedded"}
PLAN = make_plan(LEAST).to_dict()
PLACES = [(group,) for group in PLAN] + [
    (group, name) for group, values in PLAN.items() if isinstance(values, dict) for name in values
]
ODD: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, False, 0, -1, 1, 10**30, 0.5, -0.0, math.nan, math.inf, "", " ", "auto", "1e999M", "-5B", "110M", "é"]
) | st.sampled_from([[], {}, [None], ["a", "a"], {"a": 1}, {"values": [1]}, {1: 2}, {None: {}}, dt.date(2026, 1, 2)])
ANYTHING = st.recursive(
    ODD | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3),
    max_leaves=6,
)
CHANGES = st.lists(st.tuples(st.sampled_from(PLACES), ANYTHING), min_size=1, max_size=3)
MAPPINGS = st.dictionaries(st.sampled_from([*PLAN, "plan", "versions", ""]) | st.text(max_size=8), ANYTHING, max_size=4)


def changed(changes: list[tuple[tuple[str, ...], Any]]) -> dict[str, Any]:
    plan: dict[str, Any] = {key: dict(value) if isinstance(value, dict) else value for key, value in PLAN.items()}
    for (group, *name), value in changes:
        if name and isinstance(plan[group], dict):
            plan[group][name[0]] = value
        else:
            plan[group] = value
    return plan


def load(text: str, file: Path) -> None:
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        plan = load_plan(file)
    except PlanError as error:
        refusal = str(error)
    else:
        refusal = "none"
        assert make_plan(plan.to_dict()).to_dict().keys() == PLAN.keys()
        assert deciding(plan.to_dict())
    assert refusal


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plans") / "plan.yaml"


@settings(max_examples=200)
@given(changes=CHANGES)
def test_a_plan_with_odd_values_is_taken_or_refused(changes: list[tuple[tuple[str, ...], Any]], file: Path) -> None:
    load(yaml.safe_dump(changed(changes), allow_unicode=True), file)


@settings(max_examples=200)
@given(values=MAPPINGS)
def test_any_mapping_is_a_plan_or_refused(values: dict[Any, Any], file: Path) -> None:
    load(yaml.safe_dump({**LEAST, **values}), file)


@given(
    text=st.text(st.sampled_from("teachr:sizdt{}[]&*!|>-?,'\"#%@` \t\n019é\x85\ufeff"), max_size=40)
    | st.text(max_size=12)
)
def test_any_text_is_a_plan_or_refused(text: str, file: Path) -> None:
    load(text, file)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=5_000)
@given(changes=CHANGES, values=MAPPINGS)
def test_many_plans_are_taken_or_refused(
    changes: list[tuple[tuple[str, ...], Any]], values: dict[Any, Any], file: Path
) -> None:
    load(yaml.safe_dump({**changed(changes), **values}, allow_unicode=True), file)


def test_the_plan_that_is_changed_is_one() -> None:
    assert isinstance(make_plan(changed([])), FamilyPlan)
