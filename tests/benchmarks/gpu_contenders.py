"""The ways to distil that `gpu.py` compares: random weights, the same start, the same batches, the same optimizer.

Forward KL over the whole vocabulary, AdamW at one rate on float32 weights, products in bfloat16 where the device has
them. So all contenders minimise the same numbers, and their losses agree at every step but for rounding.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from contenders import LEARNING_RATE, Distiller, Ticker, ours, resident_peak_bytes, trainer_arguments, whole_kl
from gpu_device import DEVICE, DTYPE, moment, seconds_between
from gpu_shapes import Config, Scale, Student
from torch.utils.data import SequentialSampler
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments

from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.distillation.signals.folder import SignalPlace
from minitron_nas.distillation.signals.hidden_cache import HiddenCache
from minitron_nas.distillation.signals.targets import HiddenTargets, TopKTargets
from minitron_nas.distillation.signals.teacher import OnlineTeacher, TeacherSignal
from minitron_nas.models.causal_lm import CausalLM
from minitron_nas.text.tokens import PackedTokens

WARM_STEPS, STEPS = 1, 3
"""The first step loads libraries and compiles; medians are over the others."""

FINGERPRINT = "random weights"
"""Of the teacher, by which its cache knows it."""

BETA_2 = DistillationSettings().adam_beta2


class EnoughError(Exception):
    """All steps are measured."""


class Clock:
    """Takes the time of optimizer steps and of waiting for data, without holding the device up.

    On a GPU a moment is when it has done all that it was given before, so that the seconds between two of them are the
    device's own. What it waits for data is what passes between its last work before the data was asked for and the
    data's arrival in its memory: a fetch that it does not notice, because it is still at work, counts nothing. A CPU
    notices every fetch.
    """

    def __init__(self) -> None:
        self._steps: list[Any] = []
        self._waits: list[list[tuple[Any, Any]]] = []
        self._losses: list[list[torch.Tensor]] = []

    def tick(self, *_: object) -> None:
        """Begin, or end an optimizer step and begin the next.

        Raises:
            EnoughError: After the last.
        """
        self._steps.append(moment())
        if len(self._steps) > WARM_STEPS + STEPS:
            raise EnoughError
        self._waits.append([])
        self._losses.append([])

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Take the time of a fetch."""
        begin = moment()
        yield
        self._waits[-1].append((begin, moment()))

    def heard(self, loss: torch.Tensor) -> None:
        """Note a micro-batch's part of the loss of its step."""
        self._losses[-1].append(loss.detach())

    def figures(self) -> dict[str, Any]:
        """Return seconds of the measured steps and of waiting in them, the loss of every step, and peak memory."""
        if DEVICE.type == "cuda":
            torch.cuda.synchronize(DEVICE)
        steps = [seconds_between(*both) for both in pairwise(self._steps)]
        waits = [sum(seconds_between(*both) for both in each) for each in self._waits]
        losses = [float(sum(parts)) for parts in self._losses]
        return {
            "step_seconds": steps[WARM_STEPS:],
            "waiting_seconds": waits[WARM_STEPS:],
            "losses_nats": losses,
            "peak_bytes": peak_bytes(),
        }


@dataclass(frozen=True)
class Setup:
    """What a contender is given.

    Attributes:
        scale: Teacher, students and batches.
        name: The student's.
        folder: Where the teacher's cache lies, and what a loop writes goes.
    """

    scale: Scale
    name: str
    folder: Path

    @property
    def shape(self) -> Student:
        return self.scale.students[self.name]

    @property
    def num_micro_batches(self) -> int:
        return self.scale.batch_sequences // self.shape.micro_batch_sequences

    def student(self) -> CausalLM:
        """Return the student, the same for every contender."""
        return random_model(self.scale.config(self.name), torch.float32, 0)

    def recomputing_student(self) -> CausalLM:
        """Return the same for loops that know no setting for it."""
        student = self.student()
        if self.shape.gradient_checkpointing:
            # transformers 5.20 knows it under the second name, which later versions deprecate.
            enable = getattr(student, "activation_checkpointing_enable", None) or student.gradient_checkpointing_enable
            enable()
        return student

    def text(self) -> PackedTokens:
        return random_text(self.scale, (WARM_STEPS + STEPS) * self.scale.batch_sequences, 0)


def random_text(scale: Scale, num_sequences: int, seed: int) -> PackedTokens:
    """Return random tokens of documents as long as a sequence, so that every contender attends to the same."""
    shape, generator = (num_sequences, scale.sequence_length), torch.Generator().manual_seed(seed)
    ids = torch.randint(0, scale.teacher["vocab_size"], shape, generator=generator)
    return PackedTokens(ids, torch.arange(scale.sequence_length).expand_as(ids))


def random_model(config: Config, dtype: torch.dtype, seed: int) -> CausalLM:
    """Build a model on the device; the same config, type and seed give the same weights."""
    torch.manual_seed(seed)
    with DEVICE:
        model: CausalLM = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=dtype)
    return model


def random_teacher(scale: Scale) -> CausalLM:
    """Return the teacher in the type that the device computes with."""
    return random_model(scale.teacher, DTYPE, 1).eval()


def plain_loop(setup: Setup, clock: Clock) -> None:
    """Whole logits of both models, a micro-batch at a time, in a loop without a trainer."""
    student, teacher = setup.recomputing_student(), random_teacher(setup.scale)
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=LEARNING_RATE, betas=(0.9, BETA_2), weight_decay=0, fused=True
    )
    clock.tick()
    for batch in setup.text().input_ids.split(setup.scale.batch_sequences):
        for part in batch.split(setup.shape.micro_batch_sequences):
            with clock.waiting():
                ids = part.to(DEVICE)
            with torch.autocast(DEVICE.type, dtype=DTYPE, enabled=DTYPE is torch.bfloat16):
                with torch.no_grad():
                    target = teacher(input_ids=ids, use_cache=False).logits
                logits = student(input_ids=ids, use_cache=False).logits
            loss = whole_kl(logits, target) / setup.num_micro_batches
            loss.backward()
            clock.heard(loss)
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.tick()


class InOrder(Distiller):
    """Trainer with whole logits, which takes the sequences as they come."""

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def trainer(setup: Setup, clock: Clock) -> None:
    """Hugging Face's Trainer with a `compute_loss` over whole logits."""
    changes = {
        "per_device_train_batch_size": setup.shape.micro_batch_sequences,
        "gradient_accumulation_steps": setup.num_micro_batches,
        "bf16": DTYPE is torch.bfloat16,
        "use_cpu": DEVICE.type == "cpu",
        "dataloader_pin_memory": DEVICE.type == "cuda",
        "lr_scheduler_type": "constant",
        "adam_beta2": BETA_2,
    }
    arguments = TrainingArguments(**{**trainer_arguments(setup.folder / "trainer"), **changes})
    rows = [{"input_ids": ids} for ids in setup.text().input_ids]
    student, teacher = setup.recomputing_student(), random_teacher(setup.scale)
    loop = InOrder(student, teacher, arguments, train_dataset=rows, callbacks=[Ticker(clock.tick)])
    clock.tick()
    loop.train()


def our_loop(setup: Setup, clock: Clock, signal: TeacherSignal, kind: str, **others: Any) -> None:
    """Ours, at a rate that stays the same."""
    settings = {
        "batch_sequences": setup.scale.batch_sequences,
        "micro_batch_sequences": setup.shape.micro_batch_sequences,
        "gradient_checkpointing": setup.shape.gradient_checkpointing,
        "warmup_fraction": 0,
        "min_learning_rate_fraction": 1,
        "teacher_signal": kind,
        **others,
    }
    student, text = setup.student(), setup.text()
    clock.tick()
    ours(student, text, signal, setup.folder / "ours", clock.tick, **settings)


def online(setup: Setup, clock: Clock) -> None:
    """Ours beside the teacher."""
    our_loop(setup, clock, OnlineTeacher(random_teacher(setup.scale)), "online")


def cached(setup: Setup, clock: Clock, **others: Any) -> None:
    """Ours with the teacher's cache, which comes from the disk, not out of the system's memory of it."""
    path = setup.folder / "cache"
    forget_files(path)
    cache = WatchedSignal(HiddenCache(SignalPlace(path, FINGERPRINT, setup.text())), clock)
    our_loop(setup, clock, cache, "hidden_cache", **others)


class WatchedSignal:
    """A cache whose reading counts as waiting for data."""

    def __init__(self, signal: TeacherSignal, clock: Clock) -> None:
        self._signal, self._clock = signal, clock

    def targets(self, indices: torch.Tensor, tokens: PackedTokens) -> HiddenTargets | TopKTargets:
        with self._clock.waiting():
            return self._signal.targets(indices, tokens)


CONTENDERS = {
    "plain loop": plain_loop,
    "Trainer": trainer,
    "ours, online": online,
    "ours, cached": cached,
    "ours, cached, layers as written": partial(cached, torch_compile=False),
}


def contend(setup: Setup, name: str) -> dict[str, Any]:
    """Run a contender until its steps are measured."""
    clock = Clock()
    with suppress(EnoughError), watched_trainers(clock):
        CONTENDERS[name](setup, clock)
    return clock.figures()


@contextmanager
def watched_trainers(clock: Clock) -> Iterator[None]:
    """Take the time in which any Trainer, ours too, fetches batches, and note its losses."""
    fetch, learn = Trainer.get_batch_samples, Trainer.training_step

    def get_batch_samples(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        with clock.waiting():
            return fetch(self, *args, **kwargs)

    def training_step(self: Trainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = learn(self, *args, **kwargs)
        clock.heard(loss)
        return loss

    with patch.multiple(Trainer, get_batch_samples=get_batch_samples, training_step=training_step):
        yield


def forget_files(folder: Path) -> None:
    """Have the files of a folder read from the disk again."""
    for file in folder.iterdir():
        with file.open("rb") as handle:
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def peak_bytes() -> int:
    """The most memory that tensors took on the device; of a CPU the resident set, Python and libraries in it."""
    return torch.cuda.max_memory_allocated(DEVICE) if DEVICE.type == "cuda" else resident_peak_bytes()
