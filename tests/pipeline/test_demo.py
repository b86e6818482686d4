from pathlib import Path
from typing import Any

import pytest

from minitron_nas.errors import PlanError
from minitron_nas.families.catalog import layout_of
from minitron_nas.models.checkpoint import open_checkpoint
from minitron_nas.pipeline import demo
from minitron_nas.pipeline.plan import FamilyPlan
from minitron_nas.space.axes import load_space
from minitron_nas.space.enumerate import enumerate_candidates


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch, trained_teacher: Path) -> list[FamilyPlan]:
    """The plans that a demo would carry out, with a small model in the place of SmolLM2."""
    plans: list[FamilyPlan] = []
    monkeypatch.setattr(demo, "demo_teacher", lambda out, progress: (open_checkpoint(trained_teacher), "owner/name"))
    monkeypatch.setattr(demo, "run_plan", lambda plan, out, display: plans.append(plan))
    return plans


def test_the_demo_builds_two_sizes_from_text_that_every_machine_has(planned: list[FamilyPlan], tmp_path: Path) -> None:
    demo.run_demo(tmp_path)
    (plan,) = planned
    assert (plan.teacher, [*map(str, plan.sizes)], plan.data) == ("owner/name", ["110M", "94M"], "embedded")
    assert {name: text.path for name, text in plan.evaluation.texts.items()} == {"benchmarks": "embedded-benchmarks"}
    assert (plan.baselines, plan.runner.kind) == (("depth_only",), "ray")


def test_the_demo_can_be_changed(planned: list[FamilyPlan], tmp_path: Path) -> None:
    demo.run_demo(tmp_path, ("distillation.tokens=1M", "runner=local"))
    assert (planned[0].distillation.tokens, planned[0].runner.kind) == (10**6, "local")


def test_the_demos_teacher_is_fetched_behind_our_own_display(
    planned: list[FamilyPlan], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging

    def fetch(out: Path, progress: Any) -> tuple[None, str]:
        assert not logging.is_progress_bar_enabled()
        return None, "owner/name"

    monkeypatch.setattr(demo, "demo_teacher", fetch)
    logging.enable_progress_bar()  # as it is in a new process
    demo.run_demo(tmp_path)
    assert capsys.readouterr().err.startswith("teacher: fetch and check the demo's ...\n")


def test_a_wrong_change_is_refused(planned: list[FamilyPlan], tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="unknown key 'tokens'"):
        demo.run_demo(tmp_path, ("tokens=1M",))


def test_each_size_of_the_demo_searches_a_large_pool(planned: list[FamilyPlan], tmp_path: Path) -> None:
    demo.run_demo(tmp_path)
    (plan,) = planned
    teacher, layout = load_space("smollm2-135m").source_architecture(), layout_of("llama")
    first = enumerate_candidates(plan.space, plan.sizes[0], teacher, layout).candidates
    assert len(first) >= 200
    for student in list(first)[::20]:  # whichever it is
        second = enumerate_candidates(plan.space, plan.sizes[1], student.architecture, layout).candidates
        assert len(second) > 3 * plan.search.max_screened
