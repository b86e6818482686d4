"""Who writes a training's checkpoints, and when: every process its part, while training goes on.

A process copies its part to main memory, which it keeps for the next, and a thread writes the copy. Where memory does
not hold it, or the part is small, or training ends there, the part is written at once, beside the other processes. What
is written in any process is looked at after every step, in all processes alike; when nothing is, the first process
marks the checkpoint as whole.
"""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

from torch import nn
from torch.optim import Optimizer
from transformers import TrainingArguments

from minitron_nas.distillation.training.checkpoints import OwnState, last_whole, mark_whole
from minitron_nas.distillation.training.together import any_process, first_words
from minitron_nas.errors import MinitronNasError, TrainingProcessError, from_plain, to_plain
from minitron_nas.execution.deepspeed import ZeroOptimizer
from minitron_nas.memory import available_memory
from minitron_nas.storage.machine import machine_error

SMALL_BYTES = 64 << 20
"""A part that is written in a moment is not worth a copy, and a checkpoint that is whole at once."""

_MEMORY_FRACTION = 0.5
"""Of the free memory that copies may take; what is written passes through the other half."""


class CheckpointWriter:
    """Writes checkpoints of one training, one at a time; all processes must call its methods in the same order."""

    def __init__(
        self,
        folder: Path,
        identity: str,
        arguments: TrainingArguments,
        on_whole: Callable[[], None],
    ) -> None:
        """Remember what is written where.

        Args:
            folder: Of the checkpoints.
            identity: A hash of what is being trained, on what and how.
            arguments: Device, number and rank of the processes.
            on_whole: Called in every process when a checkpoint is whole.
        """
        self._folder, self._identity, self._on_whole = folder, identity, on_whole
        self._device = arguments.device
        self._rank, self._num_processes = arguments.process_index, arguments.world_size
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._checkpoint: Path | None = None
        self._work: Future[None] | None = None
        self._marks = False
        self._copy: OwnState | None = None

    @property
    def is_writing(self) -> bool:
        """Whether this process still writes."""
        return self._work is not None and not self._work.done()

    def last_whole(self) -> Path | None:
        """Return this training's latest whole checkpoint, of this call or of one before, or None."""
        return last_whole(self._folder, self._identity)

    def save(
        self,
        step: int,
        module: nn.Module,
        optimizer: Optimizer | ZeroOptimizer,
        write_curve: Callable[[Path], None],
        at_once: bool,
    ) -> None:
        """Begin a checkpoint, when the one before is whole.

        Args:
            step: Optimizer steps so far.
            module: What is trained.
            optimizer: AdamW, or the optimizer that ZeRO wraps around it.
            write_curve: Writes the curve so far into the checkpoint's folder.
            at_once: Whether it is to be whole when this returns.

        Raises:
            MachineError: If a process could not write this checkpoint, as far as it is written here, or the one before.
        """
        self.finish()
        checkpoint = self._folder / f"checkpoint-{step}"
        self._agree(_done(partial(self._begin, checkpoint, write_curve)))
        state = OwnState.of(module, optimizer, self._rank, self._num_processes)
        at_once = at_once or not any_process(self._device, state.num_bytes > SMALL_BYTES)[0]
        self._checkpoint, self._marks = checkpoint, False
        if at_once or not (self._copy is not None or _memory_holds(state)):
            self._work = _done(partial(state.save, checkpoint))
        else:
            self._copy = state.copied(self._copy)
            self._work = self._thread.submit(self._copy.save, checkpoint)
        if at_once:
            self.finish()

    def go_on(self) -> None:
        """Take the next step, if a checkpoint is being written, when no process writes any more.

        Raises:
            MachineError: If a process could not write its part.
        """
        if self._checkpoint is None or self._work is None:
            return
        work, self._work = self._work, None
        self._agree(work)
        if not self._marks:
            self._marks = True
            if self._rank == 0:
                self._work = self._thread.submit(mark_whole, self._checkpoint, self._identity)
            else:
                self._work = _done(lambda: None)
        else:
            self._checkpoint = None
            self._on_whole()

    def finish(self) -> None:
        """Wait until the checkpoint that is being written is whole, if there is one.

        Raises:
            MachineError: If a process could not write its part.
        """
        while self._work is not None:
            self.go_on()

    def close(self) -> None:
        """Write no more; what this process has begun alone is brought to its end, whatever has ended the training."""
        if self._num_processes == 1:
            with suppress(Exception):
                self.finish()
        self._thread.shutdown()

    def _begin(self, checkpoint: Path, write_curve: Callable[[Path], None]) -> None:
        """Leave nothing in the folder that was half written before, maybe by another number of processes."""
        if self._rank == 0:
            shutil.rmtree(checkpoint, ignore_errors=True)
            checkpoint.mkdir(parents=True)
            write_curve(checkpoint)

    def _agree(self, work: "Future[None]") -> None:
        """Wait for what every process does, and raise in all of them what one could not do."""
        error = work.exception()
        if not any_process(self._device, error is not None)[0]:
            return
        told = None
        if error is not None:
            known = error if isinstance(error, MinitronNasError) else machine_error(error, self._folder)
            told = known or TrainingProcessError(f"a process could not write its part of a checkpoint: {error!r}")
        first = first_words(None if told is None else to_plain(told))
        raise from_plain(first) from error


def _done(function: Callable[[], None]) -> "Future[None]":
    """Call a function here, and return what has become of it."""
    work: Future[None] = Future()
    try:
        function()
    except Exception as error:  # noqa: BLE001 - it is raised where all processes know of it
        work.set_exception(error)
    else:
        work.set_result(None)
    return work


def _memory_holds(state: OwnState) -> bool:
    """Whether there is room for a copy beside those of the other processes of this machine."""
    num_copies = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return num_copies * state.num_bytes <= _MEMORY_FRACTION * available_memory()
