import contextlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(900)

NUM_RANDOM_MOMENTS = 10
TASKS = Path(__file__).parent.parent / "evaluation" / "tasks"
EVERYTHING = (
    "--size=70k",
    "--set=correct={tokens: 2k, batch_sequences: 4}",
    "--set=distillation.tokens=11k",
    "--set=distillation.batch_sequences=1",
    "--set=distillation.micro_batch_sequences=1",
    "--set=distillation.learning_rate=auto",
    "--set=distillation.checkpoint_minutes=0.01",
    "--set=evaluation.tasks=[tiny_sums]",
    f"--set=evaluation.include_path={TASKS}",
)
"""A second size that is cut from the first, a corrected teacher, a learning rate that is looked for, and tasks."""
BESIDE = (
    "teacher correct",
    "teacher benchmark",
    "90k rate",
    "90k benchmark",
    "90k differences",
    "90k score",
    "90k prepare",
    "70k screen",
    "70k tournament",
    "70k rate",
    "70k distil",
    "70k evaluate",
    "70k benchmark",
)
"""The stages of such a run that the run of one size has not, or whose model is a student there."""


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
    uninterrupted.copy_before("90k tournament", run)
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


@pytest.fixture(scope="module")
def everything(build: Any, finished: Callable[[Path], Any], made_once: Callable[..., Path]) -> Iterator[Any]:
    """A run of two sizes with all that may be asked for, which nothing interrupted."""

    def fill(folder: Path) -> None:
        told = build.finish(folder / "run", *EVERYTHING)
        assert told.code == 0, told.err

    with contextlib.chdir(TASKS):  # the task names its data relative to here
        yield finished(made_once("everything", fill) / "run")


@pytest.mark.slow
@pytest.mark.parametrize("stage", BESIDE)
def test_a_run_of_everything_killed_in_a_stage_ends_as_if_nothing_had_happened(
    build: Any, everything: Any, finished: Callable[[Path], Any], tmp_path: Path, stage: str
) -> None:
    run, before = tmp_path / "run", everything.stages()[: everything.stages().index(stage)]
    everything.copy_before(stage, run)
    killed = build.kill(run, everything.moment(stage, 0.5), *EVERYTHING)
    assert killed.finished_before() == before
    done = finished(run).stages()
    told = build.finish(run, *EVERYTHING)
    assert told.code == 0, told.err
    assert told.finished_before() == done
    finished(run).assert_equals(everything)


@pytest.mark.slow
def test_a_run_killed_while_it_times_shapes_times_them_again(
    build: Any, uninterrupted: Any, finished: Callable[[Path], Any], tmp_path: Path
) -> None:
    run, settings = tmp_path / "run", ("--set=search.constraints=[decode_speedup >= 0.01]",)
    has_begun = lambda: "latency: " in run.with_name("run.err").read_text()  # noqa: E731
    killed = build.kill_when(run, has_begun, *settings)
    assert killed.code == -9
    assert finished(run).stages() == []
    told = build.finish(run, *settings)
    assert told.code == 0, told.err
    assert finished(run).stages() == ["latency", *uninterrupted.stages()]
    assert finished(run).weights() == uninterrupted.weights()
    assert not (run / "work").exists()
