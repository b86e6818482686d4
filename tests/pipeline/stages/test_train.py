"""The stage that trains a student, in a run."""

import json
import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from minitron_nas.errors import WorkerError
from minitron_nas.execution import workers
from minitron_nas.execution.settings import RunnerSettings
from minitron_nas.execution.workers import Workers
from minitron_nas.pipeline.family import Family
from minitron_nas.pipeline.stages import side_by_side, train
from minitron_nas.progress import silent
from minitron_nas.reporting.cost import stage_costs
from minitron_nas.reporting.run_record import read_run
from minitron_nas.search import start
from minitron_nas.storage.ledger import Ledger


@pytest.fixture
def repaired(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shapes that were repaired layer after layer, as it happens."""
    shapes, repair = list[str](), start.refit_in_sequence

    def remembered(prepared: Any, target: Any, *others: Any) -> Any:
        shapes.append(target.id)
        return repair(prepared, target, *others)

    monkeypatch.setattr(start, "refit_in_sequence", remembered)
    return shapes


def test_a_student_takes_the_start_of_the_trial_that_chose_it(
    begun: Callable[..., Path], repeat: Callable[..., Family], finished: Path, tmp_path: Path, repaired: list[str]
) -> None:
    run = begun(tmp_path / "run", "90k tournament")
    repeat(run)
    assert sorted(repaired) == sorted({*Family(finished).trials["candidate"]})
    assert len(repaired) == 2
    assert Family(run).evaluations.equals(Family(finished).evaluations)


@pytest.mark.parametrize("kept", [True, False])
def test_a_student_whose_training_was_killed_keeps_its_start_unless_that_has_changed(
    begun: Callable[..., Path],
    repeat: Callable[..., Family],
    finished: Path,
    tmp_path: Path,
    repaired: list[str],
    monkeypatch: pytest.MonkeyPatch,
    kept: bool,
) -> None:
    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    run = begun(tmp_path / "run", "90k distil")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "run_training", killed)
        repeat(run)
    (weights,) = run.glob("checkpoints/90k-starts/*/*/model.safetensors")
    if not kept:
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x07")
    repeat(run)
    assert len(repaired) == (1 if kept else 2)
    assert Family(run).evaluations.equals(Family(finished).evaluations)


def test_the_bar_of_a_student_that_is_repaired_first_is_filled_by_its_training_alone(
    begun: Callable[..., Path], repeat: Callable[..., Family], tmp_path: Path, told: Any
) -> None:
    run = begun(tmp_path / "run", "90k distil")
    repeat(run, display=told)
    fractions = told.fractions["90k distil"]
    assert fractions == sorted(fractions)
    assert fractions.count(1.0) == 2  # after the last step, and after the last validation
    assert told.standings[0].endswith("of the repair of what it starts with")


BASELINES = "baselines=[random_weights]"
MEMBERS = {"90k": "students/90k", "90k-random-weights": "baselines/90k-random-weights"}


@pytest.fixture(scope="module")
def one_after_another(tmp_path_factory: pytest.TempPathFactory, build: Callable[..., Family]) -> Path:
    """A run whose student and baseline were trained one after the other."""
    return build(tmp_path_factory.mktemp("run") / "run", BASELINES).path


@pytest.fixture
def untrained(one_after_another: Path, tmp_path: Path) -> Path:
    """The same run before its members were trained."""
    run = tmp_path / "run"
    shutil.copytree(one_after_another, run, ignore=shutil.ignore_patterns("students", "baselines"))
    kinds, lines = ("distil", "evaluate"), (run / "ledger.jsonl").read_text().splitlines(keepends=True)
    gone = {f"{name} {kind}" for name in MEMBERS for kind in kinds} | {"study"}
    (run / "ledger.jsonl").write_text("".join(line for line in lines if json.loads(line)["stage"] not in gone))
    return run


class Cluster:
    """A cluster that is this process."""

    def __init__(self, patch: pytest.MonkeyPatch, num_jobs: int) -> None:
        self.trained: list[list[str]] = []
        patch.setattr(Workers, "here", False)
        patch.setattr(Workers, "room", lambda workers: num_jobs)
        patch.setattr(Workers, "num_gpus", lambda workers: 0)
        patch.setattr(Workers, "held", lambda workers: nullcontext())
        patch.setattr(Workers, "_on_cluster", self.work)

    def work(self, function: Any, parts: Any, progress: Any) -> list[Any]:
        assert parts  # Ray Tune fails where there are none
        if function is side_by_side.carry_out:
            self.trained.append([part["job"].checkpoints.name for part in parts])
        if progress is None:
            return [function(**part) for part in parts]
        tellers = workers._tellers(progress, len(parts))
        return [function(**part, progress=teller) for part, teller in zip(parts, tellers, strict=True)]


def weights(run: Path) -> dict[str, bytes]:
    return {name: (run / folder / "model.safetensors").read_bytes() for name, folder in MEMBERS.items()}


def stages_of(run: Path) -> list[str]:
    return [json.loads(line)["stage"] for line in (run / "ledger.jsonl").read_text().splitlines()]


def test_members_that_are_trained_side_by_side_are_those_that_are_trained_one_after_another(
    one_after_another: Path, untrained: Path, build: Callable[..., Family], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(monkeypatch, 2)
    found = build(untrained, BASELINES)
    assert cluster.trained == [["90k", "90k-random-weights"]]
    assert weights(untrained) == weights(one_after_another)
    assert found.evaluations.equals(Family(one_after_another).evaluations)
    assert stages_of(untrained) == stages_of(one_after_another)


def test_each_member_that_is_trained_beside_others_is_told_of_and_costs_what_it_took(
    untrained: Path, build: Callable[..., Family], monkeypatch: pytest.MonkeyPatch, told: Any
) -> None:
    Cluster(monkeypatch, 2)
    build(untrained, BASELINES, display=told)
    both = r"90k 100%, best KL \S+ nats after \S+ tokens; 90k-random-weights [1-9]\d*%, best KL "
    assert any(re.match(both, line) for line in told.standings)
    for stage in ("90k distil", "90k-random-weights distil"):
        assert told.fractions[stage] == sorted(told.fractions[stage])
    entries = {entry.stage: entry for entry in Ledger(untrained / "ledger.jsonl").entries()}
    shared, costs = entries["90k distil"], {cost.stage: cost.seconds for cost in stage_costs(read_run(untrained))}
    (other,) = shared.of_others
    assert other == "90k-random-weights distil"
    assert 0 < shared.of_others[other] < shared.seconds
    assert costs[other] == entries[other].seconds + shared.of_others[other]
    assert costs["90k distil"] == shared.seconds - shared.of_others[other]


def test_members_are_trained_one_after_another_where_there_is_room_for_one(
    one_after_another: Path, untrained: Path, build: Callable[..., Family], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(monkeypatch, 1)
    build(untrained, BASELINES)
    assert cluster.trained == []
    assert weights(untrained) == weights(one_after_another)


def test_a_member_that_fails_stops_no_other_and_is_named_in_its_own_stage(
    one_after_another: Path, untrained: Path, build: Callable[..., Family], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, run_training, tried = Cluster(monkeypatch, 2), train.run_training, list[str]()

    def failing(job: Any, *arguments: Any) -> Any:
        tried.append(job.checkpoints.name)
        if job.checkpoints.name == "90k":
            raise ZeroDivisionError("of mine")
        return run_training(job, *arguments)

    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError, match="of mine"):
        patch.setattr(side_by_side, "run_training", failing)
        patch.setattr(train, "run_training", failing)
        build(untrained, BASELINES)
    assert tried == ["90k", "90k-random-weights", "90k"]
    build(untrained, BASELINES)
    assert cluster.trained == [["90k", "90k-random-weights"]]
    assert weights(untrained) == weights(one_after_another)


def test_members_whose_workers_were_lost_for_good_are_told_of_in_one_line_each(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def lost(*arguments: Any) -> None:
        raise WorkerError("work on the cluster ended by a loss\nFailure # 1\nFailure # 2")

    monkeypatch.setattr(Workers, "share", lost)
    settings = RunnerSettings(kind="local")
    jobs: Any = [SimpleNamespace(is_done=is_done) for is_done in (False, True)]
    ended = side_by_side.Trainers(Workers(settings, tmp_path), settings).train(jobs, silent)
    assert [end.error for end in ended] == ["work on the cluster ended by a loss", None]
    assert [end.share for end in ended] == [0.5, 0.5]


def test_a_disk_that_fails_ends_all_trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device", "/disk/weights")

    monkeypatch.setattr(side_by_side, "run_training", full)
    with pytest.raises(OSError, match="No space left"):
        side_by_side.carry_out(None, None, silent)  # type: ignore[arg-type]


def test_a_kill_leaves_what_was_trained_and_the_ledger_names_what_is_finished(
    one_after_another: Path, untrained: Path, build: Callable[..., Family], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, exported, export = Cluster(monkeypatch, 2), list[str](), train.export

    def killed(job: Any, *arguments: Any) -> None:
        if job.checkpoints.name == "90k-random-weights":
            raise KeyboardInterrupt
        run_training(job, *arguments)

    def counted(training: Path, **arguments: Any) -> Any:
        exported.append(training.parent.parent.name)
        if len(exported) == 2:
            raise KeyboardInterrupt
        return export(training, **arguments)

    run_training = side_by_side.run_training
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(side_by_side, "run_training", killed)
        build(untrained, BASELINES)
    assert "90k distil" not in stages_of(untrained)
    monkeypatch.setattr(train, "export", counted)
    with pytest.raises(KeyboardInterrupt):
        build(untrained, BASELINES)
    assert "90k distil" in stages_of(untrained)
    assert "90k-random-weights distil" not in stages_of(untrained)
    build(untrained, BASELINES)
    assert cluster.trained == [["90k", "90k-random-weights"]]
    assert exported == ["90k", "90k-random-weights", "90k-random-weights"]
    assert weights(untrained) == weights(one_after_another)


def test_a_kill_after_all_were_trained_trains_none_again(
    one_after_another: Path, untrained: Path, build: Callable[..., Family], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(**arguments: Any) -> Any:
        raise KeyboardInterrupt

    cluster = Cluster(monkeypatch, 2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "export", killed)
        build(untrained, BASELINES)
    build(untrained, BASELINES)
    assert cluster.trained == [["90k", "90k-random-weights"]]
    assert weights(untrained) == weights(one_after_another)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray warns of its own settings
def test_two_workers_of_a_cluster_train_members_side_by_side(
    one_ray: object,
    one_after_another: Path,
    untrained: Path,
    build: Callable[..., Family],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained, train_jobs = list[list[str]](), side_by_side.Trainers.train

    def watched(trainers: side_by_side.Trainers, jobs: Any, progress: Any) -> list[side_by_side.Ended]:
        ended = train_jobs(trainers, jobs, progress)
        trained.append([job.checkpoints.name for job in jobs if job.is_done])
        return ended

    monkeypatch.setattr(side_by_side.Trainers, "train", watched)
    build(untrained, BASELINES, "runner={kind: ray, address: auto, cpus_per_trial: 1, gpus_per_trial: 0}")
    assert trained == [["90k", "90k-random-weights"]]
    assert weights(untrained) == weights(one_after_another)
