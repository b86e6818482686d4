"""A tiny job on disk, and processes that carry it out and tell what they consumed."""

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from minitron_nas.distillation import worker
from minitron_nas.distillation.job import StreamFiles, TrainingFiles, TrainingJob
from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.distillation.signals.folder import SignalPlace
from minitron_nas.distillation.signals.hidden_cache import write_hidden_cache
from minitron_nas.distillation.training import trainer
from minitron_nas.distillation.training.checkpoints import load_weights
from minitron_nas.distillation.training.schedule import Schedule
from minitron_nas.execution.torchrun import run_processes
from minitron_nas.models.loading import load_for_inference, load_for_training
from minitron_nas.progress import silent
from minitron_nas.testing import tiny_checkpoint
from minitron_nas.text.packing import pack

LENGTH = 16
SCHEDULE = Schedule(num_steps=6, batch_sequences=4, sequence_length=LENGTH)
SETTINGS = DistillationSettings(learning_rate=3e-3, num_evaluations=2, lm_loss_weight=0.5, weight_decay=0.1)

_RECORDING_WORKER = '''
"""A worker that tells which sequences it consumes, and to which a signal comes in one step, or a full disk."""
import errno, json, os, sys
from minitron_nas.distillation import job, worker
from minitron_nas.distillation.training import checkpoints, trainer, writer

rank, stop_step = os.environ["RANK"], int(os.environ.get("STOP_STEP", "-1"))
compute_loss = trainer._DistillationTrainer.compute_loss


def recording(self, model, inputs, *args, **kwargs):
    with open(os.environ["CONSUMED"] + rank, "a") as file:
        file.write(json.dumps([self.state.global_step, list(inputs["index"])]) + "\\n")
    if self.state.global_step == stop_step and int(rank) == int(os.environ["WORLD_SIZE"]) - 1:
        os.kill(os.getpid(), int(os.environ["STOP_SIGNAL"]))
    return compute_loss(self, model, inputs, *args, **kwargs)


load_sharded_teacher = job.load_sharded_teacher


def telling(path):
    teacher = load_sharded_teacher(path)
    sizes = [(parameter.ds_tensor.numel(), parameter.ds_numel) for parameter in teacher.parameters()]
    with open(os.environ["CONSUMED"].replace("consumed-", "teacher-") + rank, "w") as file:
        json.dump(sizes, file)
    return teacher


def no_room(file, pieces):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


if "SMALL_BYTES" in os.environ:
    writer.SMALL_BYTES = int(os.environ["SMALL_BYTES"])
if rank == os.environ.get("FULL_DISK_RANK"):
    checkpoints.write_tensors = no_room
trainer._DistillationTrainer.compute_loss = recording
job.load_sharded_teacher = telling
sys.exit(worker.main(sys.argv[1]))
'''

ODD_SIZES = {"hidden_size": 45, "num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 8}
KINDS = {
    "tied": {"tied": True},
    "untied": {"tied": False},
    "odd": {"tied": False, "vocab_size": 321, "intermediate_size": 53, **ODD_SIZES},
}
"""Students and teachers; of the odd ones most parameters do not divide by two processes."""

COMPUTING = (
    *("distillation.training.arguments", "distillation.training.objective", "distillation.training.trainer"),
    *("distillation.loss.validation", "models.loading"),
)
"""Modules that ask for the type to compute in."""


@dataclass(frozen=True)
class Jobs:
    """Jobs that learn the same from the same teacher, in folders of their own."""

    base: Path

    def make(self, name, *, cached=True, tied=False, odd=False, **settings):
        models = self.base / ("odd" if odd else "tied" if tied else "untied")
        files = TrainingFiles(
            models / "teacher",
            "teacher",
            StreamFiles(self.base / "train.safetensors", models / "train" if cached else None),
            StreamFiles(self.base / "validation.safetensors", models / "validation"),
        )
        chosen = SETTINGS.model_copy(update=settings)
        return TrainingJob(models / "student", files, chosen, SCHEDULE, self.base / name / "ckpt", 0, self.base / name)

    @staticmethod
    def weights(job):
        """The weights that a job has left."""
        student = load_for_training(job.student)
        load_weights(job.out, student)
        return student.state_dict()

    @staticmethod
    def run_here(job, progress=silent):
        """Carry out a job in this process, in float32; return what each step consumed."""
        steps = {}
        compute_loss = trainer._DistillationTrainer.compute_loss

        def recording(self, model, inputs, *args, **kwargs):
            steps.setdefault(self.state.global_step, []).extend(inputs["index"])
            return compute_loss(self, model, inputs, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            for module in COMPUTING:
                patch.setattr(f"minitron_nas.{module}.compute_dtype", lambda device: torch.float32)
            patch.setattr(trainer._DistillationTrainer, "compute_loss", recording)
            job.write()
            worker.run(job, progress)
        return steps

    def run(self, job, num_processes, monkeypatch, stop_step=None, stop_signal=signal.SIGTERM):
        """Carry out a job in processes of float32; return (exit code, what each step consumed)."""
        consumed = job.out / "consumed-"
        (self.base / "recording_worker.py").write_text(_RECORDING_WORKER)
        environment = {
            "ATEN_CPU_CAPABILITY": "avx2",  # without AVX512 everything computes in float32
            "TORCHINDUCTOR_CACHE_DIR": str(self.base / "kernels"),  # others may hold instructions of AVX512
            "CONSUMED": str(consumed),
            "PYTHONPATH": os.pathsep.join([str(self.base), os.environ.get("PYTHONPATH", "")]),
        }
        job.out.mkdir(exist_ok=True)
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            if stop_step is not None:
                patch.setenv("STOP_STEP", str(stop_step))
                patch.setenv("STOP_SIGNAL", str(int(stop_signal)))
            code = run_processes("recording_worker", str(job.write()), num_processes, lambda: None)
        steps = {}
        for file in job.out.glob("consumed-*"):
            for line in file.read_text().splitlines():
                step, indices = json.loads(line)
                steps.setdefault(step, []).extend(indices)
            file.unlink()
        return code, steps


@pytest.fixture(scope="session")
def jobs(tmp_path_factory):
    base = tmp_path_factory.mktemp("jobs")
    generator = np.random.default_rng(7)
    pieces = [generator.integers(3, 320, size=generator.integers(3, 24)) for _ in range(100)]
    parts = {"train": pack(pieces[:60], LENGTH).first(24), "validation": pack(pieces[60:], LENGTH).first(4)}
    for name, tokens in parts.items():
        tokens.save(base / f"{name}.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minitron_nas.models.loading.compute_dtype", lambda device: torch.float32)
        for kind, sizes in KINDS.items():
            teacher = tiny_checkpoint(base / kind / "teacher", "llama", seed=1, **sizes)
            tiny_checkpoint(base / kind / "student", "llama", seed=2, num_hidden_layers=2, **sizes)
            for name, tokens in parts.items():
                write_hidden_cache(load_for_inference(teacher), SignalPlace(base / kind / name, "teacher", tokens))
    return Jobs(base)


@pytest.fixture(scope="session")
def one_process(jobs):
    """Finished jobs of one process, by tiedness."""
    made = {tied: jobs.make(f"one-{tied}", tied=tied) for tied in (False, True)}
    for job in made.values():
        jobs.run_here(job)
    return made
