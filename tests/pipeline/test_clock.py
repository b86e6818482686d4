"""The time left that a run shows."""

import pytest

from minitron_nas.families.catalog import layout_of
from minitron_nas.models.outline import Outline
from minitron_nas.pipeline.clock import Clock, StageWork
from minitron_nas.pipeline.demo import DEMO_SETTINGS
from minitron_nas.pipeline.devices import Devices
from minitron_nas.pipeline.plan import make_plan
from minitron_nas.pipeline.workload import TokenCounts, estimate_workload
from minitron_nas.space.enumerate import enumerate_candidates

RECORDED_SECONDS = {
    "teacher signal": 168.1,
    "teacher evaluate": 476.6,
    "teacher score": 463.8,
    "teacher prepare": 237.4,
    "110M screen": 385.5,
    "110M tournament": 714.7,
    "110M distil": 1065.8,
    "110M evaluate": 290.9,
}
"""Of the demo, up to where it was stopped, on two cores without bfloat16 that had other work to do as well."""


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds since the start, under the test's control."""
    seconds = [0.0]
    monkeypatch.setattr("minitron_nas.pipeline.clock.time.monotonic", lambda: seconds[0])
    return seconds


def work_of(flops: float, seconds: float = 0.0) -> StageWork:
    return StageWork(flops, flops, seconds)


def run(clock: Clock, now: list[float], stage: str, seconds: float) -> None:
    clock.begin(stage)
    now[0] += seconds
    clock.finish(stage)


def demo_workload() -> dict[str, StageWork]:
    plan = make_plan({"teacher": "x", **DEMO_SETTINGS})
    shape = plan.space.source_architecture()
    teacher = Outline.of_shape("SmolLM2-135M", shape, layout_of(shape.model_type))
    pools = {size: enumerate_candidates(plan.space, size, shape, teacher.layout) for size in plan.descending_sizes}
    return estimate_workload(plan, teacher, pools, TokenCounts.planned(plan, 20_000), Devices("cpu", 1, 10**10))


def test_a_recorded_run_is_foreseen_within_half_from_its_first_finished_stage_on(now: list[float]) -> None:
    work = demo_workload()
    clock = Clock()
    clock.expect({stage: work[stage] for stage in RECORDED_SECONDS})
    total = sum(RECORDED_SECONDS.values())
    for stage, seconds in list(RECORDED_SECONDS.items())[:-1]:
        run(clock, now, stage, seconds)
        left = clock.left()
        assert left is not None
        assert 1 / 1.5 <= left / (total - now[0]) <= 1.5, stage


def test_nothing_is_said_before_anything_is_known(now: list[float]) -> None:
    clock = Clock()
    assert clock.left() is None
    clock.expect({"first": work_of(100), "second": work_of(200)})
    clock.begin("first")
    now[0] += 10
    clock.advance(0.05)
    assert clock.left() is None
    clock.advance(0.5)
    assert clock.left() == pytest.approx(10 + 40)


def test_what_takes_its_time_on_any_device_is_not_taken_for_work(now: list[float]) -> None:
    clock = Clock()
    clock.expect({"a evaluate": work_of(100, 5), "b train": work_of(1000), "c evaluate": work_of(50, 5)})
    run(clock, now, "a evaluate", 15)
    assert clock.left() == pytest.approx(100 + 10)


def test_a_kind_that_takes_longer_than_its_work_says_does_so_again_and_no_other_does(now: list[float]) -> None:
    clock = Clock()
    clock.expect({"a signal": work_of(100), "a score": work_of(10), "b train": work_of(100), "b score": work_of(20)})
    run(clock, now, "a signal", 10)
    run(clock, now, "a score", 5)
    assert clock.left() == pytest.approx(10 + 10)


def test_what_an_earlier_process_has_done_says_nothing_of_our_pace(now: list[float]) -> None:
    clock = Clock()
    clock.expect({"before": work_of(700), "first": work_of(100), "second": work_of(200)})
    clock.finish("before", by_us=False)
    run(clock, now, "first", 10)
    assert clock.left() == pytest.approx(20)


def test_at_the_end_nothing_is_left(now: list[float]) -> None:
    clock = Clock()
    clock.expect({"first": work_of(100)})
    run(clock, now, "first", 10)
    assert clock.left() is None


def test_a_stage_that_nobody_expected_changes_nothing(now: list[float]) -> None:
    clock = Clock()
    clock.expect({"first": work_of(100), "second": work_of(200)})
    run(clock, now, "text", 1000)
    assert clock.left() is None
    run(clock, now, "first", 10)
    assert clock.left() == pytest.approx(20)
