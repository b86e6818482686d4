"""Signals and kills of a real build in its stages, here, on Ray and in two processes: how it ends, and what is left."""

from collections.abc import Callable
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGKILL, SIGTERM, Signals
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STAGES = ("text", "teacher signal", "teacher score", "90k screen", "90k tournament", "90k distil", "90k evaluate")
WHERE = {
    "here": (),
    "ray": ("--set=runner=ray",),
    "two processes": ("--set=runner.num_processes=2",),
    "ray, two processes": ("--set=runner={kind: ray, num_processes: 2, cpus_per_trial: 0.5}",),
}
MATRIX = [
    *(((stage), "here", signals) for stage in STAGES for signals in ([SIGINT], [SIGTERM], [SIGHUP], [SIGINT, SIGINT])),
    *(
        (stage, where, signals)
        for stage, where in (
            ("90k screen", "ray"),
            ("90k tournament", "ray"),
            ("90k distil", "two processes"),
            ("90k distil", "ray, two processes"),
        )
        for signals in ([SIGINT], [SIGTERM], [SIGHUP], [SIGINT, SIGINT], [SIGTERM, SIGTERM], [SIGKILL])
    ),
]


@pytest.mark.parametrize(
    ("stage", "where", "signals"),
    MATRIX,
    ids=lambda value: "+".join(v.name for v in value) if isinstance(value, list) else value,
)
def test_a_build_that_is_stopped_says_what_goes_on_leaves_nobody_and_goes_on(
    build: Any,
    uninterrupted: Any,
    finished: Callable[[Path], Any],
    tmp_path: Path,
    stage: str,
    where: str,
    signals: list[Signals],
) -> None:
    run = tmp_path / "run"
    stopped = build.stop(run, uninterrupted.moment(stage, 0.3), signals, *WHERE[where])
    assert stopped.outlived == []
    told = stopped.told
    if signals == [SIGKILL]:
        assert told.code == -9
    elif told.code:  # else it was faster
        assert told.code in {128 + signum for signum in signals}
        (line,) = [line for line in told.err.splitlines() if line.startswith("minitron-nas: ")]
        assert line.startswith(f"minitron-nas: stopped by {Signals(told.code - 128).name}; the same command goes on ")
        assert "Traceback" not in told.err
    again = build.finish(run, *WHERE[where])
    assert again.code == 0, again.err
    if "two" not in where:
        finished(run).assert_equals(uninterrupted)
