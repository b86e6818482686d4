"""What stages took: numbers that are counted by hand from the synthetic run."""

from dataclasses import replace
from pathlib import Path

import pytest

from minitron_nas.reporting.cost import StageCost, stage_costs
from minitron_nas.reporting.run_record import RunRecord, read_run
from minitron_nas.storage.ledger import Entry

STAGES = ("text", "teacher score", "94M screen", "110M tournament", "110M distil")


@pytest.fixture(scope="module")
def run(finished_run: Path) -> RunRecord:
    run = read_run(finished_run)
    plan = {
        **run.plan,
        "text": {"sequence_length": 1000, "validation_samples": 10, "calibration_samples": 64},
        "search": {"screen_sequences": 4},
    }
    stages = tuple(Entry(stage, "of inputs", None, 1800.0) for stage in STAGES)
    lineages = {
        name: replace(
            lineage,
            source_architecture={**lineage.source_architecture, "intermediate_size": 1536},
        )
        for name, lineage in run.lineages.items()
    }
    return replace(run, plan=plan, stages=stages, lineages=lineages, devices={"name": "cuda", "number": 4})


@pytest.fixture(scope="module")
def costs(run: RunRecord) -> dict[str, StageCost]:
    return {cost.stage: cost for cost in stage_costs(run)}


def test_device_hours_are_those_of_all_devices_while_a_stage_ran(costs: dict[str, StageCost]) -> None:
    assert costs["110M distil"].device_hours == 2.0
    assert costs["all"].device_hours == 2.0 * len(STAGES)


def test_a_stage_costs_what_its_work_took_wherever_that_was_done(run: RunRecord) -> None:
    others = {"110M tournament": 300.0, "110M-depth-only distil": 200.0}  # the second is not there yet
    last = replace(run.stages[-1], of_others=others)
    costs = {cost.stage: cost for cost in stage_costs(replace(run, stages=(*run.stages[:-1], last)))}
    assert (costs["110M distil"].seconds, costs["110M tournament"].seconds) == (1500.0, 2100.0)
    assert costs["110M tournament"].device_hours == 4 * 2100 / 3600
    assert costs["all"].seconds == 1800.0 * len(STAGES)


def test_money_is_told_where_the_plan_says_a_rate(run: RunRecord, costs: dict[str, StageCost]) -> None:
    assert {cost.money for cost in costs.values()} == {None}
    priced = replace(run, plan={**run.plan, "runner": {"price_per_device_hour": 2.5}})
    assert stage_costs(priced)[-1].money == pytest.approx(2.5 * 10)


def test_tokens_are_those_that_models_read_or_learned_from(costs: dict[str, StageCost]) -> None:
    assert costs["text"].tokens is None
    assert costs["teacher score"].tokens == 64_000
    assert costs["94M screen"].tokens == 8 * 4 * 1000
    assert costs["110M tournament"].tokens == 2 * 4_000_000 + 2 * 1_000_000
    assert costs["110M distil"].tokens == 20_000_000


def test_what_an_earlier_run_has_screened_costs_this_one_nothing(run: RunRecord) -> None:
    candidates = run.candidates.copy()
    screened = candidates.index[(candidates["size"] == "94M") & candidates["screen_kl_nats"].notna()]
    candidates.loc[screened[:3], "round"] = 0
    costs = {cost.stage: cost for cost in stage_costs(replace(run, candidates=candidates))}
    assert costs["94M screen"].tokens == 5 * 4 * 1000


def test_training_counts_three_forward_passes_of_each_shape(run: RunRecord, costs: dict[str, StageCost]) -> None:
    flops = run.candidates.set_index(["size", "candidate"])["forward_flops_per_token"]
    last = run.trials[run.trials["size"] == "110M"].groupby("candidate")["tokens"].max()
    expected = 3 * sum(tokens * flops["110M", candidate] for candidate, tokens in last.items())
    assert costs["110M tournament"].flops == pytest.approx(expected)
    distil, tokens = costs["110M distil"], 20_000_000
    attention = 28 * 4 * 9 * 64 * 500  # scores and their values over 500 tokens that are attended to on average
    assert distil.flops == pytest.approx(3 * tokens * (2 * 108_855_360 + attention), rel=0.002)


def test_flops_of_the_teachers_stages_take_a_lineage(run: RunRecord, costs: dict[str, StageCost]) -> None:
    assert costs["teacher score"].flops == pytest.approx(64_000 * 2 * 134_515_008, rel=0.2)
    untold = {cost.stage: cost for cost in stage_costs(replace(run, lineages={}))}
    assert untold["teacher score"].flops is None


def test_a_run_that_has_finished_no_stage_has_no_costs(run: RunRecord) -> None:
    assert stage_costs(replace(run, stages=())) == []
