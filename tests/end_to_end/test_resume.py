import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(900)

NUM_RANDOM_MOMENTS = 10


@pytest.mark.slow
def test_a_run_that_was_killed_again_and_again_ends_as_if_nothing_had_happened(
    build: Any, uninterrupted: Any, finished: Callable[[Path], Any], tmp_path: Path
) -> None:
    moments = [("90k screen", 0.5), ("90k tournament", 0.6), ("90k distil", 0.7)]
    run = tmp_path / "run"
    codes = [build.kill(run, uninterrupted.moment(*moment)).code for moment in moments]
    assert -9 in codes, "no process was killed; all were faster than the uninterrupted one"
    done = finished(run).stages()
    told = build.finish(run)
    assert told.code == 0, told.err
    finished(run).assert_equals(uninterrupted)
    assert told.finished_before() == done


@pytest.mark.slow
def test_a_tournament_on_ray_that_was_killed_ends_as_if_nothing_had_happened(
    build: Any, uninterrupted: Any, finished: Callable[[Path], Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    uninterrupted.copy_without(["90k tournament", "study"], run)
    in_a_trial = uninterrupted.moment("90k tournament", 0.0, sign="trials/90k/*/checkpoints/*/checkpoint-*")
    assert build.kill(run, in_a_trial, "--set=runner=ray").code == -9
    assert not (run / "trials.parquet").exists()
    told = build.finish(run, "--set=runner=ray")
    assert told.code == 0, told.err
    assert "90k screen" in told.finished_before()
    finished(run).assert_equals(uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(NUM_RANDOM_MOMENTS))
def test_a_run_killed_at_any_moment_ends_as_if_nothing_had_happened(
    build: Any, uninterrupted: Any, finished: Callable[[Path], Any], tmp_path: Path, seed: int
) -> None:
    run, moment = tmp_path / "run", uninterrupted.moment_of_all(random.Random(seed).random())
    build.kill(run, moment)
    done = finished(run).stages()
    told = build.finish(run)
    assert told.code == 0, told.err
    finished(run).assert_equals(uninterrupted)
    assert told.finished_before() == done
