"""Who is in a family, in which order, and who is ahead."""

from dataclasses import replace
from pathlib import Path

import pytest

from minitron_nas.reporting.html import render_report
from minitron_nas.reporting.members import about_untimed, comparison, list_members, uncertain_speeds
from minitron_nas.reporting.model_card import render_model_card
from minitron_nas.reporting.run_record import RunRecord, read_run


@pytest.fixture(scope="module")
def run(finished_run: Path) -> RunRecord:
    return read_run(finished_run)


def changed(run: RunRecord, model: str, **values: float) -> RunRecord:
    evaluations = run.evaluations.copy()
    for column, value in values.items():
        evaluations.loc[evaluations["model"] == model, column] = value
    return replace(run, evaluations=evaluations)


def test_the_teacher_comes_first_then_each_size_with_its_baselines(run: RunRecord) -> None:
    shuffled = replace(run, evaluations=run.evaluations.iloc[::-1])
    assert [member.name for member in list_members(shuffled)] == [
        "teacher",
        "110M",
        "110M-depth-only",
        "110M-random-weights",
        "94M",
        "94M-depth-only",
        "94M-random-weights",
    ]


def harmed(run: RunRecord, model: str, end: float, exported: int) -> RunRecord:
    """The run, had a model ended with another KL and been exported from elsewhere."""
    curves = run.curves.copy()
    mine = (curves["model"] == model) & (curves["split"] == "validation")
    curves.loc[mine & (curves["tokens"] == 20_000_000), "kl_nats"] = end
    return replace(changed(run, model, exported_tokens=exported), curves=curves)


def test_a_model_that_ended_worse_than_it_began_says_so_with_both_numbers(run: RunRecord) -> None:
    members = {member.name: member for member in list_members(harmed(run, "110M", end=2.5, exported=2_000_000))}
    assert members["110M"].harm == (
        "training made it worse: validation KL 1.914 nats before it, 2.500 after 20,000,000 tokens; of its weights "
        "those after 2,000,000 tokens are kept"
    )
    assert {name for name, member in members.items() if member.harm} == {"110M"}


def test_where_the_next_token_loss_is_learned_it_says_whether_there_was_harm(run: RunRecord) -> None:
    plan = {**run.plan, "distillation": {"loss": "lm"}}
    members = list_members(replace(harmed(run, "110M", end=2.5, exported=0), plan=plan))
    assert [member.harm for member in members if member.harm] == []


def test_a_ratio_is_to_the_teacher(run: RunRecord) -> None:
    student = list_members(run)[1]
    assert student.ratio("perplexity") == pytest.approx(student.value("perplexity") / student.teacher["perplexity"])


def test_the_ratio_of_a_speed_is_the_one_that_was_measured_in_turns(run: RunRecord) -> None:
    # A machine that was slow for the student's hour: its own figure falls, what was measured in turns does not.
    slow = changed(run, "110M", decode_tokens_per_second=0.06 * 52.4)
    student = list_members(slow)[1]
    assert student.ratio("decode_tokens_per_second") == pytest.approx(63.1 / 52.4)
    assert student.spread("decode_tokens_per_second") == 0.04
    assert student.spread("kl_nats") is None


def test_a_speed_that_stayed_unsteady_is_named(run: RunRecord) -> None:
    assert uncertain_speeds(list_members(run)) == []
    told = uncertain_speeds(list_members(changed(run, "94M-depth-only", prefill_spread=0.31)))
    assert told == ["94M depth-only baseline: prefill speed spreads by 31\N{NO-BREAK SPACE}% of its median"]


def test_a_model_that_was_too_large_to_be_timed_is_named(run: RunRecord) -> None:
    assert about_untimed(list_members(run)) == ""
    speeds = [name for name in run.evaluations if name.startswith(("prefill", "decode"))]
    untimed = changed(run, "teacher", **dict.fromkeys([*speeds, "peak_memory_bytes"], float("nan")))
    untimed = changed(untimed, "110M", prefill_speedup=float("nan"), decode_speedup=float("nan"))
    told = about_untimed(list_members(untimed))
    assert told.startswith(
        "Speed and memory of teacher were not measured: a model that is larger than the device takes"
    )
    assert told in render_report(untimed)
    assert told in render_model_card(untimed, "110M")


@pytest.mark.parametrize(("difference", "proven"), [(1e-4, True), (1.1e-4, False)])
def test_a_proof_holds_up_to_its_tolerance(run: RunRecord, difference: float, proven: bool) -> None:
    student = list_members(changed(run, "110M", proof_max_abs_difference=difference))[1]
    assert student.proven is proven


def test_a_student_that_loses_to_a_baseline_is_said_to_lose(run: RunRecord) -> None:
    told = comparison(list_members(changed(run, "110M-depth-only", kl_nats=0.1)), "110M")
    assert told.startswith("KL 0.214 is 114\N{NO-BREAK SPACE}% higher than the depth-only baseline's 0.100 and 61")


def test_a_baseline_with_other_parameters_or_tokens_is_said_to_have_them(run: RunRecord) -> None:
    uneven = changed(run, "94M-random-weights", num_parameters=99_000_000, tokens_trained=10_000_000)
    assert comparison(list_members(uneven), "94M").endswith(
        "0.804 (99M parameters against 91.65M, 10M KD tokens against 20M)"
    )


def test_a_size_without_baselines_has_nothing_to_compare(run: RunRecord) -> None:
    alone = replace(run, evaluations=run.evaluations[run.evaluations["role"] == "student"])
    assert comparison(list_members(alone), "110M") == ""
