"""What a plan would do and cost."""

from typing import Any

import pytest

from minitron_nas.architecture.costs import forward_flops_per_token
from minitron_nas.architecture.spec import Architecture
from minitron_nas.distillation.training.schedule import Schedule
from minitron_nas.families.catalog import layout_of
from minitron_nas.models.outline import Outline
from minitron_nas.pipeline.devices import Devices
from minitron_nas.pipeline.forecast import Forecast, step_flops
from minitron_nas.pipeline.plan import FamilyPlan, make_plan, with_overrides
from minitron_nas.pipeline.workload import TokenCounts
from minitron_nas.space.axes import load_space
from minitron_nas.space.enumerate import enumerate_candidates

PAPER = Schedule(num_steps=19_921, batch_sequences=1152, sequence_length=4096)
NEMOTRON = load_space("minitron-15b-to-8b").source_architecture()
ALONE = Devices("cpu", 1, 10**10)
CLUSTER = Devices("a device", 128, 80 * 10**9, are_here=False)


def forecast_of(plan: FamilyPlan, shape: Architecture, tokens: int, devices: Devices = ALONE) -> Forecast:
    teacher = Outline.of_shape("a shape", shape, layout_of(shape.model_type))
    pools = {size: enumerate_candidates(plan.space, size, shape, teacher.layout) for size in plan.descending_sizes}
    return Forecast.of(plan, teacher, pools, TokenCounts.planned(plan, tokens), devices, 4e14)


def minitron(size: str, *overrides: str) -> FamilyPlan:
    given = {"teacher": "x", "sizes": [size], "data": "x", "space": f"minitron-15b-to-{size.lower()}"}
    settings = ("text.sequence_length=4096", "distillation={tokens: 94B, teacher_signal: online}", "search.tokens=1.8B")
    return make_plan(with_overrides(given, (*settings, *overrides)))


@pytest.mark.parametrize(
    ("sizes", "published"),
    [
        ({}, 4.4e17),
        ({"hidden_size": 4096, "intermediate_size": 16384}, 2.5e17),
        ({"hidden_size": 3072, "intermediate_size": 9216, "num_attention_heads": 24}, 1.2e17),
    ],
    ids=["15B", "8B", "4B"],
)
def test_a_step_of_the_papers_models_takes_the_published_flops(sizes: dict[str, int], published: float) -> None:
    shape = NEMOTRON.reshaped(sizes)
    forward = forward_flops_per_token(shape, layout_of("nemotron"), PAPER.sequence_length)
    assert float(f"{step_flops(forward, PAPER):.1e}") == published


def test_the_papers_plan_has_their_steps_candidates_and_tokens() -> None:
    found = forecast_of(minitron("8B"), NEMOTRON, 94 * 10**9)
    (size,) = found.sizes
    assert (found.steps, found.batch_sequences, found.sequence_length) == (19_921, 1152, 4096)
    assert float(f"{found.step_flops:.1e}") == 4.4e17
    assert (size.num_shapes, size.num_screened, size.num_finalists) == (15, 15, 15)
    assert size.rung_tokens == (0, 450_000_000, 900_000_000, 1_800_000_000)
    # Of fifteen that are compared untrained four are trained, then two, and then one is left.
    assert size.trial_tokens == 4 * 450_000_000 + 2 * 450_000_000
    assert size.student_tokens == 3 * 19_921 * 1152 * 4096
    assert size.step_flops == pytest.approx(2.5e17, rel=0.1)  # by the mean of its shapes, most with fewer heads


def test_learning_rates_are_looked_for_within_a_tenth_of_the_tokens() -> None:
    fixed, auto = (
        forecast_of(minitron("8B", f"distillation.learning_rate={rate}"), NEMOTRON, 94 * 10**9)
        for rate in (1e-4, "auto")
    )
    assert fixed.sizes[0].probe_tokens == 0
    assert auto.sizes[0].probe_tokens == 4 * 50 * 288 * 4096 <= 94 * 10**9 / 10
    assert "8B rate" in {stage.name for stage in auto.stages if stage.size == "8B"}
    assert auto.sizes[0].flops > fixed.sizes[0].flops
    smaller = minitron("8B", "distillation.learning_rate=auto", "search.num_finalists=1")
    assert forecast_of(smaller, NEMOTRON, 94 * 10**9).disk.training >= 4 * 12 * 8 * 10**9


def test_stages_sum_up_to_sizes_and_to_the_whole() -> None:
    plan = make_plan(
        {"teacher": "x", "sizes": ["110M", "94M"], "data": "x", "space": "smollm2-135m", "kd_teacher": "previous"}
    )
    found = forecast_of(plan, plan.space.source_architecture(), 10**8)
    first = [stage.name for stage in found.stages if stage.size is None]
    assert first == ["teacher signal", "teacher evaluate"]
    assert [stage.name for stage in found.stages if stage.size == "94M"][:3] == [
        "110M signal",
        "110M score",
        "110M prepare",
    ]
    alone = sum(stage.flops for stage in found.stages if stage.size is None)
    assert found.flops == pytest.approx(alone + sum(size.flops for size in found.sizes))
    assert found.hours == pytest.approx(sum(stage.hours for stage in found.stages))
    distil = next(stage for stage in found.stages if stage.name == "94M distil")
    assert distil.hours == pytest.approx(distil.flops / 4e14 / 3600)


def test_memory_is_that_of_the_training_and_of_what_runs_beside_it() -> None:
    plan = minitron("8B", "runner.gpus_per_trial=4", "distillation.gradient_checkpointing=true")
    plain, sharded = (
        forecast_of(p, NEMOTRON, 94 * 10**9, CLUSTER).sizes[0]
        for p in (
            plan,
            plan.model_copy(update={"distillation": plan.distillation.model_copy(update={"deepspeed": "zero-3"})}),
        )
    )
    assert plain.trial_bytes == plain.distillation_bytes
    assert plain.trial_bytes > 16 * 7.8e9 + 2 * 15.6e9
    assert 20 * 7.8e9 / 4 + 2 * 15.6e9 / 4 < sharded.trial_bytes < 80e9
    assert sharded.distillation_bytes < sharded.trial_bytes


def test_it_is_told_in_lines_and_as_plain_values(tiny_settings: dict[str, Any]) -> None:
    found = forecast_of(minitron("8B"), NEMOTRON, 94 * 10**9)
    lines = list(found.lines())
    assert lines[0] == ("teacher  x: 15,628,775,424 parameters; a training step of this shape would take 4.4e17 FLOPs")
    assert lines[1].startswith("tokens   94,000,000,000 for each student: 19,921 steps of 1,152 sequences of 4,096; ")
    told = {line.split()[0]: line.split()[1:] for line in lines if line}
    assert told["total"][0] == f"{found.flops:.1e}".replace("e+", "e")
    assert told["8B"][:3] == ["15", "15", "15"]
    assert lines[-1].startswith("disk     ")
    values = found.to_dict()
    assert values["sizes"][0]["num_shapes"] == 15
    assert values["disk_bytes"] == sum(values["disk"].values())
    assert values["flops"] == found.flops
