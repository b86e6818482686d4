import pytest

from minitron_nas.errors import PlanError
from minitron_nas.importance.settings import DepthSettings
from minitron_nas.pipeline.plan import make_plan, with_overrides

LEAST = {"teacher": "x", "sizes": [1], "data": "x"}


def depth(*overrides):
    return make_plan(with_overrides(LEAST, [f"importance.depth.{each}" for each in overrides])).importance.depth


def test_the_default_needs_no_run_of_its_own():
    assert depth() == DepthSettings(criterion="block_importance", mode="layers")
    assert not depth().needs_model
    assert not depth().needs_text


@pytest.mark.parametrize(
    ("overrides", "needs_text"),
    [
        (("criterion=kl",), True),
        (("mode=block",), True),
        (("criterion=loss", "mode=greedy"), True),
        (("criterion=task", "task=winogrande", "limit=100"), False),
    ],
)
def test_other_criteria_and_modes_run_the_model_and_all_but_a_task_read_text(overrides, needs_text):
    assert depth(*overrides).needs_model
    assert depth(*overrides).needs_text == needs_text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("criterion=task",),
            r"importance\.depth: criterion is 'task' but no task is given; name one, such as task=wino",
        ),
        (
            ("task=winogrande",),
            r"task given, but criterion is 'block_importance'; set criterion=task or leave out task",
        ),
        (
            ("criterion=kl", "task=a", "limit=5"),
            r"task, limit given, but criterion is 'kl'; set criterion=task or leave",
        ),
        (("criterion=taylor",), r"importance\.depth\.criterion: Input should be 'block_importance', 'loss', 'kl'"),
        (("num_sequences=0",), r"importance\.depth\.num_sequences: Input should be greater than or equal to 1"),
    ],
)
def test_what_does_not_go_together_is_refused(overrides, message):
    with pytest.raises(PlanError, match=message):
        depth(*overrides)
