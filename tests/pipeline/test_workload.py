import json
from pathlib import Path
from typing import Any

import pytest

from minitron_nas.architecture.costs import forward_flops_per_token
from minitron_nas.models.checkpoint import open_checkpoint
from minitron_nas.pipeline.engine import Done
from minitron_nas.pipeline.family import Family
from minitron_nas.pipeline.plan import FamilyPlan, load_plan
from minitron_nas.pipeline.run import RunTokens
from minitron_nas.pipeline.workload import estimate_workload
from minitron_nas.storage.ledger import Entry

TEXT = Done(Entry("text", "", None, 0.0))
LOADING = 1500
"""Loading a model is counted as the forward pass of so many tokens."""


@pytest.fixture
def estimate(family: Family, trained_teacher: Path) -> Any:
    def call(*overrides: str) -> dict[str, float]:
        plan: FamilyPlan = load_plan(family.path / "plan.yaml", overrides)
        return estimate_workload(
            plan, open_checkpoint(trained_teacher), RunTokens(family.path / "tokens", TEXT, 10_000)
        )

    return call


def test_every_stage_that_costs_anything_is_expected(family: Family, estimate: Any) -> None:
    done = {json.loads(line)["stage"] for line in (family.path / "ledger.jsonl").read_text().splitlines()}
    assert set(estimate()) == done - {"text", "study"}
    assert set(estimate("start=select", "repair=none")) == done - {"text", "study", "teacher prepare", "90k prepare"}


def test_the_expected_work_of_the_teacher_is_its_flops_times_its_tokens(
    family: Family, estimate: Any, trained_teacher: Path
) -> None:
    teacher = open_checkpoint(trained_teacher)
    flops = forward_flops_per_token(teacher.architecture, teacher.layout, 32)
    tokens = {
        name: RunTokens(family.path / "tokens", TEXT, 0).part(name).num_tokens for name in ("validation", "train")
    }
    work = estimate()
    assert work["teacher evaluate"] == flops * (tokens["validation"] + 3 * LOADING)
    assert work["teacher signal"] == flops * (tokens["validation"] + tokens["train"])
    for unneeded in ("distillation.teacher_signal=online", "distillation.loss=lm"):
        assert estimate(unneeded)["teacher signal"] == flops * tokens["validation"]


def test_the_work_of_a_student_grows_with_its_size_and_tokens(family: Family, estimate: Any) -> None:
    work = estimate("repair=none")
    assert work["90k distil"] == work["90k-random distil"] == pytest.approx(1.5 * work["60k distil"])
    assert estimate("distillation.num_evaluations=8")["60k distil"] > work["60k distil"]


def test_repair_is_expected_for_what_is_pruned_alone(family: Family, estimate: Any, trained_teacher: Path) -> None:
    repaired, plain = estimate(), estimate("repair=none")
    teacher = open_checkpoint(trained_teacher)
    flops = forward_flops_per_token(teacher.architecture, teacher.layout, 32)
    num_tokens = RunTokens(family.path / "tokens", TEXT, 0).part("calibration").num_tokens
    validation = RunTokens(family.path / "tokens", TEXT, 0).part("validation").num_tokens
    of_student = 90_000 / teacher.num_parameters * flops
    start = 3 * flops * num_tokens + 2 * of_student * validation
    assert repaired["90k distil"] - plain["90k distil"] == pytest.approx(start)
    finalists = load_plan(family.path / "plan.yaml").search.num_finalists
    assert repaired["90k tournament"] - plain["90k tournament"] == pytest.approx(finalists * start)
    assert repaired["90k-depth distil"] > plain["90k-depth distil"]
    assert repaired["90k-random distil"] == plain["90k-random distil"]


def test_without_baselines_their_work_is_not_expected(estimate: Any) -> None:
    assert not [stage for stage in estimate("baselines=false") if "-" in stage]


def test_a_student_that_teaches_the_next_one_has_to_speak_too(estimate: Any) -> None:
    assert set(estimate("kd_teacher=previous")) - set(estimate()) == {"90k signal"}


def test_correcting_the_teacher_costs_training_and_ten_validations_of_it(family: Family, estimate: Any) -> None:
    validation = RunTokens(family.path / "tokens", TEXT, 0).part("validation").num_tokens
    flops = estimate()["teacher evaluate"] / (validation + 3 * LOADING)
    assert estimate("correct.tokens=2k")["teacher correct"] == pytest.approx(flops * (3 * 2000 + 10 * validation))
    assert estimate("correct.weights=full")["teacher correct"] == pytest.approx(flops * (3 * 10_000 + 10 * validation))
