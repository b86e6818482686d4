"""Several processes of one training on Ray."""

import os
import signal
from contextlib import suppress
from types import SimpleNamespace

import pytest

from minitron_nas.errors import MachineError, PlanError, PreemptedError
from minitron_nas.execution.settings import RunnerSettings

SETTINGS = RunnerSettings(cpus_per_trial=0.5, max_worker_losses=1)


@pytest.fixture
def fitted(monkeypatch):
    """What TorchTrainer is told, instead of workers."""
    from minitron_nas.execution import ray_train

    told = SimpleNamespace(during=lambda: None)

    class FakeTrainer:
        def __init__(self, function, scaling_config, run_config):
            told.function, told.scaling, told.run = function, scaling_config, run_config

        def fit(self):
            told.during()
            told.returned = told.function()

    monkeypatch.setattr(ray_train, "_Trainer", FakeTrainer)
    told.gpus = 0
    nodes = lambda: [{"CPU": 16.0, "GPU": float(told.gpus)}]  # noqa: E731
    monkeypatch.setattr(ray_train.ray_session, "_nodes", nodes)
    return told


def train(folder, function=lambda _: 0, on_wait=lambda: None):
    from minitron_nas.execution.ray_train import RayTrain

    RayTrain(SETTINGS, folder / "ray").run(function, "job.json", 2, on_wait)


@pytest.mark.parametrize("gpus", [0, 8])
def test_workers_take_what_the_settings_say_and_a_gpu_where_there_are_any(fitted, tmp_path, gpus):
    fitted.gpus, calls = gpus, []
    train(tmp_path, lambda argument: calls.append(argument) or 0)
    assert (fitted.scaling.num_workers, fitted.scaling.use_gpu) == (2, gpus > 0)
    assert fitted.scaling.resources_per_worker["CPU"] == 0.5
    assert fitted.run.failure_config.max_failures == 1
    assert (calls, fitted.returned) == (["job.json"], None)


def test_more_workers_than_the_cluster_ever_has_room_for_are_refused(fitted, tmp_path):
    fitted.gpus = 1
    message = (
        "a training of 2 processes asks for 0.5 CPUs and 1 GPUs for each, and the cluster has room for 1; lower runner"
    )
    with pytest.raises(PlanError, match=message):
        train(tmp_path)


def test_a_worker_that_fails_ends_the_others(fitted, tmp_path):
    with pytest.raises(RuntimeError, match="the worker ended with 2"):
        train(tmp_path, lambda argument: 2)


def test_a_worker_that_said_why_it_fails_is_not_tried_again_until_the_next_call(fitted, tmp_path):
    calls = []
    failing = lambda argument: calls.append(argument) or 2  # noqa: E731
    for _ in range(2):
        with pytest.raises(RuntimeError, match="the worker ended with 2"):
            train(tmp_path, failing)
        with pytest.raises(RuntimeError, match="the worker ended with 2"):
            fitted.function()  # as Ray Train does after a loss
    assert calls == ["job.json", "job.json"]


@pytest.mark.parametrize("code", [None, 2])
def test_ray_is_quoted_only_where_no_worker_has_said_why_it_fails(fitted, tmp_path, capsys, code):
    from minitron_nas.execution import ray_train

    def fail():
        if code is not None:
            with suppress(RuntimeError):
                fitted.function()
        raise ray_train.TrainingFailedError("a traceback of Ray's")

    fitted.during = fail
    train(tmp_path, lambda argument: code)
    assert capsys.readouterr().err == ("a traceback of Ray's\n" if code is None else "")


def test_a_full_disk_that_no_worker_could_tell_is_told_in_a_line(fitted, tmp_path, capsys):
    from minitron_nas.execution import ray_train

    def fail():
        words = "[Rank 0,1 Error Snippet]:\nTraceback\nOSError: [Errno 28] No space left on device\n\nDuring handling"
        raise ray_train.TrainingFailedError(words)

    fitted.during = fail
    with pytest.raises(
        MachineError, match=r"^a worker ended: OSError: \[Errno 28\] No space left on device; mend that"
    ):
        train(tmp_path)
    assert capsys.readouterr().err == ""


def test_the_caller_is_told_while_it_waits(fitted, tmp_path):
    from threading import Event

    waited = Event()
    fitted.during = lambda: waited.wait(30)
    train(tmp_path, on_wait=waited.set)
    assert waited.is_set()


def test_sigterm_ends_the_call(fitted, tmp_path):
    fitted.during = lambda: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(PreemptedError, match="stopped by SIGTERM"):
        train(tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray warns of its own settings
def test_workers_find_each_other_and_nothing_of_ray_is_left(one_ray, tmp_path, ray_results):
    from minitron_nas.execution.ray_train import RayTrain

    def work(folder):
        import os
        from pathlib import Path

        from torch import distributed

        rank, size = distributed.get_rank(), distributed.get_world_size()
        Path(folder, os.environ["RANK"]).write_text(f"{rank} of {size}")
        return 0

    ray_train = RayTrain(SETTINGS, tmp_path / "ray")
    with ray_train.connected():
        ray_train.run(work, str(tmp_path), 2, lambda: None)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"0": "0 of 2", "1": "1 of 2"}
    assert ray_results() == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray warns of its own settings
def test_workers_that_said_why_they_fail_are_not_started_again(one_ray, tmp_path):
    from minitron_nas.execution.ray_train import RayTrain

    def fail(folder):
        import os
        from pathlib import Path

        with open(Path(folder, os.environ["RANK"]), "a") as file:
            file.write("x")
        return 2

    ray_train = RayTrain(SETTINGS, tmp_path / "ray")
    with ray_train.connected():
        ray_train.run(fail, str(tmp_path), 2, lambda: None)
    assert {file.read_text() for file in tmp_path.iterdir()} == {"x"}
