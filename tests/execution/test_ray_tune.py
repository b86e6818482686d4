import os
import signal
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from minitron_nas.errors import MachineError, PlanError, PreemptedError, TrialError
from minitron_nas.execution.local import LocalRunner
from minitron_nas.execution.runner import Job, Jobs, last_line
from minitron_nas.execution.settings import RunnerSettings
from minitron_nas.progress import silent

SETTINGS = RunnerSettings(cpus_per_trial=1, gpus_per_trial=0, max_worker_losses=1)


def run_jobs(runner, function, jobs, results, max_failures, progress=silent):
    return Jobs(runner, results, max_failures).run(function, jobs, progress)


def behaviour():
    """A function that goes to workers by value, because they cannot import this module."""

    def behave(kind, marker):
        import os
        import time
        from pathlib import Path

        if kind == "memory":
            raise MemoryError("no 8 GB")
        if kind == "full":
            raise OSError(28, "No space left on device", "/disk/checkpoint")
        if kind == "defect":
            raise ValueError("a defect")
        if kind == "endless":
            time.sleep(600)
        if kind.startswith("lost"):
            with open(marker, "a") as file:
                file.write("x")
            if kind == "lost" or len(Path(marker).read_text()) == 1:
                os._exit(1)
        return {"kind": kind, "folder": os.getcwd(), "threads": os.environ.get("OMP_NUM_THREADS")}

    return behave


def jobs(folder, *kinds):
    return [Job(f"{n}-{kind}", {"kind": kind, "marker": str(folder / f"{n}")}) for n, kind in enumerate(kinds)]


def runner(folder, settings=SETTINGS):
    from minitron_nas.execution.ray_tune import RayTuneRunner

    return RayTuneRunner(settings, folder / "ray")


@pytest.fixture(scope="module")
def ran(one_ray, tmp_path_factory):
    """One experiment in which everything happens, on Ray and, but for lost workers, here."""
    folder = tmp_path_factory.mktemp("ran")
    kinds = ("ordinary", "lost", "memory", "lost-once", "defect", "ordinary")
    told = []
    on_ray = run_jobs(
        runner(folder), behaviour(), jobs(folder, *kinds), folder / "results", 5, lambda *pair: told.append(pair)
    )
    here = [job for job in jobs(folder, *kinds) if "lost" not in job.key]
    return SimpleNamespace(
        folder=folder, ray=on_ray, local=run_jobs(LocalRunner(), behaviour(), here, folder / "local", 5), told=told
    )


def test_ray_and_this_process_give_the_same_outcomes(ran):
    assert len(ran.local) == 4
    for key, outcome in ran.local.items():
        other = ran.ray[key]
        of_both = [replace(each, error=None, seconds=0.0, began=0.0) for each in (other, outcome)]
        assert of_both[0] == of_both[1]
        assert last_line(other.error) == last_line(outcome.error)


def test_calls_within_a_hold_share_one_connection(monkeypatch, tmp_path):
    from contextlib import contextmanager

    from minitron_nas.execution import ray_session

    connected = SimpleNamespace(now=False, times=0, called=0)

    @contextmanager
    def connect(address, folder):
        mine, connected.now = not connected.now, True
        connected.times += mine
        yield
        connected.now = not mine

    monkeypatch.setattr(ray_session, "connected", connect)
    tried = runner(tmp_path)
    monkeypatch.setattr(type(tried), "_fit", lambda *_: setattr(connected, "called", connected.called + 1))
    with tried.held():
        for _ in range(2):
            tried.execute(behaviour(), jobs(tmp_path, "ordinary"), silent)
    assert (connected.called, connected.times, connected.now) == (2, 1, False)
    tried.execute(behaviour(), jobs(tmp_path, "ordinary"), silent)
    assert connected.times == 2


def test_every_job_has_its_outcome_in_the_jobs_order(ran):
    assert [(key, outcome.status) for key, outcome in ran.ray.items()] == [
        ("0-ordinary", "completed"),
        ("1-lost", "failed"),
        ("2-memory", "infeasible"),
        ("3-lost-once", "completed"),
        ("4-defect", "failed"),
        ("5-ordinary", "completed"),
    ]


def test_a_worker_that_dies_every_time_is_tried_as_often_as_the_settings_say(ran):
    assert (ran.folder / "1").read_text() == "xx"
    assert ran.ray["1-lost"].error.startswith("the worker was lost: ")
    assert "The actor died unexpectedly" in ran.ray["1-lost"].error


def test_a_worker_that_dies_once_is_no_loss(ran):
    assert (ran.folder / "3").read_text() == "xx"
    assert ran.ray["3-lost-once"].value["kind"] == "lost-once"


def test_a_trial_works_in_this_folder_so_that_relative_paths_mean_the_same(ran):
    assert ran.ray["0-ordinary"].value["folder"] == os.getcwd()


def test_the_traceback_of_a_worker_comes_back(ran):
    assert "in behave" in ran.ray["4-defect"].error
    assert last_line(ran.ray["4-defect"].error) == "ValueError: a defect"


def test_progress_is_told_as_outcomes_come(ran):
    assert ran.told == [(done, 6) for done in range(7)]


@pytest.fixture
def _ctrl_c():
    """Ctrl-C as a program at a terminal hears it; one that was started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.usefixtures("_ctrl_c")
def test_ctrl_c_ends_the_search_and_keeps_only_what_had_ended(one_ray, tmp_path):
    def interrupt(done, total):
        if done == 1:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run_jobs(
            runner(tmp_path), behaviour(), jobs(tmp_path, "ordinary", "endless"), tmp_path / "results", 1, interrupt
        )
    assert signal.getsignal(signal.SIGINT) is before
    assert [file.name for file in (tmp_path / "results").iterdir()] == ["0-ordinary.json"]


@pytest.mark.slow
def test_sigterm_ends_the_search_and_keeps_what_had_ended(one_ray, tmp_path):
    def stop(done, total):
        if done == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    two = jobs(tmp_path, "ordinary", "endless")
    with pytest.raises(PreemptedError, match="stopped by SIGTERM; the same command goes on with the trials"):
        run_jobs(runner(tmp_path), behaviour(), two, tmp_path / "results", 1, stop)
    assert [file.name for file in (tmp_path / "results").iterdir()] == ["0-ordinary.json"]


def test_a_worker_that_was_killed_because_memory_ran_out_is_no_defect(one_ray, tmp_path, monkeypatch):
    from minitron_nas.execution import ray_tune

    def lose(self):
        said = "1 worker(s) were killed due to the node running low on memory."
        trial = SimpleNamespace(config={"job": "0-ordinary"}, get_error=lambda: said)
        self._local_tuner.get_run_config().callbacks[0].on_trial_error(0, [trial], trial)

    monkeypatch.setattr(ray_tune.tune.Tuner, "fit", lose)
    found = run_jobs(runner(tmp_path), behaviour(), jobs(tmp_path, "ordinary"), tmp_path / "results", 0)
    assert found["0-ordinary"].status == "infeasible"
    assert "running low on memory" in found["0-ordinary"].error


def outcome_of(status="completed", seconds=1.0):
    return {"outcome": {"key": "a", "status": status, "value": {}, "error": None, "seconds": seconds}}


def delivery_to(told, factor=10.0):
    from minitron_nas.execution.deadline import Deadline
    from minitron_nas.execution.ray_tune import _Delivery

    return _Delivery(told.append, Deadline(factor, 0.0))


@pytest.mark.parametrize(
    "events",
    [
        ["result"],
        ["result", "error"],
        ["result", "result"],
        ["result", "failed result"],
        ["result", "failed result", "error"],
        ["error", "result"],
    ],
)
def test_a_worker_that_is_lost_after_it_has_reported_has_reported_once(events):
    told, trial = [], SimpleNamespace(config={"job": "a"})
    delivery = delivery_to(told)
    for event in events:
        if event == "error":
            delivery.on_trial_error(0, [trial], trial)
        else:
            delivery.on_trial_result(0, [trial], trial, outcome_of("failed" if "failed" in event else "completed"))
    assert [outcome.status for outcome in told] == ["completed"]
    assert not delivery.lost.keys() - delivery.keys


def test_a_trial_that_takes_many_times_as_long_as_the_slowest_is_given_up_once(monkeypatch):
    from minitron_nas.execution import ray_tune

    told, killed, clock = [], [], [100.0]
    monkeypatch.setattr(ray_tune.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(ray_tune.ray_session, "end_actor", killed.append)
    delivery = delivery_to(told)

    def trial(key, status="RUNNING"):
        state = SimpleNamespace(ray_actor=f"actor of {key}")
        metadata = SimpleNamespace(num_failures=0)
        return SimpleNamespace(config={"job": key}, status=status, temporary_state=state, run_metadata=metadata)

    trials = [trial("a"), trial("b"), trial("c", "PENDING")]
    for each in trials[:2]:
        delivery.on_trial_start(0, trials, each)
    clock[0] += 1000
    delivery.on_step_end(0, trials)
    assert told == []  # nothing has ended that would say how long it takes
    delivery.on_trial_result(0, trials, trials[0], outcome_of(seconds=101.0))
    delivery.on_step_end(0, trials)
    assert len(told) == 1
    clock[0] += 11
    for _ in range(2):
        delivery.on_step_end(0, trials)
    assert [(outcome.key, outcome.status, outcome.seconds) for outcome in told[1:]] == [("b", "timeout", 1011.0)]
    assert 0 <= time.time() - told[1].began < 60
    assert killed == ["actor of b"]
    delivery.on_trial_error(0, trials, trials[1])
    assert delivery.lost == {}


@pytest.mark.slow
def test_a_worker_that_was_stopped_is_given_up_and_the_others_go_on(one_ray, tmp_path):
    from minitron_nas.storage.locks import held

    settings = SETTINGS.model_copy(update={"timeout_factor": 1.0, "timeout_minutes": 5 / 60, "cpus_per_trial": 2})

    def stopped(kind):
        import os
        import signal

        if kind == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        return {}

    three = [Job(kind, {"kind": kind}) for kind in ("first", "stopped", "last")]
    with held(tmp_path / ".lock", tmp_path):
        found = run_jobs(runner(tmp_path, settings), stopped, three, tmp_path / "results", 0)
    assert [outcome.status for outcome in found.values()] == ["completed", "timeout", "completed"]


def test_nothing_of_ray_is_left_in_the_run_or_in_the_home_folder(ran, ray_results):
    kept = sorted(path.name for path in ran.folder.iterdir())
    assert kept == ["1", "3", "local", "results"]
    assert ray_results() == []


@pytest.mark.slow
def test_too_many_failures_end_all_trials_with_the_same_error_as_here(one_ray, tmp_path, ray_results):
    broken = jobs(tmp_path, "defect", "endless", "defect", "ordinary")
    with pytest.raises(
        TrialError, match=r"2 of 4 trials failed, more than runner\.max_failures=1 .*ValueError: a defect"
    ):
        run_jobs(runner(tmp_path), behaviour(), broken, tmp_path / "results", 1)
    assert not (tmp_path / "ray").exists()
    assert ray_results() == []


@pytest.mark.slow
def test_a_full_disk_ends_all_trials_with_the_same_error_as_here(one_ray, tmp_path):
    full = jobs(tmp_path, "ordinary", "full", "endless")
    with pytest.raises(MachineError, match=r"^trial 1-full: /disk/checkpoint: No space left on device"):
        run_jobs(runner(tmp_path), behaviour(), full, tmp_path / "results", 9)
    assert {file.name for file in (tmp_path / "results").iterdir()} <= {"0-ordinary.json"}


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"cpus_per_trial": 3}, r"asks for 3 CPUs and 0 GPUs, which no node has \(at most 2 CPUs and 0 GPUs\)"),
        ({"gpus_per_trial": 1}, r"asks for 1 CPUs and 1 GPUs, which no node .*; lower runner\.cpus_per_trial or"),
    ],
)
def test_resources_that_no_node_has_are_refused_before_anything_runs(one_ray, tmp_path, resources, message):
    settings = SETTINGS.model_copy(update=resources)
    with pytest.raises(PlanError, match=message):
        run_jobs(runner(tmp_path, settings), behaviour(), jobs(tmp_path, "lost"), tmp_path / "results", 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("resources", [{"cpus_per_trial": 4096}, {"gpus_per_trial": 99}])
def test_what_this_machine_does_not_have_is_refused_before_a_ray_is_started_on_it(tmp_path, monkeypatch, resources):
    from minitron_nas.execution import ray_session

    monkeypatch.setattr(ray_session.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_session.ray, "init", None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    runner(tmp_path, RunnerSettings()).check()
    with pytest.raises(
        PlanError, match=rf"asks for .*, which no node has \(at most {os.cpu_count()} CPUs and 0 GPUs\)"
    ):
        runner(tmp_path, RunnerSettings(**resources)).check()


@pytest.mark.parametrize(
    ("nodes", "settings", "expected"),
    [
        ([{"CPU": 8.0}], {}, {"cpu": 8.0, "gpu": 0.0}),
        ([{"CPU": 8.0}, {"CPU": 64.0}], {}, {"cpu": 64.0, "gpu": 0.0}),
        ([{"CPU": 8.0, "GPU": 4.0}], {}, {"cpu": 2.0, "gpu": 1.0}),
        ([{"CPU": 8.0, "GPU": 4.0}], {"gpus_per_trial": 0.25}, {"cpu": 0.5, "gpu": 0.25}),
        ([{"CPU": 64.0, "GPU": 4.0}, {"CPU": 30.0, "GPU": 4.0}, {"CPU": 4.0}], {}, {"cpu": 7.0, "gpu": 1.0}),
        ([{"CPU": 8.0, "GPU": 4.0}], {"gpus_per_trial": 0}, {"cpu": 8.0, "gpu": 0.0}),
        ([{"CPU": 8.0, "GPU": 4.0}], {"gpus_per_trial": 0.5, "cpus_per_trial": 2}, {"cpu": 2.0, "gpu": 0.5}),
        ([{"CPU": 8.0}, {"CPU": 4.0, "GPU": 1.0}], {"cpus_per_trial": 4}, {"cpu": 4.0, "gpu": 1.0}),
    ],
)
def test_what_a_trial_takes_follows_from_the_nodes_unless_the_settings_say(
    tmp_path, monkeypatch, nodes, settings, expected
):
    from minitron_nas.execution import ray_session, ray_tune

    pretend(monkeypatch, ray_session, nodes)
    assert ray_tune.RayTuneRunner(RunnerSettings(**settings), tmp_path)._resources() == expected


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpus", "expected"),
    [
        ([{"CPU": 8.0}], 2, 0, 4),
        ([{"CPU": 8.0}, {"CPU": 7.0}], 4, 0, 3),
        ([{"CPU": 16.0, "GPU": 8.0}], 16, 1, 1),
        ([{"CPU": 16.0, "GPU": 8.0}, {"CPU": 64.0}], 1, 1, 8),
        ([{"CPU": 4.0, "GPU": 1.0}], 1, 0.25, 4),
    ],
)
def test_room_is_counted_node_by_node(monkeypatch, nodes, cpus, gpus, expected):
    from minitron_nas.execution import ray_session

    pretend(monkeypatch, ray_session, nodes, down=[{"CPU": 64.0, "GPU": 8.0}])
    assert ray_session.room_for(cpus, gpus) == expected


def test_a_node_that_is_down_does_not_count(tmp_path, monkeypatch):
    from minitron_nas.execution import ray_session, ray_tune

    pretend(monkeypatch, ray_session, [{"CPU": 2.0}], down=[{"CPU": 64.0, "GPU": 8.0}])
    with pytest.raises(PlanError, match="asks for 4 CPUs and 0 GPUs"):
        ray_tune.RayTuneRunner(RunnerSettings(cpus_per_trial=4), tmp_path)._resources()


def pretend(monkeypatch, module, nodes, down=()):
    listed = [{"Resources": node, "Alive": True} for node in nodes]
    listed += [{"Resources": node, "Alive": False} for node in down]
    monkeypatch.setattr(module, "ray", SimpleNamespace(is_initialized=lambda: True, nodes=lambda: listed))


def test_a_cluster_that_answers_and_then_refuses_is_told_of_in_one_line(tmp_path, monkeypatch):
    from minitron_nas.execution import ray_session

    def refuse(**_):
        raise ConnectionError("Version\nmismatch.")

    fake = SimpleNamespace(is_initialized=lambda: False, init=refuse, shutdown=lambda: None)
    monkeypatch.setattr(ray_session, "ray", fake)
    monkeypatch.setattr(ray_session, "_cluster", lambda address: "head:6379")
    message = r"runner.address=auto: no Ray cluster can be reached at head:6379 \(Version mismatch.\); start one"
    with pytest.raises(PlanError, match=message), ray_session.connected("auto", tmp_path):
        pass


def test_the_head_of_a_ray_that_runs_answers(one_ray):
    from minitron_nas.execution import ray_session

    address = one_ray.get_runtime_context().gcs_address
    assert ray_session._cluster(address) == address


@pytest.mark.parametrize("runs_already", [False, True])
def test_a_ray_that_was_started_here_is_shut_down_whatever_happens(tmp_path, monkeypatch, runs_already):
    from minitron_nas.execution import ray_session, ray_tune

    story = []
    fake = SimpleNamespace(
        is_initialized=lambda: runs_already,
        init=lambda **settings: story.append(settings["address"]),
        shutdown=lambda: story.append("shut down"),
        get_runtime_context=lambda: SimpleNamespace(gcs_address="head:6379"),
    )

    def broken(*args):
        (tmp_path / "ray").mkdir()
        raise ValueError("a defect of Ray")

    monkeypatch.setattr(ray_session, "ray", fake)
    monkeypatch.setattr(ray_session, "_cluster", lambda address: "head:6379")
    monkeypatch.setattr(ray_tune.RayTuneRunner, "_fit", broken)
    with pytest.raises(ValueError, match="a defect of Ray"):
        runner(tmp_path, RunnerSettings(address="auto")).execute(behaviour(), jobs(tmp_path, "ordinary"), story.append)
    assert story == ([] if runs_already else ["auto", "shut down"])
    assert not (tmp_path / "ray").exists()
