"""What a job file says, and what processes leave beside it."""

from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from minitron_nas.distillation import worker
from minitron_nas.distillation.job import TRAINED, TrainingJob
from minitron_nas.distillation.training.best import BEST, BestWeights
from minitron_nas.distillation.training.curve import CurvePoint, TrainingResult
from minitron_nas.errors import CheckpointError, NonFiniteLossError, PreemptedError, TrainingMemoryError
from minitron_nas.storage.sealed import write_sealed


@pytest.fixture
def job(jobs, tmp_path):
    made = jobs.make("written", report_to=("wandb",), run_name="one")
    return TrainingJob(made.student, made.files, made.settings, made.schedule, tmp_path / "c", 3, tmp_path / "out")


def test_what_is_read_is_what_was_written(job):
    assert TrainingJob.read(job.write()) == job


def test_paths_are_absolute_because_processes_may_run_elsewhere(job, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.json").write_text("{}")
    settings = job.settings.model_copy(update={"deepspeed": "mine.json"})
    relative = TrainingJob(Path("s"), job.files, settings, job.schedule, Path("c"), 0, Path("out"))
    read = TrainingJob.read(relative.write().absolute())
    assert (read.student, read.checkpoints, read.out) == (tmp_path / "s", tmp_path / "c", tmp_path / "out")
    assert read.settings.deepspeed == str(tmp_path / "mine.json")


def test_a_profile_of_the_package_keeps_its_name(job):
    settings = job.settings.model_copy(update={"deepspeed": "zero-2"})
    named = TrainingJob(job.student, job.files, settings, job.schedule, job.checkpoints, 0, job.out)
    assert TrainingJob.read(named.write()).settings.deepspeed == "zero-2"


def test_result_and_progress_come_back(job):
    result = TrainingResult((CurvePoint(0, 1.5, 5.0, None, None), CurvePoint(64, None, None, 1.25, 1e-3)), "loss_nats")
    assert (job.result(), job.progress()) == (None, None)
    job.write_result(result)
    job.write_progress(1, 6)
    assert (job.result(), job.progress()) == (result, (1, 6))


def test_the_best_validation_so_far_is_told_while_training_goes_on(job):
    assert job.best() is None
    best = BestWeights(job.checkpoints, job.out / TRAINED, 9, "kl_nats", (), writes=True)
    for step, kl in ((0, 3.0), (2, 1.0), (4, 2.0)):
        best.judge(step, {"eval_kl_nats": kl}, nn.Linear(1, 1))
    assert job.best() == (2, 1.0)
    job.write()
    BestWeights(job.checkpoints, job.out / TRAINED, 9, "kl_nats", [{"step": 2, "eval_kl_nats": 1.0}], writes=True)
    assert job.best() == (2, 1.0)


def test_a_new_attempt_finds_nothing_of_the_one_before(job):
    job.write_result(TrainingResult(()))
    job.write_progress(1, 6)
    write_sealed(job.out / BEST, {"step": 0, "value": 1.0})
    job.write_error(1, NonFiniteLossError("nan"))
    job.write()
    assert [path.name for path in job.out.iterdir()] == ["job.json"]


@pytest.mark.parametrize(
    "error", [NonFiniteLossError("nan at step 3"), TrainingMemoryError("8 GB"), PreemptedError("goes on")]
)
def test_the_error_of_the_lowest_rank_is_raised_again(job, error):
    job.raise_error()
    job.write_error(1, NonFiniteLossError("another"))
    job.write_error(0, error)
    with pytest.raises(type(error)) as caught:
        job.raise_error()
    assert str(caught.value) == str(error)


def damage(file, how):
    content = file.read_bytes()
    changes = {
        "a brace": b"[" + content[1:],
        "a digit": content.translate(bytes.maketrans(b"1", b"2")),
        "a letter": content.replace(b"e", b"f", 1),
        "no text": b"\xff" + content[1:],
        "cut short": content[:-3],
        "empty": b"",
    }
    file.unlink()
    if how != "gone":
        assert changes[how] != content
        file.write_bytes(changes[how])


DAMAGES = ["a brace", "a digit", "a letter", "no text", "cut short", "empty", "gone"]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_job_is_named_and_is_not_done(job, how, capfd):
    path = job.write()
    job.write_result(TrainingResult(()))
    (job.out / TRAINED).touch()
    assert job.is_done
    damage(path, how)
    assert not job.is_done
    with pytest.raises(
        CheckpointError, match=r"job\.json is missing or not what was written there; repeat the command"
    ):
        TrainingJob.read(path)
    assert worker.run_file(str(path)) == 2
    assert capfd.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_result_is_none(job, how):
    job.write()
    job.write_result(TrainingResult((CurvePoint(0, 1.5, 5.0, None, None),)))
    (job.out / TRAINED).touch()
    damage(job.out / "result.json", how)
    assert (job.result(), job.is_done) == (None, False)


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_progress_and_errors_say_nothing(job, how):
    job.write_progress(1, 6)
    job.write_error(0, NonFiniteLossError("nan at step 1"))
    damage(job.out / "progress.json", how if how != "a letter" else "a digit")
    damage(job.out / "error-0.json", how)
    assert job.progress() is None
    job.raise_error()


def test_a_result_without_its_weights_is_not_done_unless_it_is_a_trials(job):
    for made, done in ((job, False), (replace(job, stop_step=3), True)):
        made.write()
        made.write_result(TrainingResult(()))
        assert made.is_done == done
