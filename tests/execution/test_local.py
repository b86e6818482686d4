import pytest

from minitron_nas.execution.local import LocalRunner
from minitron_nas.execution.runner import Job


def executed(function, jobs):
    outcomes = []
    LocalRunner().execute(function, jobs, outcomes.append)
    return outcomes


def test_jobs_run_here_one_after_the_other_in_their_order():
    ran = []

    def note(x):
        ran.append(x)
        return {}

    executed(note, [Job(key, {"x": key}) for key in "cab"])
    assert ran == ["c", "a", "b"]


def test_each_outcome_is_handed_over_before_the_next_job_begins():
    story = []

    def note(x):
        story.append(f"run {x}")
        return {}

    jobs = [Job(key, {"x": key}) for key in "ab"]
    LocalRunner().execute(note, jobs, lambda outcome: story.append(f"done {outcome.key}"))
    assert story == ["run a", "done a", "run b", "done b"]


def test_a_job_that_fails_does_not_stop_the_next():
    outcomes = executed(lambda x: {"inverse": 1 / x}, [Job("zero", {"x": 0}), Job("two", {"x": 2})])
    assert [(outcome.key, outcome.status, outcome.value) for outcome in outcomes] == [
        ("zero", "failed", None),
        ("two", "completed", {"inverse": 0.5}),
    ]


def test_a_receiver_that_refuses_ends_the_run():
    ran = []

    def refuse(outcome):
        raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        LocalRunner().execute(lambda x: ran.append(x) or {}, [Job(key, {"x": key}) for key in "ab"], refuse)
    assert ran == ["a"]
