import re

import pytest

from minitron_nas.evaluation.tasks import PRESETS, Task, expand


@pytest.mark.parametrize(
    ("written", "task"),
    [("arc_easy", Task("arc_easy")), ("arc_challenge@25", Task("arc_challenge", 25)), ("mbpp@0", Task("mbpp", 0))],
)
def test_a_task_is_a_name_with_or_without_examples(written: str, task: Task) -> None:
    assert Task.parse(written) == task


@pytest.mark.parametrize("written", ["", "mmlu@", "mmlu@few", "mmlu@-1", "@5", "two words", "mmlu@5@5"])
def test_what_is_no_task_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{written!r} is no task; write its name, and behind an @")):
        Task.parse(written)


def test_the_papers_list_has_the_papers_numbers_of_examples() -> None:
    found = {task.name: task.num_fewshot for task in map(Task.parse, PRESETS["paper"])}
    shots = {"winogrande": 5, "arc_challenge": 25, "mmlu": 5, "hellaswag": 10, "gsm8k": 5, "truthfulqa_mc2": 0}
    assert found == {**shots, "xlsum_english": 3, "mbpp": 0, "humaneval": 0}


def test_a_preset_stands_for_its_tasks_among_others() -> None:
    assert expand(["copa", "paper"]) == ("copa", *PRESETS["paper"])
    with pytest.raises(ValueError, match="winogrande asked for twice; name each task once"):
        expand(["paper", "winogrande"])
