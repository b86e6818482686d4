"""When work is given up: by the speed of what went before, never before a floor."""

import signal
import threading
import time

import pytest

from minitron_nas.execution.deadline import Deadline, OverdueError
from minitron_nas.execution.local import LocalRunner
from minitron_nas.execution.runner import Job, Jobs
from minitron_nas.execution.settings import RunnerSettings


@pytest.mark.parametrize(
    ("factor", "floor", "ended", "seconds"),
    [
        (10.0, 600.0, [], None),
        (10.0, 600.0, [3.0, 70.0, 5.0], 700.0),
        (10.0, 600.0, [3.0], 600.0),
        (1.0, 0.0, [3.0, 2.0], 3.0),
        (None, 600.0, [3.0], None),
    ],
)
def test_the_slowest_that_has_ended_says_how_long_the_others_may_take(factor, floor, ended, seconds):
    deadline = Deadline(factor, floor)
    for each in ended:
        deadline.learn(each)
    assert deadline.seconds == seconds
    assert not deadline.is_over(seconds or 1e9)
    assert deadline.is_over((seconds or 0) + 1) is (seconds is not None)


def test_the_settings_say_minutes():
    assert Deadline.of(RunnerSettings(timeout_factor=2, timeout_minutes=0.5), 3.0).seconds == 30.0
    assert Deadline.of(RunnerSettings(), 3.0).seconds == 600.0
    assert Deadline.of(RunnerSettings(timeout_factor=None), 3.0).seconds is None


def hang(kind):
    if kind == "sleeps":
        time.sleep(60)
    if kind == "waits":
        threading.Event().wait(60)
    while kind == "loops":
        pass
    return {"kind": kind}


def test_a_job_that_hangs_is_given_up_and_the_others_go_on(tmp_path):
    runner = LocalRunner(RunnerSettings(kind="local", timeout_factor=1, timeout_minutes=0.2 / 60))
    kinds = ("ends", "sleeps", "waits", "loops", "ends-too")
    jobs = [Job(kind, {"kind": kind}) for kind in kinds]
    before = signal.getsignal(signal.SIGALRM)
    outcomes = Jobs(runner, tmp_path, 0).run(hang, jobs)
    assert [outcome.status for outcome in outcomes.values()] == [
        "completed", "timeout", "timeout", "timeout", "completed"
    ]  # fmt: skip
    assert outcomes["loops"].error.startswith("timeout: no result after 0 s, while the slowest before took 0 s (runner")
    assert signal.getsignal(signal.SIGALRM) is before
    assert sorted(file.stem for file in tmp_path.iterdir()) == ["ends", "ends-too"]


def test_what_an_earlier_call_has_measured_counts(tmp_path):
    runner = LocalRunner(RunnerSettings(kind="local", timeout_factor=1, timeout_minutes=0.2 / 60))
    Jobs(runner, tmp_path, 0).run(hang, [Job("ends", {"kind": "ends"})])
    outcomes = Jobs(runner, tmp_path, 0).run(hang, [Job(kind, {"kind": kind}) for kind in ("ends", "sleeps")])
    assert outcomes["sleeps"].status == "timeout"


def test_an_alarm_of_the_callers_is_still_to_come():
    signal.setitimer(signal.ITIMER_REAL, 1000)
    try:
        with Deadline(1.0, 0.0, 500.0).enforced():
            assert 400 < signal.getitimer(signal.ITIMER_REAL)[0] <= 500
        assert 900 < signal.getitimer(signal.ITIMER_REAL)[0] <= 1000
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def test_another_thread_has_no_deadline():
    raised = []

    def work():
        try:
            with Deadline(1.0, 0.0, 0.05).enforced():
                time.sleep(0.2)
        except OverdueError as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert raised == []
