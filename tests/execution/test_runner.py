import json
import time
import weakref

import pytest
import torch

from minitron_nas.errors import MachineError, MinitronNasError, TrialError
from minitron_nas.execution import runner
from minitron_nas.execution.choice import make_runner
from minitron_nas.execution.local import LocalRunner
from minitron_nas.execution.runner import Job, Jobs, Outcome, attempt, last_line, lost
from minitron_nas.execution.settings import RunnerSettings
from minitron_nas.progress import silent
from minitron_nas.storage.sealed import unseal


def run_jobs(runner, function, jobs, results, max_failures, progress=silent):
    return Jobs(runner, results, max_failures).run(function, jobs, progress)


class Recorder:
    """A local runner that remembers the keys it was given, and runs them in another order."""

    def __init__(self):
        self.keys = []

    def execute(self, function, jobs, on_outcome):
        self.keys.append([job.key for job in jobs])
        LocalRunner().execute(function, list(reversed(jobs)), on_outcome)


def square(x):
    return {"square": x * x}


def only_even(x):
    if x % 2:
        raise ValueError(f"{x} is odd")
    return square(x)


def jobs(*numbers):
    return [Job(f"job-{number}", {"x": number}) for number in numbers]


def values(outcomes):
    return {key: outcome.value for key, outcome in outcomes.items()}


def test_outcomes_come_in_the_jobs_order_whatever_the_runners(tmp_path):
    outcomes = run_jobs(Recorder(), square, jobs(3, 1, 2), tmp_path, 0)
    assert list(values(outcomes).items()) == [
        ("job-3", {"square": 9}), ("job-1", {"square": 1}), ("job-2", {"square": 4}),
    ]  # fmt: skip


def test_a_repeated_call_runs_only_what_is_missing(tmp_path):
    recorder = Recorder()
    first = run_jobs(recorder, square, jobs(1, 2), tmp_path, 0)
    second = run_jobs(recorder, square, jobs(2, 3, 1), tmp_path, 0)
    third = run_jobs(recorder, square, jobs(1, 2, 3), tmp_path, 0)
    assert recorder.keys == [["job-1", "job-2"], ["job-3"]]
    assert {key: second[key] for key in first} == first
    assert third == second


def test_results_of_other_jobs_are_left_out(tmp_path):
    run_jobs(Recorder(), square, jobs(1, 2, 3), tmp_path, 0)
    assert list(run_jobs(Recorder(), square, jobs(2), tmp_path, 0)) == ["job-2"]


def test_no_jobs_have_no_outcomes_and_need_no_runner(tmp_path):
    recorder = Recorder()
    assert run_jobs(recorder, square, [], tmp_path, 0) == {}
    assert recorder.keys == []


def test_a_job_that_did_not_complete_is_tried_again(tmp_path):
    def at_first(x):
        if x == 1:
            raise ValueError("a defect")
        if x == 2:
            raise torch.OutOfMemoryError("no 80 GB")
        return square(x)

    recorder = Recorder()
    outcomes = run_jobs(recorder, at_first, jobs(1, 2, 3), tmp_path, 1)
    assert [outcome.status for outcome in outcomes.values()] == ["failed", "infeasible", "completed"]
    assert [file.name for file in tmp_path.iterdir()] == ["job-3.json"]
    again = run_jobs(recorder, square, jobs(1, 2, 3), tmp_path, 1)
    assert recorder.keys[1] == ["job-1", "job-2"]
    assert [outcome.status for outcome in again.values()] == ["completed", "completed", "completed"]


def test_a_result_is_one_readable_file(tmp_path):
    outcome = run_jobs(LocalRunner(), square, jobs(3), tmp_path, 0)["job-3"]
    assert unseal((tmp_path / "job-3.json").read_text()) == {
        "key": "job-3",
        "status": "completed",
        "value": {"square": 9},
        "error": None,
        "seconds": outcome.seconds,
        "began": outcome.began,
    }
    assert 0 <= time.time() - outcome.began < 60


def test_every_result_is_on_disk_before_the_next_job_begins(tmp_path):
    def count(x):
        return {"files": len(list(tmp_path.glob("*.json")))}

    outcomes = run_jobs(LocalRunner(), count, jobs(0, 1, 2), tmp_path, 0)
    assert [outcome.value["files"] for outcome in outcomes.values()] == [0, 1, 2]


def test_progress_counts_jobs_from_those_that_are_done_already(tmp_path):
    run_jobs(LocalRunner(), square, jobs(1, 2), tmp_path, 0)
    told = []
    run_jobs(LocalRunner(), square, jobs(1, 2, 3, 4), tmp_path, 0, lambda *pair: told.append(pair))
    assert told == [(2, 4), (3, 4), (4, 4)]


def test_who_watches_is_told_what_has_ended_and_how_many_run(tmp_path):
    told = []

    def watch(tally):
        told.append((len(tally.keys), tally.running, [outcome.status for outcome in tally.ended.values()]))

    Jobs(LocalRunner(), tmp_path, 1, watch).run(only_even, jobs(2, 3))
    assert told == [(2, 1, []), (2, 1, ["completed"]), (2, 0, ["completed", "failed"])]
    told.clear()
    Jobs(LocalRunner(), tmp_path, 1, watch).run(only_even, jobs(2))
    assert told == [(1, 0, ["completed"])]


def test_as_many_failures_as_allowed_stop_nothing(tmp_path):
    outcomes = run_jobs(LocalRunner(), only_even, jobs(1, 2, 3, 4), tmp_path, 2)
    assert [outcome.status for outcome in outcomes.values()] == ["failed", "completed", "failed", "completed"]


def test_one_more_failure_stops_the_search_at_once_with_the_traceback(tmp_path):
    ran = []

    def failing(x):
        ran.append(x)
        return only_even(x)

    with pytest.raises(TrialError) as caught:
        run_jobs(LocalRunner(), failing, jobs(2, 1, 3, 5, 4), tmp_path, 1)
    first, *rest = str(caught.value).splitlines()
    assert first == (
        "2 of 5 trials failed, more than runner.max_failures=1 allows or all of them; the last one: "
        "ValueError: 3 is odd"
    )
    assert rest[0] == "Traceback (most recent call last):"
    assert "in only_even" in "".join(rest)
    assert isinstance(caught.value, MinitronNasError)
    assert ran == [2, 1, 3]


def test_if_all_fail_the_search_stops_even_where_more_failures_are_allowed(tmp_path):
    with pytest.raises(TrialError, match="2 of 2 trials failed"):
        run_jobs(LocalRunner(), only_even, jobs(1, 3), tmp_path, 9)


def test_out_of_memory_is_no_failure(tmp_path):
    def hungry(x):
        raise MemoryError

    outcomes = run_jobs(LocalRunner(), hungry, jobs(1, 2, 3), tmp_path, 0)
    assert {outcome.status for outcome in outcomes.values()} == {"infeasible"}


def test_what_a_job_returned_its_time_and_its_key_are_kept():
    outcome = attempt(square, Job("key", {"x": 4}))
    assert (outcome.key, outcome.status, outcome.value, outcome.error) == ("key", "completed", {"square": 16}, None)
    assert 0 <= outcome.seconds < 5


def test_an_exception_becomes_a_failed_outcome_with_its_traceback():
    outcome = attempt(only_even, Job("key", {"x": 3}))
    assert (outcome.status, outcome.value) == ("failed", None)
    assert "in only_even" in outcome.error
    assert last_line(outcome.error) == "ValueError: 3 is odd"


class OutOfMemoryError(Exception):
    """A library's own, such as Ray's, known by its name."""


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "infeasible"),
        (MemoryError(), "infeasible"),
        (OutOfMemoryError("node"), "infeasible"),
        (RuntimeError("CUDA error: out of memory"), "infeasible"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."), "infeasible"),
        (OSError(12, "Cannot allocate memory"), "infeasible"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "failed"),
        (OSError(28, "No space left on device"), "machine"),
        (OSError(122, "Disk quota exceeded"), "machine"),
        (PermissionError(13, "Permission denied", "tokens"), "machine"),
        (OSError("Can't load the model"), "failed"),
        (ValueError("out of memory"), "failed"),
    ],
    ids=str,
)
def test_only_a_lack_of_memory_makes_a_shape_infeasible(error, status):
    def breaking():
        raise error

    assert attempt(breaking, Job("key", {})).status == status


def test_a_lack_of_memory_is_recognised_in_the_words_of_this_machine():
    assert attempt(lambda: {"shape": torch.empty(10**15).shape}, Job("key", {})).status == "infeasible"


def test_a_kill_is_not_turned_into_an_outcome():
    def killed():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attempt(killed, Job("key", {}))


def test_memory_is_released_after_every_job_even_a_failed_one(monkeypatch):
    story = []
    monkeypatch.setattr(runner, "release_memory", lambda: story.append("released"))

    def note(x):
        story.append(x)
        return {"inverse": 1 / x}

    for x in (0, 2):
        attempt(note, Job("key", {"x": x}))
    assert story == [0, "released", 2, "released"]


def test_what_a_failed_job_held_is_gone_when_memory_is_released(monkeypatch):
    class Model:
        pass

    held = []
    monkeypatch.setattr(runner, "release_memory", lambda: held.append(held[0]() is not None))

    def broken():
        model = Model()
        held.append(weakref.ref(model))
        raise ValueError("a defect")

    attempt(broken, Job("key", {}))
    assert held[1:] == [False]


@pytest.mark.parametrize(
    ("error", "line"), [(None, None), ("", None), (" \n", None), ("a\nb: c\n\n", "b: c"), ("alone", "alone")]
)
def test_the_last_line_of_a_traceback_names_the_error(error, line):
    assert last_line(error) == line


def test_the_settings_choose_the_runner(tmp_path):
    assert isinstance(make_runner(RunnerSettings(kind="local"), tmp_path), LocalRunner)
    assert type(make_runner(RunnerSettings(), tmp_path)).__name__ == "RayTuneRunner"
    assert list(tmp_path.iterdir()) == []


def test_an_outcome_survives_json():
    outcome = attempt(only_even, Job("key", {"x": 3}))
    assert Outcome(**json.loads(json.dumps({name: getattr(outcome, name) for name in Outcome.__slots__}))) == outcome


def test_a_result_that_lies_under_the_name_of_another_counts_as_none(tmp_path):
    jobs = [Job("two", {"x": 2}), Job("four", {"x": 4})]
    expected = run_jobs(LocalRunner(), square, jobs, tmp_path, 0)
    (tmp_path / "two.json").write_bytes((tmp_path / "four.json").read_bytes())
    recorder = Recorder()
    again = run_jobs(recorder, square, jobs, tmp_path, 0)
    assert recorder.keys == [["two"]]
    assert {key: outcome.value for key, outcome in again.items()} == {k: o.value for k, o in expected.items()}


def full(x):
    if x == 2:
        raise OSError(28, "No space left on device", "/disk/checkpoint")
    return square(x)


def test_a_full_disk_stops_all_trials_counts_as_nobodys_failure_and_leaves_the_rest_to_the_next_call(tmp_path):
    three, ran = jobs(1, 2, 3), []

    def noting(x):
        ran.append(x)
        return full(x)

    with pytest.raises(MachineError, match=r"^trial job-2: /disk/checkpoint: No space left on device.*repeat the"):
        run_jobs(LocalRunner(), noting, three, tmp_path, 9)
    assert ran == [1, 2]
    assert [file.name for file in tmp_path.iterdir()] == ["job-1.json"]
    recorder = Recorder()
    again = run_jobs(recorder, square, three, tmp_path, 0)
    assert recorder.keys == [["job-2", "job-3"]]
    assert values(again) == values(run_jobs(LocalRunner(), square, three, tmp_path / "undisturbed", 0))


def test_a_full_disk_where_results_are_kept_stops_them_too(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minitron_nas.storage.atomic.os.replace", refuse)
    with pytest.raises(MachineError, match=r"job-1.json: No space left on device"):
        run_jobs(LocalRunner(), square, jobs(1, 2), tmp_path, 9)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("said", "status", "error"),
    [
        ("The actor died unexpectedly", "failed", "the worker was lost: The actor died unexpectedly"),
        ("killed due to the node running low on memory", "infeasible", "the worker was lost: killed due to the node"),
        ("x\n  OSError: [Errno 28] No space left on device\ny", "machine", "OSError: [Errno 28] No space left"),
        ("ray.exceptions.OutOfDiskError: Local disk is full", "machine", "ray.exceptions.OutOfDiskError: Local disk"),
        ("OSError: [Errno 5] Input/output error: '/lost'", "machine", "OSError: [Errno 5] Input/output error"),
    ],
)
def test_what_is_known_of_a_lost_worker_decides_what_became_of_its_job(said, status, error):
    outcome = lost("key", said, began=1e9)
    assert (outcome.seconds, outcome.began) == (0.0, 1e9)
    assert (outcome.status, outcome.value) == (status, None)
    assert outcome.error.startswith(error)
