"""A run that is repeated, changed, moved or broken off: only what it made itself counts, and nothing is lost."""

import errno
import functools
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
import torch
import yaml
from lm_eval.tasks import TaskManager

from minitron_nas.distillation.training import writer
from minitron_nas.errors import MachineError, RunFolderError, TrialError
from minitron_nas.evaluation import lm_eval
from minitron_nas.pipeline import build as module
from minitron_nas.pipeline.build import build_family, run_plan
from minitron_nas.pipeline.display import Quiet
from minitron_nas.pipeline.family import Family
from minitron_nas.pipeline.plan import load_plan
from minitron_nas.reporting.html import write_report
from minitron_nas.search import screen as screen_module
from minitron_nas.storage.run_folder import RunFolder
from minitron_nas.testing import rewrite_tensors

TASKS = Path(__file__).parent.parent / "evaluation" / "tasks"


def stages(run: Path) -> list[str]:
    return [json.loads(line)["stage"] for line in (run / "ledger.jsonl").read_text().splitlines()]


@pytest.fixture
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(lm_eval, "TaskManager", functools.partial(TaskManager, include_defaults=False))
    monkeypatch.chdir(TASKS)  # the task names its data relative to here


@pytest.mark.slow
@pytest.mark.usefixtures("_offline")
def test_what_is_measured_may_change_back_and_forth_and_the_tables_say_what_the_plan_says(
    build: Callable[..., Family], tmp_path: Path
) -> None:
    def benchmarks(limit: int | None, *more: str) -> set[tuple[str, int | None, int]]:
        asked = () if limit is None else ("evaluation.tasks=[tiny_sums]", f"evaluation.limit={limit}")
        run = build(tmp_path / "run", f"evaluation.include_path={TASKS}", *asked, *more)
        assert len(run.evaluations) == 2
        path = run.path / "benchmarks.parquet"
        if not path.exists():
            return set()
        rows = pd.read_parquet(path)
        return {(row.model, row.limit, len(rows)) for row in rows.itertuples()}

    ten = {("teacher", 2, 4), ("90k", 2, 4)}
    assert benchmarks(2) == ten
    assert benchmarks(4) == {("teacher", 4, 4), ("90k", 4, 4)}
    assert benchmarks(2) == ten
    measured = stages(tmp_path / "run")
    assert benchmarks(2) == ten
    assert stages(tmp_path / "run") == measured, "nothing is measured twice"
    assert measured.count("90k differences") == 3, "one for each time that the tasks were others"
    assert measured.count("90k evaluate") == 1, "other tasks are no reason to measure speed again"
    benchmarked = pd.read_parquet(tmp_path / "run" / "benchmarks.parquet").set_index(["model", "metric"])["value"]
    told = pd.read_parquet(tmp_path / "run" / "differences.parquet")
    assert [(row.size, row.model, row.other, row.num_documents) for row in told.itertuples(index=False)] == [
        ("90k", "90k", "teacher", 2)
    ] * 2
    for row in told.itertuples():
        assert row.difference == benchmarked["90k", row.metric] - benchmarked["teacher", row.metric]
    assert benchmarks(None) == set()
    assert not (tmp_path / "run" / "differences.parquet").exists()
    assert not (tmp_path / "run" / "documents.parquet").exists()
    assert benchmarks(2) == ten


@pytest.mark.parametrize(
    "tables",
    [
        ["evaluations", "trials", "candidates", "curves"],
        *(pytest.param([table], marks=pytest.mark.slow) for table in ("evaluations", "trials", "candidates", "curves")),
    ],
    ids=" and ".join,
)
def test_tables_that_were_deleted_are_whole_again_with_all_sizes(
    family: Family,
    trained_teacher: Path,
    text_file: Path,
    tiny_settings: dict[str, Any],
    tmp_path: Path,
    tables: list[str],
) -> None:
    run = tmp_path / "run"
    shutil.copytree(family.path, run)
    for table in tables:
        (run / f"{table}.parquet").unlink()
    again = build_family(trained_teacher, ["90k", "60k"], text_file, run, display=Quiet(), **tiny_settings)
    for table in tables:
        assert getattr(again, table).equals(getattr(family, table)), table
    assert [member.name for member in again.members] == ["90k", "60k"]
    assert stages(run) == stages(family.path)


def test_a_screening_that_is_lost_is_held_again_and_the_tournament_stands(
    repeat: Callable[..., Family], finished: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "screened" / "90k.json").unlink()
    again = repeat(run)
    assert stages(run) == [*stages(finished), "90k screen"]
    assert again.trials.equals(Family(finished).trials)


@pytest.mark.slow
def test_a_plan_file_with_relative_paths_goes_on_from_any_folder(
    repeat: Callable[..., Family],
    finished: Path,
    trained_teacher: Path,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    plan = yaml.safe_load((run / "plan.yaml").read_text())["plan"]
    monkeypatch.chdir(trained_teacher.parent)
    plan |= {"teacher": trained_teacher.name, "data": os.path.relpath(text_file)}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    run_plan(load_plan(tmp_path / "plan.yaml"), run, display=Quiet())
    monkeypatch.chdir(tmp_path)
    run_plan(load_plan(run / "plan.yaml"), run, display=Quiet())
    repeat(run)
    assert stages(run) == stages(finished)


def test_a_run_that_is_not_finished_says_which_stage_is_missing(
    build: Callable[..., Family], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minitron_nas.pipeline.build._build", lambda *stages: None)
    family = build(tmp_path / "run")
    with pytest.raises(RunFolderError, match=r"is not finished: its stage 'teacher evaluate' is missing; repeat the"):
        family.teacher  # noqa: B018
    assert family.members == []


def test_a_finished_run_that_is_repeated_reads_no_weights(
    repeat: Callable[..., Family], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")

    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("weights were read")

    for place in ("pipeline.build.check_values", "models.checkpoint.check_values", "models.loading.load_stock"):
        monkeypatch.setattr(f"minitron_nas.{place}", refuse)
    assert repeat(run).members[0].name == "90k"


def test_when_no_candidate_has_a_finite_kl_the_search_ends_with_the_reason_and_nothing_is_kept(
    build: Callable[..., Family], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        nothing = {"kl_nats": float("nan"), "loss_nats": float("nan")}
        patch.setattr("minitron_nas.search.screen.screen_candidate", lambda **_: nothing)
        with pytest.raises(TrialError, match="none of the 2 candidates of 90k that were screened has a finite KL"):
            build(tmp_path / "run")
        assert "90k screen" not in stages(tmp_path / "run")


def test_a_disk_that_is_full_for_a_moment_changes_no_winner(
    repeat: Callable[..., Family],
    finished: Path,
    begun: Callable[[Path, str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, undisturbed = begun(tmp_path / "run", "90k tournament"), Family(finished)
    mark, calls = writer.mark_whole, []

    def full_once(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        mark(*arguments)

    monkeypatch.setattr(writer, "mark_whole", full_once)
    with pytest.raises(
        MachineError, match=r"^90k tournament: trial .*checkpoints/.*: No space left .*and the same"
    ) as told:
        repeat(run)
    assert f"{len(stages(run))} finished stages" in str(told.value)
    assert f"are kept in {run}" in str(told.value)
    assert "90k tournament" not in stages(run)
    again = repeat(run)
    assert set(again.trials["status"]) == {"completed"}
    times = ["seconds", "began_seconds"]
    assert again.trials.drop(columns=times).equals(undisturbed.trials.drop(columns=times))
    assert again.members[0].kl_nats == undisturbed.members[0].kl_nats


def test_a_trial_that_really_fails_is_told_and_the_others_go_on(
    repeat: Callable[..., Family],
    begun: Callable[[Path, str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measure, calls, told = screen_module.screen_candidate, [], []

    class Listening(Quiet):
        def note(self, text: str) -> None:
            told.append(text)

    def failing_once(**arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 1:
            raise ValueError("a defect")
        return measure(**arguments)

    monkeypatch.setattr(screen_module, "screen_candidate", failing_once)
    run = repeat(begun(tmp_path / "run", "90k screen"), display=Listening())
    (failed,) = [line for line in told if line.startswith("90k screen")]
    assert re.fullmatch(r"90k screen: 1 of 2 failed \(.*: ValueError: a defect\); they took no further part", failed)
    assert "rung" not in told[0]
    assert "a defect" in run.report.read_text().split("<nav")[0]


@pytest.mark.slow
def test_a_finished_student_has_its_card_though_the_next_size_fails(
    build: Callable[..., Family], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_shapes = module.find_shapes

    def failing(run: Any, hop: Any) -> Any:
        if hop.label == "60k":
            raise TrialError("all trials failed")
        return find_shapes(run, hop)

    monkeypatch.setattr(module, "find_shapes", failing)
    with pytest.raises(TrialError):
        build(tmp_path / "run", sizes=["90k", "60k"])
    card = (tmp_path / "run" / "students" / "90k" / "README.md").read_text()
    assert "90k" in card
    assert "perplexity" in card


def test_a_text_that_has_changed_is_noticed_as_a_teacher_is(
    build: Callable[..., Family], text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minitron_nas.pipeline.build._build", lambda *stages: None)
    text = tmp_path / "text.jsonl"
    shutil.copy2(text_file, text)
    build(tmp_path / "run", data=text)
    build(tmp_path / "run", data=text)
    lines = text.read_text().splitlines(keepends=True)
    text.write_text("".join([*lines[1:], lines[0]]))
    with pytest.raises(RunFolderError, match=r"text \(size, .*\) was '\w{16}' and is now '\w{16}'; go back"):
        build(tmp_path / "run", data=text)


def test_a_teacher_whose_name_on_the_hub_has_moved_is_noticed(
    build: Callable[..., Family], trained_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    class Listening(Quiet):
        def note(self, text: str) -> None:
            told.append(text)

    def stand_for(commit: str) -> Path:
        """Let the hub's local cache, which is all there is without a network, know a commit by the name main."""
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / "main").write_text(commit)
        return repository / "snapshots" / commit

    repository, run = tmp_path / "hub" / "models--owner--tiny", tmp_path / "run"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("minitron_nas.pipeline.build._build", lambda *stages: None)
    first, same, other = "1" * 40, "2" * 40, "3" * 40
    for commit in (first, same):
        shutil.copytree(trained_teacher, stand_for(commit))
        assert not [line for line in told if line.startswith("teacher: ")]
        build(run, teacher="owner/tiny", display=Listening())
    (moved,) = [line for line in told if line.startswith("teacher: ")]
    begun_with = f"teacher: this run was begun with commit {first} of owner/tiny"
    assert moved == f"{begun_with}, which is at {same} now; the weights are the same"
    folder = shutil.copytree(trained_teacher, stand_for(other))
    rewrite_tensors(folder, {"model.norm.weight": torch.full((48,), 1.5)})
    with pytest.raises(RunFolderError, match=rf"is now '\w{{16}}' \(commit {first} of the hub, now {other}\); go back"):
        build(run, teacher="owner/tiny")


def test_a_folder_of_an_earlier_layout_is_refused_and_still_reported(
    build: Callable[..., Family], family: Family, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(family.path, run)
    plan = yaml.safe_load((run / "plan.yaml").read_text())
    del plan["layout"], plan["data"]
    (run / "plan.yaml").write_text(yaml.safe_dump(plan))
    with pytest.raises(RunFolderError, match="was laid out by another version of minitron_nas"):
        build(run)
    assert write_report(run).stat().st_size > 1_000_000


def test_a_teacher_whose_values_were_looked_at_is_looked_at_once(
    build: Callable[..., Family], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []
    monkeypatch.setattr("minitron_nas.pipeline.build.check_values", lambda *_: looked.append(1))
    monkeypatch.setattr("minitron_nas.pipeline.build._build", lambda *stages: None)
    for _ in range(2):
        build(tmp_path / "run")
    assert looked == [1]


def test_what_a_killed_process_left_for_its_own_use_is_gone_with_the_next_and_never_counted(
    repeat: Callable[..., Family], finished: Path, tmp_path: Path
) -> None:
    folder = RunFolder(shutil.copytree(finished, tmp_path / "run"))
    written = folder.written_bytes()
    (folder.work / "tmp123").mkdir(parents=True)
    (folder.work / "tmp123" / "moments").write_bytes(b"28 GB")
    assert folder.written_bytes() == written
    repeat(folder.path)
    assert not folder.work.exists()
    assert not [path for path in folder.path.rglob("*") if path.name.startswith("tmp")]
