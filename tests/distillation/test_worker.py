"""One training in many processes: the losses of one, whatever the engine, and no token twice or skipped."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch

from minitron_nas.distillation.job import TRAINED
from minitron_nas.distillation.training.checkpoints import last_whole, step_of
from minitron_nas.distillation.worker import run_file
from minitron_nas.errors import MachineError, PlanError, PreemptedError
from minitron_nas.models.loading import load_for_training
from minitron_nas.storage.locks import Starter

ENGINES = [None, "zero-0", "zero-1", "zero-2", "zero-3"]
PER_STEP = {step: [4 * step + offset for offset in range(4)] for step in range(6)}
"""The sequences of each of six optimizer steps of four."""


def in_order(steps):
    return {step: sorted(indices) for step, indices in steps.items()}


def values(curve):
    return [point.kl_nats if point.objective is None else point.objective for point in curve]


def assert_same_training(jobs, job, expected):
    """The same curve and weights but for the order in which numbers are added."""
    curve, wanted = job.result().curve, expected.result().curve
    assert [point.tokens for point in curve] == [point.tokens for point in wanted]
    assert values(curve) == pytest.approx(values(wanted), rel=2e-5)
    torch.testing.assert_close(jobs.weights(job), jobs.weights(expected), rtol=1e-3, atol=2e-5)


def test_one_process_validates_first_and_moves_every_weight(jobs, one_process):
    job = one_process[False]
    points = [(point.tokens // 64, point.learning_rate is None) for point in job.result().curve]
    assert points == [
        (0, True),
        (1, False),
        (2, False),
        (3, False),
        (3, True),
        *((n, False) for n in (4, 5, 6)),
        (6, True),
    ]
    start = load_for_training(job.student).state_dict()
    assert [name for name, weight in jobs.weights(job).items() if torch.equal(weight, start[name])] == []


@pytest.mark.slow
def test_two_processes_that_are_stopped_go_on_in_one_as_if_nothing_had_been(jobs, one_process, monkeypatch):
    # SIGTERM comes to the second process only; both stop after the same step, with a checkpoint.
    first = jobs.make("stopped")
    code, before = jobs.run(first, 2, monkeypatch, stop_step=2)
    assert code != 0
    assert [path.name for path in first.checkpoints.glob("checkpoint-*")] == ["checkpoint-3"]
    with pytest.raises(SystemExit, match=r"stopped by SIGTERM; the same command goes on from .*checkpoint-3") as stop:
        first.raise_error()
    assert stop.value.code == 143
    after = jobs.run_here(first)
    assert in_order(before | after) == PER_STEP
    assert not set(before) & set(after)
    assert_same_training(jobs, first, one_process[False])


@pytest.mark.parametrize("step", [2, 6])
def test_sigterm_in_one_process_leaves_what_goes_on_to_the_same_bytes(jobs, one_process, step):
    def stopping(done, total):
        if done == step:
            os.kill(os.getpid(), signal.SIGTERM)

    job = jobs.make(f"alone-{step}")
    with pytest.raises(
        PreemptedError, match=f"stopped by SIGTERM; the same command goes on from .*checkpoint-{step}"
    ) as stop:
        jobs.run_here(job, stopping)
    assert stop.value.code == 143
    assert job.result() is None
    assert sorted(jobs.run_here(job)) == list(range(step, 6))
    assert (job.out / TRAINED).read_bytes() == (one_process[False].out / TRAINED).read_bytes()
    assert job.result() == one_process[False].result()


def test_sigterm_does_what_it_did_before_once_training_has_ended(jobs):
    before = signal.getsignal(signal.SIGTERM)
    jobs.run_here(jobs.make("heard"))
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_fault_is_left_for_whoever_has_started_the_processes(jobs, capsys):
    job = jobs.make("faulty", micro_batch_sequences=3)
    assert run_file(str(job.write())) == 2
    told = capsys.readouterr().err
    with pytest.raises(PlanError, match="a batch of 4 sequences does not divide into micro-batches of 3") as caught:
        job.raise_error()
    assert told == f"{caught.value}\n"


def test_a_disk_too_full_to_say_who_trains_is_one_line(jobs, monkeypatch, capsys):
    starter = json.loads(Starter.current().to_json()) | {"writers": "/dev/full"}
    monkeypatch.setenv("MINITRON_NAS_STARTER", json.dumps(starter))
    job = jobs.make("full")
    assert run_file(str(job.write())) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line]
    assert "No space left on device" in line


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_give_the_losses_of_one(jobs, one_process, monkeypatch, engine, cached, tied):
    job = jobs.make(f"two-{engine}-{cached}-{tied}", cached=cached, tied=tied, deepspeed=engine)
    code, steps = jobs.run(job, 2, monkeypatch)
    assert code == 0
    assert in_order(steps) == PER_STEP
    assert_same_training(jobs, job, one_process[tied])


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("engine", ENGINES)
def test_compiled_layers_give_the_losses_of_written_ones_under_every_engine(jobs, one_process, monkeypatch, engine):
    job = jobs.make(f"compiled-{engine}", torch_compile=True, deepspeed=engine)
    code, steps = jobs.run(job, 2, monkeypatch)
    assert code == 0
    assert in_order(steps) == PER_STEP
    assert_same_training(jobs, job, one_process[False])


@pytest.mark.slow
def test_a_teacher_beside_the_student_is_sharded_with_it(jobs, monkeypatch):
    job = jobs.make("sharded", cached=False, deepspeed="zero-3")
    jobs.run(job, 2, monkeypatch, stop_step=0)
    for rank in range(2):
        sizes = json.loads((job.out / f"teacher-{rank}").read_text())
        assert [held for held, _ in sizes] == [(whole + 1) // 2 for _, whole in sizes]


@pytest.mark.slow
@pytest.mark.parametrize(
    "engines",
    [(None, None, None), ("zero-1", "zero-1", "zero-1"), ("zero-3", None, "zero-2"), ("zero-2", "zero-3", "zero-3")],
)
def test_a_training_goes_on_in_two_one_and_two_processes(jobs, one_process, monkeypatch, engines):
    consumed = {}
    for engine, num_processes, stop_step in zip(engines, (2, 1, 2), (1, 3, None), strict=True):
        job = jobs.make(f"resumed-{'-'.join(map(str, engines))}", deepspeed=engine)
        code, steps = jobs.run(job, num_processes, monkeypatch, stop_step)
        assert (code == 0) == (stop_step is None)
        assert not set(consumed) & set(steps)
        consumed |= steps
    assert in_order(consumed) == PER_STEP
    assert_same_training(jobs, job, one_process[False])


@pytest.mark.slow
@pytest.mark.parametrize("engine", [None, "zero-2", "zero-3"])
def test_a_rank_that_is_killed_leaves_what_goes_on_to_the_same_weights(jobs, monkeypatch, engine):
    whole, killed = (jobs.make(f"{name}-{engine}", odd=True, deepspeed=engine) for name in ("whole", "killed"))
    odd = [name for name, weight in load_for_training(whole.student).state_dict().items() if weight.numel() % 2]
    assert len(odd) > 4
    killed = replace(killed, settings=killed.settings.model_copy(update={"checkpoint_minutes": 0.0}))
    assert jobs.run(whole, 2, monkeypatch)[0] == 0
    code, before = jobs.run(killed, 2, monkeypatch, 3, signal.SIGKILL)
    assert code != 0
    assert [path.name for path in killed.checkpoints.glob("checkpoint-*")] == ["checkpoint-3"]
    code, after = jobs.run(killed, 2, monkeypatch)
    assert code == 0
    assert sorted(after) == [3, 4, 5]
    assert set(before) == {0, 1, 2, 3}
    assert killed.result().curve == whole.result().curve
    torch.testing.assert_close(jobs.weights(killed), jobs.weights(whole), rtol=0, atol=0)


def of_every_step(job, **settings):
    return replace(job, settings=job.settings.model_copy(update={"checkpoint_minutes": 0.0, **settings}))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_what_two_processes_write_beside_training_is_what_one_goes_on_from(jobs, one_process, monkeypatch, engine):
    monkeypatch.setenv("SMALL_BYTES", "0")
    job = of_every_step(jobs.make(f"beside-{engine}", odd=True, deepspeed=engine))
    whole = jobs.make(f"beside-whole-{engine}", odd=True, deepspeed=engine)
    jobs.run_here(replace(whole, settings=whole.settings.model_copy(update={"deepspeed": None})))
    assert jobs.run(job, 2, monkeypatch, 3, signal.SIGKILL)[0] != 0
    first = step_of(last_whole(job.checkpoints))
    assert first in {1, 2, 3}
    assert len(list((job.checkpoints / f"checkpoint-{first}").glob("*-of-2.safetensors"))) == 4
    after = jobs.run_here(of_every_step(job, deepspeed=None))
    assert sorted(after) == list(range(first, 6))
    assert_same_training(jobs, job, whole)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("small_bytes", [0, 1 << 20])
def test_a_full_disk_under_one_process_ends_all_with_its_words(jobs, monkeypatch, rank, small_bytes):
    monkeypatch.setenv("SMALL_BYTES", str(small_bytes))
    monkeypatch.setenv("FULL_DISK_RANK", str(rank))
    job = of_every_step(jobs.make(f"full-{rank}-{small_bytes}"))
    assert jobs.run(job, 2, monkeypatch)[0] != 0
    with pytest.raises(MachineError, match="No space left"):
        job.raise_error()
    assert last_whole(job.checkpoints) is None
    monkeypatch.delenv("FULL_DISK_RANK")
    assert jobs.run(job, 2, monkeypatch)[0] == 0


@pytest.mark.slow
def test_bfloat16_weights_with_float32_copies_go_on_too(jobs, one_process, monkeypatch, tmp_path):
    profile = tmp_path / "bf16.json"
    profile.write_text('{"zero_optimization": {"stage": 2}, "bf16": {"enabled": true}}')
    job = jobs.make("bf16", deepspeed=str(profile))
    for num_processes, stop_step in ((2, 2), (1, None)):
        code, _ = jobs.run(job, num_processes, monkeypatch, stop_step)
        assert (code == 0) == (stop_step is None)
    curve, wanted = job.result().curve, one_process[False].result().curve
    assert values(curve) == pytest.approx(values(wanted), rel=2e-2)
