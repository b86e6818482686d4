"""Work that is called with the same result here and on a cluster, and what comes back where it fails."""

import os
from pathlib import Path

import pytest

from minitron_nas.errors import CacheError, DiskSpaceError, MachineError, WorkerError
from minitron_nas.execution import workers as workers_module
from minitron_nas.execution.runner import Job, attempt
from minitron_nas.execution.settings import RunnerSettings
from minitron_nas.execution.workers import Workers

ON_CLUSTER = RunnerSettings(address="auto", cpus_per_trial=1, gpus_per_trial=0, max_worker_losses=1)


def counted(number, progress):
    """Work of three steps."""
    for step in range(3):
        progress(step + 1, 3)
    return 10 * number


def failing(error):
    raise error


@pytest.fixture
def here(tmp_path):
    return Workers(RunnerSettings(kind="local"), tmp_path)


@pytest.mark.parametrize(
    ("settings", "gpus", "is_here"),
    [
        ({"kind": "local"}, 8, True),
        ({}, 0, True),
        ({}, 1, True),
        ({}, 8, False),
        ({"address": "auto"}, 0, False),
        ({"kind": "local", "address": "auto"}, 8, True),
    ],
)
def test_work_stays_here_unless_a_cluster_is_named_or_there_are_several_gpus(
    tmp_path, monkeypatch, settings, gpus, is_here
):
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    assert Workers(RunnerSettings(**settings), tmp_path).here is is_here


@pytest.mark.parametrize(
    ("settings", "gpus", "is_here"),
    [
        ({}, 0, True),
        ({}, 1, True),
        ({}, 2, False),
        ({"cpus_per_trial": 8}, 0, True),
        ({"cpus_per_trial": 5}, 0, True),
        ({"cpus_per_trial": 4}, 0, False),
        ({"cpus_per_trial": 2}, 1, True),  # the GPU is one trial's
        ({"gpus_per_trial": 0.5}, 1, False),
        ({"gpus_per_trial": 0.5, "cpus_per_trial": 5}, 1, True),
        ({"gpus_per_trial": 0, "cpus_per_trial": 4}, 1, False),
        ({"kind": "local", "cpus_per_trial": 1}, 0, True),
        ({"address": "auto"}, 1, False),
    ],
)
def test_trials_stay_here_unless_several_fit_side_by_side(tmp_path, monkeypatch, settings, gpus, is_here):
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert Workers(RunnerSettings(**settings), tmp_path).trials_here is is_here


def test_work_that_is_done_here_tells_its_own_progress(here):
    told = []
    assert here.call(counted, lambda *pair: told.append(pair), number=4) == 40
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert here.room() == 1


def test_parts_that_are_done_one_after_the_other_tell_a_progress_that_never_falls(here):
    told = []
    parts = [{"number": number} for number in range(4)]
    assert here.share(counted, parts, lambda *pair: told.append(pair)) == [0, 10, 20, 30]
    assert told == sorted(told)
    assert told[-1] == (4000, 4000)


def test_work_that_tells_nothing_is_not_asked_to(here):
    assert here.call(os.path.join, a="one") == "one"
    assert here.share(os.path.join, [{"a": "one"}, {"a": "two"}]) == ["one", "two"]


def test_what_is_raised_here_is_passed_on_as_it_is(here):
    with pytest.raises(ZeroDivisionError, match="of mine"):
        here.call(failing, error=ZeroDivisionError("of mine"))


def outcome_of(error):
    """What a worker hands back of work that raises."""
    return attempt(workers_module._do, Job("0", {"function": failing, "arguments": {"error": error}, "told": None}))


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (CacheError("the shard is gone; make it again"), CacheError, "^the shard is gone; make it again$"),
        (DiskSpaceError("no room"), MachineError, "no room"),
        (OSError(28, "No space left on device", "/disk/shard"), MachineError, "/disk/shard"),
        (ValueError("a defect"), WorkerError, r"^work on the cluster ended by ValueError: a defect\nTraceback"),
        (MemoryError("8 GB"), WorkerError, r"MemoryError: 8 GB; it did not fit into memory: give a job more with"),
    ],
)
def test_what_a_worker_raises_comes_back_as_an_error_that_says_what_to_do(error, kind, message):
    with pytest.raises(kind, match=message):
        workers_module._returned(outcome_of(error))


def test_how_far_jobs_are_together_is_the_mean_of_their_shares(tmp_path, monkeypatch):
    monkeypatch.setattr(workers_module, "_TELLING_SECONDS", 0.0)
    files = [tmp_path / "0.json", tmp_path / "1.json"]
    workers_module._Teller(files[0])(3, 4)
    assert [workers_module._part(file) for file in files] == [0.75, 0.0]
    workers_module._Teller(files[1])(0, 0)
    assert workers_module._part(files[1]) == 0.0


def remote():
    """Work that goes to workers by value, because they cannot import this module."""

    def work(number, folder, progress):
        import os
        import time
        from pathlib import Path

        tries = Path(folder, f"{number}")
        with open(tries, "a") as file:
            file.write("x")
        if number == 1 and len(tries.read_text()) == 1:
            os._exit(1)
        for step in range(5):
            progress(step + 1, 5)
            time.sleep(0.4)
        return {"number": number, "process": os.getpid()}

    return work


@pytest.mark.slow
def test_a_cluster_does_parts_side_by_side_and_replaces_a_lost_worker(one_ray, tmp_path):
    told = []
    workers = Workers(ON_CLUSTER, tmp_path / "workers")
    assert workers.room() == 2
    parts = [{"number": number, "folder": str(tmp_path)} for number in range(3)]
    returned = workers.share(remote(), parts, lambda *pair: told.append(pair))
    assert [each["number"] for each in returned] == [0, 1, 2]
    assert os.getpid() not in {each["process"] for each in returned}
    assert (tmp_path / "1").read_text() == "xx"
    assert told == sorted(told)
    assert told[-1][1] == 3000 >= told[-1][0] > 0
    assert not Path(tmp_path / "workers" / "ray").exists()
