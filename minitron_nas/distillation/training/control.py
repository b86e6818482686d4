"""What happens after a step: validation, checkpoints, and when a training stops early."""

import math
import time
from collections.abc import Sized
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.distillation.training.together import any_process
from minitron_nas.distillation.training.writer import CheckpointWriter
from minitron_nas.errors import MinitronNasError, NonFiniteLossError
from minitron_nas.progress import Progress

_WATCHED = {"loss": "distillation loss", "grad_norm": "norm of the gradient"}


class Control(TrainerCallback):
    """Validates at even distances, checkpoints by the clock, stops at a step, at NaN and when asked to.

    Attributes:
        preempted: Whether the training stopped with a checkpoint because it was asked to.
    """

    def __init__(
        self,
        last_step: int,
        num_steps: int,
        settings: DistillationSettings,
        writer: CheckpointWriter,
        asked_to_stop: Sized,
        progress: Progress,
    ) -> None:
        """Remember what decides.

        Args:
            last_step: Where this call stops.
            num_steps: Of the whole schedule.
            settings: Number of validations, time between checkpoints.
            writer: Writes checkpoints.
            asked_to_stop: Not empty when the machine is about to be taken away.
            progress: Told about optimizer steps, in the first process.
        """
        self.preempted = False
        self._last_step, self._progress = last_step, progress
        self._goes_on_later = last_step < num_steps
        self._evaluation_steps = math.ceil(num_steps / settings.num_evaluations)
        self._interval_seconds = settings.checkpoint_minutes * 60
        self._section = settings.section
        self._writer, self._asked_to_stop = writer, asked_to_stop
        self._saved_at = time.monotonic()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let what the model draws depend on seed, step and process only, so that a resumed run draws the same."""
        draw = np.random.SeedSequence((args.seed, state.global_step, args.process_index))
        torch.manual_seed(int(draw.generate_state(1)[0]))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Decide what happens after this optimizer step."""
        if state.is_world_process_zero:
            self._progress(state.global_step, self._last_step)
        at_log = state.global_step % state.logging_steps == 0
        due = time.monotonic() - self._saved_at >= self._interval_seconds
        asked, due, writing = any_process(args.device, len(self._asked_to_stop) > 0, due, self._writer.is_writing)
        if not writing:
            self._writer.go_on()
        control.should_evaluate = state.global_step % self._evaluation_steps == 0
        at_end = state.global_step >= self._last_step
        if at_end or asked:
            self.preempted = asked
            control.should_training_stop = control.should_log = True
            control.should_evaluate = control.should_evaluate or at_end
            control.should_save = asked or self._goes_on_later
        elif at_log and due:
            control.should_save = True
            self._saved_at = time.monotonic()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop when the loss or its gradient is no number any more; this comes before a checkpoint."""
        logs = kwargs["logs"]
        for name, words in _WATCHED.items():
            if not math.isfinite(logs.get(name, 0.0)):
                with suppress(MinitronNasError):  # all processes come here
                    self._writer.finish()
                good = self._writer.last_whole()
                raise NonFiniteLossError(
                    f"the {words} is {logs[name]} at step {state.global_step} (learning rate "
                    f"{logs['learning_rate']:.3g}); lower {self._section}.learning_rate and begin a new run; "
                    + (
                        f"the last good checkpoint is {good}"
                        if good is not None
                        else "there is no checkpoint from before"
                    )
                )
