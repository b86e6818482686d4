import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = pytest.mark.timeout(900)


@pytest.mark.slow  # the outcomes of each job are held by tests/execution/test_ray_tune.py
@pytest.mark.parametrize("stage", ["90k screen", "90k tournament"])
def test_trials_on_ray_give_what_trials_in_one_process_give(
    build: Any, uninterrupted: Any, finished: Callable[[Path], Any], tmp_path: Path, stage: str
) -> None:
    uninterrupted.copy_before(stage, tmp_path / "run")
    told = build.finish(tmp_path / "run", "--set=runner=ray")
    assert told.code == 0, told.err
    again = finished(tmp_path / "run")
    assert stage not in told.finished_before()
    again.assert_equals(uninterrupted)


TRIAL = "ray::ImplicitFunc"


def end_of_ray(name: str, run: Path) -> None:
    """Kill a process of the Ray that a build into a folder has started, once a trial works there."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if "build" in words and str(run) in words:
                started = {each.name(): each for each in process.children(recursive=True)}
                trials = [each for each in started if each.startswith(TRIAL)]
                if name in started and trials:
                    started[name].kill()
                    return
        time.sleep(0.05)
    pytest.fail("no trial began")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "lost", "seconds"),
    [
        ("raylet", r"its raylet, process \d+, is gone", 20),
        ("gcs_server", r"its head at \S+ has not answered for 45 ", 70),
    ],
)
def test_a_command_whose_ray_is_killed_under_it_ends_in_one_line_and_goes_on_when_repeated(
    build: Any,
    uninterrupted: Any,
    finished: Callable[[Path], Any],
    tmp_path: Path,
    name: str,
    lost: str,
    seconds: int,
) -> None:
    run, killed = tmp_path / "run", list[float]()

    def kill() -> None:
        end_of_ray(name, run)
        killed.append(time.monotonic())

    told = build.survive(run, uninterrupted.moment("90k tournament", 0.0), kill, "--set=runner=ray")
    assert told.code == 2, told.err
    assert time.monotonic() - killed[0] < seconds
    assert "Traceback" not in told.err
    (line,) = [line for line in told.err.splitlines() if line.startswith("minitron-nas: ")]
    assert re.match(f"minitron-nas: Ray has ended under this command: {lost}.*; the same command goes on ", line)
    again = build.finish(run, "--set=runner=ray")
    assert again.code == 0, again.err
    finished(run).assert_equals(uninterrupted)
