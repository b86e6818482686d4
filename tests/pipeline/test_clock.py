"""The time left that a run shows."""

import pytest

from minitron_nas.pipeline.clock import Clock, StageWork

RECORDED = {
    "teacher signal": (168.1, StageWork(5.418e12, 5.418e12)),
    "teacher evaluate": (476.6, StageWork(1.504e12, 3.302e12, 15.0)),
    "teacher score": (463.8, StageWork(4.697e12, 11.741e12)),
    "teacher prepare": (237.4, StageWork(12.702e12, 12.702e12)),
    "110M screen": (385.5, StageWork(10.040e12, 10.040e12)),
    "110M tournament": (714.7, StageWork(18.530e12, 18.530e12)),
    "110M distil": (1065.8, StageWork(32.456e12, 32.456e12)),
    "110M evaluate": (290.9, StageWork(1.238e12, 2.717e12, 15.0)),
}
"""Seconds and expected work of a demo, up to where it was stopped, on two cores without bfloat16 that had other work to
do as well. Finalists were not yet repaired in sequence then, and speed was not yet measured in turns."""


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


def test_a_recorded_run_is_foreseen_within_half_from_its_first_finished_stage_on(now: list[float]) -> None:
    clock = Clock()
    clock.expect({stage: work for stage, (_, work) in RECORDED.items()})
    total = sum(seconds for seconds, _ in RECORDED.values())
    for stage, (seconds, _) in list(RECORDED.items())[:-1]:
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
