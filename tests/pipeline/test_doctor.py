"""What a machine can do, said before a plan needs it."""

import os
from pathlib import Path
from typing import Any

import pytest

from minitron_nas.errors import PlanError
from minitron_nas.pipeline import doctor
from minitron_nas.pipeline.doctor import Finding, examine
from minitron_nas.pipeline.plan import FamilyPlan, make_plan


def a_plan(**values: Any) -> FamilyPlan:
    return make_plan({"teacher": "owner/model", "sizes": ["1M"], "data": "text.txt", **values})


@pytest.fixture
def rehearsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what starts processes and compilers."""
    monkeypatch.setattr(doctor, "has_compiler", lambda: True)
    monkeypatch.setattr(doctor, "_rehearsal", lambda what, start, needed: Finding(what, False, needed, "no", "mend it"))


def found(plan: FamilyPlan | None = None) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine(plan)}


@pytest.mark.usefixtures("rehearsed")
def test_a_machine_on_which_the_tests_pass_has_what_every_run_needs() -> None:
    assert [finding.name for finding in found().values() if finding.needed and not finding.works] == []


@pytest.mark.usefixtures("rehearsed")
@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"runner": {"kind": "ray"}}, "ray"),
        ({"runner": {"kind": "local"}, "distillation": {"deepspeed": "zero-2"}}, "deepspeed"),
        ({"runner": {"kind": "local", "gpus_per_trial": 1}}, "GPUs"),
        ({"runner": {"kind": "local"}, "distillation": {"report_to": ["comet_ml"]}}, "training"),
    ],
)
def test_what_a_plan_needs_and_the_machine_lacks_is_told_with_what_mends_it(values: dict[str, Any], name: str) -> None:
    missing = [one for one in found(a_plan(**values)).values() if one.needed and not one.works]
    assert [one.name for one in missing] == [name]
    assert missing[0].remedy


@pytest.mark.usefixtures("rehearsed")
def test_what_no_plan_asks_for_is_told_and_not_needed() -> None:
    plain = found(a_plan(runner={"kind": "local"}))
    assert not any(plain[name].needed for name in ("GPUs", "lm-eval", "torch.compile", "ray", "deepspeed"))


@pytest.mark.usefixtures("rehearsed")
def test_a_task_that_cannot_be_done_is_told_in_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(plan: FamilyPlan) -> None:
        raise PlanError("lm-eval knows no task arc_esy")

    monkeypatch.setattr(doctor, "check_tasks", refuse)
    told = found(a_plan(runner={"kind": "local"}, evaluation={"tasks": ["arc_esy"]}))["lm-eval"]
    assert (told.works, told.needed, told.told) == (False, True, "lm-eval knows no task arc_esy")


@pytest.mark.usefixtures("rehearsed")
def test_packages_that_are_older_than_asked_for_or_gone_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"pandas": "1.5.0", "optuna": None}
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: versions[name] if name in versions else real(name))
    told = found()["packages"]
    assert not told.works
    assert "pandas" in told.told
    assert "(1.5.0)" in told.told
    assert "optuna" in told.told
    assert "(not installed)" in told.told
    assert "torch" not in told.told


@pytest.mark.usefixtures("rehearsed")
def test_a_cache_that_cannot_be_written_to_is_told_with_the_variable_that_moves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MINITRON_NAS_CACHE", str(tmp_path / "file" / "cache"))
    told = found()["cache of teachers"]
    assert (told.works, told.needed) == (False, True)
    assert "MINITRON_NAS_CACHE" in str(told.remedy)


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("import sys; sys.exit('no such library')", "no such library"),
        ("raise ValueError('the port is taken')", "ValueError: the port is taken"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "exit code -11 without a word"),
        ("import time; time.sleep(60)", "did not answer in 3 s"),
    ],
)
def test_a_rehearsal_that_fails_crashes_or_hangs_is_a_finding_in_one_line(
    monkeypatch: pytest.MonkeyPatch, script: str, told: str
) -> None:
    monkeypatch.setattr(doctor, "_REHEARSAL_SECONDS", 3)
    finding = doctor._rehearsal("ray", ("-S", "-c", script), needed=True)
    assert (finding.works, finding.told) == (False, told)
    assert finding.remedy


@pytest.mark.slow
@pytest.mark.parametrize(("what", "start"), [("ray", ()), ("deepspeed", doctor._TORCHRUN)])
def test_this_machine_does_what_is_rehearsed(what: str, start: tuple[str, ...]) -> None:
    finding = doctor._rehearsal(what, start, needed=True)
    assert finding.works, finding.told
    assert str(os.getpid()) not in finding.told
