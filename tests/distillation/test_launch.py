"""Where a distillation runs, and what becomes of processes that fail."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from minitron_nas.distillation import launch, worker
from minitron_nas.distillation.job import TRAINED
from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.distillation.training.arguments import most_processes
from minitron_nas.distillation.training.checkpoints import save_weights
from minitron_nas.distillation.training.curve import CurvePoint, TrainingResult
from minitron_nas.distillation.training.schedule import Schedule
from minitron_nas.errors import CheckpointError, NonFiniteLossError, TrainingProcessError
from minitron_nas.execution.settings import RunnerSettings
from minitron_nas.models.loading import load_for_training
from minitron_nas.progress import silent


@pytest.fixture
def launched(monkeypatch):
    """Calls of launchers instead of processes."""
    calls = []
    monkeypatch.setattr(worker, "run", lambda job, progress: calls.append("here"))
    monkeypatch.setattr(launch, "run_processes", lambda module, path, num, look: calls.append((module, path, num)))
    return calls


def train(job, runner, progress=silent):
    """Train, and load the student that is left."""
    result = launch.run(job, runner, progress)
    return launch.trained(job), result


def with_gpus(monkeypatch, number):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: number)


def test_a_training_in_this_process_leaves_how_far_it_is_too(jobs):
    job = jobs.make("far")
    launch.run(job, RunnerSettings(kind="local", num_processes=1))
    assert job.progress() == (job.schedule.num_steps, job.schedule.num_steps)


@pytest.mark.parametrize(
    ("batch", "micro", "devices", "expected"),
    [
        (4, 1, 0, 1),
        (4, 1, 1, 1),
        (4, 1, 4, 4),
        (4, 1, 3, 2),
        (6, 1, 4, 3),
        (7, 1, 4, 1),
        (64, 1, 8, 8),
        (24, 2, 8, 6),
        (24, 8, 8, 8),
    ],
)
def test_there_is_a_process_for_each_gpu_as_far_as_the_batch_divides(batch, micro, devices, expected):
    settings = DistillationSettings(micro_batch_sequences=micro)
    assert most_processes(settings, Schedule(1, batch, 16), devices) == expected


@pytest.mark.parametrize(
    ("gpus", "runner", "settings", "expected"),
    [
        (0, {"kind": "local"}, {}, "here"),
        (0, {"kind": "ray"}, {}, "here"),
        (1, {"kind": "local"}, {}, "here"),
        (4, {"kind": "local"}, {}, 4),
        (4, {"kind": "local", "num_processes": 1}, {}, "here"),
        (4, {"kind": "local", "num_processes": 2}, {}, 2),
        (0, {"kind": "local", "num_processes": 2}, {}, 2),
        (0, {"kind": "local"}, {"deepspeed": "zero-2"}, 1),
    ],
)
def test_the_runner_decides_where_it_runs(jobs, launched, monkeypatch, gpus, runner, settings, expected):
    with_gpus(monkeypatch, gpus)
    job = jobs.make("placed", **settings)
    with pytest.raises(TrainingProcessError, match="ended without a result"):
        train(job, RunnerSettings(**runner))
    module = "minitron_nas.distillation.worker"
    assert launched == ["here" if expected == "here" else (module, str(job.out / "job.json"), expected)]


@pytest.mark.parametrize(
    ("runner", "expected"),
    [({"num_processes": 2}, 2), ({"address": "auto"}, 4), ({"address": "auto", "num_processes": 1}, 1)],
)
def test_ray_runs_several_processes_and_whatever_is_on_a_cluster(jobs, launched, monkeypatch, runner, expected):
    from minitron_nas.execution import ray_train

    ran = []
    monkeypatch.setattr(ray_train.RayTrain, "connected", lambda self: nullcontext())
    monkeypatch.setattr(ray_train.RayTrain, "num_gpus", lambda self: 5)  # over four of which the batch divides
    monkeypatch.setattr(ray_train.RayTrain, "run", lambda self, function, path, num, look: ran.append((function, num)))
    with pytest.raises(TrainingProcessError):
        train(jobs.make("on-ray"), RunnerSettings(kind="ray", **runner))
    assert ran == [(worker.run_file, expected)]
    assert launched == []


def test_a_training_that_is_done_is_not_repeated(jobs, launched):
    job = jobs.make("done")
    job.write()
    job.write_result(TrainingResult((CurvePoint(0, 1.5, 5.0, None, None),)))
    save_weights(job.out / TRAINED, load_for_training(job.student), writes=True)
    assert not replace(job, seed=job.seed + 1).is_done
    model, result = train(job, RunnerSettings(kind="local"))
    assert (launched, result) == ([], job.result())
    expected = load_for_training(job.student).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("damage", ["flipped", "cut short", "checksums"])
def test_damaged_weights_of_a_training_that_is_done_are_named(jobs, launched, damage):
    job = jobs.make(f"damaged-{damage}".replace(" ", "-"))
    job.write()
    job.write_result(TrainingResult((CurvePoint(0, 1.5, 5.0, None, None),)))
    file = job.out / TRAINED
    save_weights(file, load_for_training(job.student), writes=True)
    content = file.read_bytes()
    if damage == "checksums":
        (job.out / "model.checksums.json").unlink()
    else:
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if damage == "flipped" else content[:-1])
    with pytest.raises(CheckpointError, match=rf"{job.out.name}/model\.[\w.]+ cannot be used: .*; check the disk"):
        train(job, RunnerSettings(kind="local"))
    assert launched == []


def test_a_training_whose_weights_are_gone_is_repeated(jobs, launched):
    job = jobs.make("weightless")
    job.write()
    job.write_result(TrainingResult((CurvePoint(0, 1.5, 5.0, None, None),)))
    with pytest.raises(TrainingProcessError):
        train(job, RunnerSettings(kind="local"))
    assert launched == ["here"]


def test_the_error_of_an_attempt_before_does_not_fail_one_that_went_well(jobs, monkeypatch):
    job = jobs.make("again")

    def work(*_):
        job.write_error(1, NonFiniteLossError("nan"))
        job.write_result(TrainingResult((CurvePoint(0, 1.5, 5.0, None, None),)))
        save_weights(job.out / TRAINED, load_for_training(job.student), writes=True)

    monkeypatch.setattr(launch, "run_processes", work)
    assert train(job, RunnerSettings(kind="local", num_processes=2))[1] == job.result()


def test_the_error_of_a_process_is_raised_here(jobs, monkeypatch):
    job = jobs.make("nan")
    monkeypatch.setattr(launch, "run_processes", lambda *_: job.write_error(1, NonFiniteLossError("nan at step 3")))
    with pytest.raises(NonFiniteLossError, match="nan at step 3"):
        train(job, RunnerSettings(kind="local", num_processes=2))


def test_progress_of_the_processes_is_told_here(jobs, monkeypatch):
    job, told = jobs.make("told"), []

    def work(module, path, num_processes, look):
        look()
        job.write_progress(1, 6)
        look()
        job.write_progress(6, 6)

    monkeypatch.setattr(launch, "run_processes", work)
    with pytest.raises(TrainingProcessError):
        train(job, RunnerSettings(kind="local", num_processes=2), lambda *pair: told.append(pair))
    assert told == [(1, 6), (6, 6)]


def test_the_trained_student_comes_back_with_its_curve(jobs, one_process, monkeypatch):
    finished = one_process[False]
    monkeypatch.setattr(launch, "run_processes", lambda *_: finished.write_result(result))
    result = finished.result()
    student, curve = train(finished, RunnerSettings(kind="local", num_processes=2))
    assert curve == result
    expected = jobs.weights(finished)
    assert all(torch.equal(weight, expected[name]) for name, weight in student.state_dict().items())
