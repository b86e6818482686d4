"""What each stage is expected to cost."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minitron_nas.architecture.costs import forward_flops_per_token
from minitron_nas.families.catalog import layout_of
from minitron_nas.models.checkpoint import Checkpoint, open_checkpoint
from minitron_nas.pipeline.clock import StageWork
from minitron_nas.pipeline.devices import Devices
from minitron_nas.pipeline.family import Family
from minitron_nas.pipeline.plan import load_plan, make_plan, with_overrides
from minitron_nas.pipeline.workload import TokenCounts, estimate_workload, mean_forward_flops, some_candidates
from minitron_nas.pruning.start import moments_bytes
from minitron_nas.space.axes import load_space
from minitron_nas.space.enumerate import enumerate_candidates

ALONE = Devices("cpu", 1, 10**10)
TOKENS = TokenCounts(distillation=10_000, train=9_984, validation=1_024, calibration=2_048)
CUTTING = 1500
"""Cutting a model is counted as the forward pass of so many tokens."""


@pytest.fixture(scope="module")
def teacher(trained_teacher: Path) -> Checkpoint:
    return open_checkpoint(trained_teacher)


@pytest.fixture
def estimate(tiny_settings: dict[str, Any], teacher: Checkpoint) -> Any:
    def call(*overrides: str, devices: Devices = ALONE) -> dict[str, StageWork]:
        values = {"teacher": "x", "sizes": ["90k", "60k"], "data": "x", **tiny_settings}
        plan = make_plan(with_overrides(values, overrides))
        shape, layout = teacher.architecture, teacher.layout
        pools = {size: enumerate_candidates(plan.space, size, shape, layout) for size in plan.descending_sizes}
        return estimate_workload(plan, teacher.outline(), pools, TOKENS, devices)

    return call


@pytest.fixture
def forward(teacher: Checkpoint) -> int:
    """FLOPs of a token in the teacher."""
    return forward_flops_per_token(teacher.architecture, teacher.layout, 64)


def test_every_stage_that_costs_anything_is_expected_in_its_order(family: Family, estimate: Any) -> None:
    done = [json.loads(line)["stage"] for line in (family.path / "ledger.jsonl").read_text().splitlines()]
    named = [stage for stage in done if stage not in {"text", "study"}]
    assert list(estimate()) == named
    left_out = {"teacher prepare", "90k prepare"}
    assert list(estimate("start=select", "repair=none")) == [stage for stage in named if stage not in left_out]


def test_the_tokens_of_a_run_are_counted_and_those_of_a_plan_foreseen(family: Family) -> None:
    plan = load_plan(family.path / "plan.yaml")
    assert TokenCounts.planned(plan, 10_000) == TOKENS


def test_the_teacher_speaks_over_all_that_is_cached_without_its_head(
    estimate: Any, forward: int, teacher: Checkpoint
) -> None:
    headless = forward - 2 * 48 * teacher.architecture.vocab_size
    assert estimate()["teacher signal"].flops == pytest.approx(headless * (1_024 + 9_984))
    assert estimate("distillation.loss=lm")["teacher signal"].flops == pytest.approx(headless * 1_024)
    trials = 1_000
    online = estimate("distillation.teacher_signal=online")["teacher signal"].flops
    assert online == pytest.approx(headless * (1_024 + trials))
    top_k = estimate("distillation.teacher_signal=top_k")["teacher signal"].flops
    assert top_k == pytest.approx(headless * (1_024 + trials) + forward * 9_984)


def test_evaluation_reads_all_weights_for_each_token_that_is_decoded(estimate: Any, forward: int) -> None:
    work = estimate("evaluation={prompt_tokens: 8, decode_tokens: 2, repeats: 1}")["teacher evaluate"]
    assert work.flops == forward * (1_024 + 2 * (8 + 2))
    assert work.path_flops == forward * (1_024 + 2 * (8 + 2 * 50))
    assert work.duration(1e9) == 15 + work.path_flops / 1e9


def test_two_passes_prepare_a_source_and_each_multiplies_what_it_measures(
    estimate: Any, forward: int, teacher: Checkpoint
) -> None:
    products = (moments_bytes(teacher, "norms") + moments_bytes(teacher, "projections")) / 2
    assert estimate()["teacher prepare"].flops == pytest.approx(2_048 * (2 * forward + products))
    one = 2_048 * (forward + moments_bytes(teacher, "norms") / 2)
    assert estimate("repair=none")["teacher prepare"].flops == pytest.approx(one)


def test_devices_share_the_text_of_scores_and_the_layers_of_moments(
    estimate: Any, teacher: Checkpoint, forward: int
) -> None:
    many = estimate("runner.kind=ray", devices=Devices("gpu", 16, 10**10))
    products = (moments_bytes(teacher, "norms") + moments_bytes(teacher, "projections")) / 2
    assert many["teacher score"].flops == estimate()["teacher score"].flops
    assert many["teacher score"].path_flops == pytest.approx(estimate()["teacher score"].path_flops / 8)  # 32 sequences
    assert many["teacher prepare"].flops == pytest.approx(2_048 * (5 * 2 * forward + products))
    assert many["teacher prepare"].path_flops == pytest.approx(2_048 * (2 * forward + products / 5))


def test_a_student_costs_what_the_shapes_of_its_size_cost(estimate: Any, teacher: Checkpoint) -> None:
    plain, more = estimate("repair=none"), estimate("repair=none", "distillation.num_evaluations=8")
    space = make_plan({"teacher": "x", "sizes": [1], "data": "x"}).space
    shape, layout = teacher.architecture, teacher.layout
    assert plain["90k distil"] == plain["90k-random-weights distil"]
    each = (more["60k distil"].flops - plain["60k distil"].flops) / 6 / 1_024
    pool = enumerate_candidates(space, 60_000, shape, layout).candidates
    assert each == pytest.approx(mean_forward_flops(pool, layout, 64), rel=0.15)  # of another space
    assert plain["60k distil"].flops == pytest.approx(each * (3 * 10_000 + 3 * 1_024 + CUTTING))


def test_members_that_have_room_are_trained_side_by_side_in_the_stage_of_the_first(estimate: Any) -> None:
    runner = ("runner.kind=ray", "runner.num_processes=2", "repair=none")
    names = [f"90k{role} distil" for role in ("", "-depth-only", "-random-weights")]
    alone, beside = (estimate(*runner, devices=Devices("gpu", number, 10**10)) for number in (2, 4))
    assert [alone[name].flops for name in names] == [beside[name].flops for name in names]
    first, *others = (beside[name].path_flops for name in names)
    cut = others[0]
    assert others == [cut, cut]
    assert first - cut == pytest.approx(2 * (alone[names[0]].path_flops - cut))  # two and then one, of three


def test_repair_is_expected_for_what_is_pruned_alone(estimate: Any, forward: int) -> None:
    repaired, plain = estimate(), estimate("repair=none")
    assert repaired["90k tournament"].flops - plain["90k tournament"].flops > 3 * 3 * forward * 2_048
    assert repaired["90k-depth-only distil"].flops > plain["90k-depth-only distil"].flops
    assert repaired["90k-random-weights distil"] == plain["90k-random-weights distil"]


def test_a_student_is_repaired_once_by_whoever_needs_it_first(estimate: Any, forward: int) -> None:
    auto = ("distillation.learning_rate=auto", "text.sequence_length=16")

    def repaired(stage: str, *overrides: str) -> bool:
        more, plain = estimate(*overrides)[stage], estimate("repair=none", *overrides)[stage]
        return bool(more.flops - plain.flops > forward * 2_048)

    assert not repaired("90k distil")
    assert repaired("90k distil", "search.num_rungs=0")
    assert repaired("90k rate", *auto)
    assert repaired("90k rate", *auto, "search.num_rungs=0")
    assert not repaired("90k distil", *auto, "search.num_rungs=0")


def test_a_teacher_that_runs_beside_its_student_is_counted(estimate: Any, forward: int) -> None:
    online, cached = estimate("distillation.teacher_signal=online"), estimate()
    assert online["90k distil"].flops - cached["90k distil"].flops == pytest.approx(forward * 10_000)
    assert online["90k tournament"] == cached["90k tournament"]  # trials always learn from a cache
    matched = estimate("distillation={teacher_signal: online, intermediate: always}")
    trained = 2 * 512  # two of three finalists in the first rung; then one is left
    assert matched["90k tournament"].flops - cached["90k tournament"].flops == pytest.approx(
        forward * 2 * 500, rel=trained / 1000 - 1
    )
    assert estimate("distillation.loss=lm", "distillation.teacher_signal=online")["90k distil"] == cached["90k distil"]


def test_devices_shorten_what_they_share(estimate: Any) -> None:
    four = replace(ALONE, number=4)
    ray = ("runner={kind: ray}", "repair=none", "search.max_screened=6")
    one, many = estimate(*ray), estimate(*ray, devices=four)
    assert many["teacher signal"].flops == one["teacher signal"].flops == 4 * many["teacher signal"].path_flops
    assert many["90k screen"].flops == one["90k screen"].flops
    assert many["90k screen"].path_flops == pytest.approx(one["90k screen"].path_flops * 2 / 6)  # two waves of six
    shared = one["90k distil"].path_flops - many["90k distil"].path_flops
    assert shared == pytest.approx(0.75 * one["90k distil"].flops, rel=0.1)


def test_of_many_candidates_some_are_counted_that_lie_evenly() -> None:
    space = load_space("minitron-15b-to-4b")
    shape = space.source_architecture()
    candidates = enumerate_candidates(space, 4 * 10**9, shape, layout_of(shape.model_type)).candidates
    assert some_candidates(candidates) == list(candidates)
    wide = load_space("default").model_copy(update={"tolerance": 0.3})
    many = enumerate_candidates(wide, 10**10, shape, layout_of(shape.model_type)).candidates
    some = some_candidates(many)
    assert len(many) > 64 >= len(some) > 32
    assert some[0] == many[0]


def test_learning_rates_that_are_tried_cost_a_start_and_four_short_trainings(estimate: Any) -> None:
    plain = ("repair=none", "text.sequence_length=32")
    fixed, auto = estimate(*plain), estimate(*plain, "distillation.learning_rate=auto")
    assert list(auto) == [
        name
        for stage in fixed
        for name in ((f"{stage.split()[0]} rate", stage) if stage.endswith("tournament") else (stage,))
    ]
    by_token = fixed["90k distil"].flops / (3 * 10_000 + 3 * 1_024 + CUTTING)
    each = 3 * 224 + 1_024 + CUTTING  # seven sequences: a fortieth of 10,000 tokens
    assert auto["90k rate"].flops == pytest.approx(by_token * 4 * each)
    few = estimate(*plain, "distillation.learning_rate=auto", "distillation.batch_sequences=32")
    assert not [stage for stage in few if stage.endswith("rate")]


def test_without_baselines_their_work_is_not_expected(estimate: Any) -> None:
    assert not [stage for stage in estimate("baselines=false") if "-" in stage]


def test_a_student_that_teaches_the_next_one_has_to_speak_too(estimate: Any) -> None:
    assert set(estimate("kd_teacher=previous")) - set(estimate()) == {"90k signal"}


def test_correcting_the_teacher_costs_training_and_ten_validations_of_it(estimate: Any, forward: int) -> None:
    few, all_ = (estimate(settings)["teacher correct"] for settings in ("correct.tokens=2k", "correct.weights=full"))
    assert few.flops == pytest.approx(forward * (3 * 2000 + 10 * 1_024))
    assert all_.flops == pytest.approx(forward * (3 * 10_000 + 10 * 1_024))
