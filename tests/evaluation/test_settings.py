import pytest

from minitron_nas.errors import PlanError
from minitron_nas.pipeline.plan import FamilyPlan, deciding, make_plan, with_overrides


def plan(*overrides: str) -> FamilyPlan:
    return make_plan(with_overrides({"teacher": "x", "sizes": ["4B"], "data": "x"}, overrides))


def test_a_held_out_text_is_a_path_or_says_what_of_it_is_read() -> None:
    texts = plan(
        "evaluation.texts={wiki: a.parquet, code: {path: b.jsonl, column: body, split: test}}"
    ).evaluation.texts
    assert (texts["wiki"].path, texts["wiki"].column) == ("a.parquet", None)
    assert (texts["code"].path, texts["code"].column, texts["code"].split) == ("b.jsonl", "body", "test")
    assert plan("evaluation.texts.wiki=a.parquet").evaluation.texts["wiki"] == texts["wiki"]


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("{data: a.txt}", "'data' is what the plan's own text is called"),
        ("{A/b: a.txt}", "evaluation.texts"),
        ("{wiki: {pth: a.txt}}", "unknown key .*pth.*did you mean 'path'"),
        ("{wiki: 3}", "evaluation.texts.wiki"),
        ("a.txt", "evaluation.texts"),
    ],
)
def test_a_held_out_text_that_cannot_be_is_refused(written: str, told: str) -> None:
    with pytest.raises(PlanError, match=told):
        plan(f"evaluation.texts={written}")


def test_held_out_texts_decide_what_comes_out_and_tasks_do_not() -> None:
    least = deciding(plan().to_dict())
    assert deciding(plan("evaluation.tasks=[copa]").to_dict()) == least
    assert deciding(plan("evaluation.texts.wiki=a.txt").to_dict()) != least


def test_tasks_are_told_by_name_and_presets_by_what_they_stand_for() -> None:
    assert plan("evaluation.tasks=[copa, arc_challenge@25]").evaluation.tasks == ("copa", "arc_challenge@25")
    assert plan("evaluation.tasks=paper").evaluation.tasks[0] == "winogrande@5"
    with pytest.raises(PlanError, match=r"evaluation\.tasks\.0: 'mmlu@five' is no task; write its name"):
        plan("evaluation.tasks=[mmlu@five]")
    with pytest.raises(PlanError, match=r"evaluation\.tasks: copa asked for twice"):
        plan("evaluation.tasks=[copa, copa@5]")


def test_offline_tasks_need_a_folder() -> None:
    assert plan("evaluation={tasks: offline, include_path: tasks}").evaluation.tasks == ("offline",)
    with pytest.raises(PlanError, match=r"tasks=offline takes all tasks of your own folder, and none is named"):
        plan("evaluation.tasks=offline")
