"""The weights of a training's best validation, kept beside its checkpoints.

    best-STEP/model.safetensors, best-STEP/model.checksums.json

Beside the file that the weights go to in the end, `best.json` says which step it is, for whoever looks on.

The untrained student counts, so that no training leaves a student worse than it was. A checkpoint's curve names the
best validation before it, whose weights stay until the next checkpoint is whole: a training that goes on from there
finds them, whatever came after.
"""

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from minitron_nas.distillation.training.checkpoints import STUDENT, WEIGHTS, copy_weights, save_weights
from minitron_nas.distillation.training.curve import Judge, is_better
from minitron_nas.distillation.training.together import said_by_first
from minitron_nas.models.causal_lm import CausalLM
from minitron_nas.storage.sealed import write_sealed

BEST = "best.json"


class BestWeights:
    """Keeps the best weights of one training; all processes must call its methods."""

    def __init__(
        self,
        folder: Path,
        file: Path,
        last_step: int,
        judge: Judge,
        history: Iterable[Mapping[str, Any]],
        writes: bool,
    ) -> None:
        """Go on from what a checkpoint's curve says, and forget what lies there of anything else.

        Args:
            folder: Of the checkpoints.
            file: A safetensors file, which gets the weights in the end.
            last_step: Where the training ends.
            judge: What validations are compared by.
            history: What Trainer had logged; empty at the beginning.
            writes: Whether this process writes; one does.
        """
        self._folder, self._file, self._last_step = folder, file, last_step
        self._judge, self._writes = judge, writes
        self._step: int | None = None
        self._value: float | None = None
        for entry in history:
            value = entry.get(f"eval_{judge}")
            if value is not None and is_better(value, self._value):
                self._step, self._value = entry["step"], value
        self._tell()
        self.begin_checkpoint()
        self.stand()

    def judge(self, step: int, metrics: Mapping[str, float], student: CausalLM) -> None:
        """Look at a validation, and save the weights if none was better and training goes on.

        Args:
            step: Optimizer steps so far.
            metrics: What was measured, by Trainer's names.
            student: What was validated.
        """
        value = metrics[f"eval_{self._judge}"]
        # All processes save together, and no device need round as another does: the first decides.
        if not said_by_first(next(student.parameters()).device, is_better(value, self._value)):
            return
        self._step, self._value = step, value
        self._tell()
        if step < self._last_step:
            save_weights(self._place(step) / WEIGHTS, nn.ModuleDict({STUDENT: student}), self._writes)
            self._forget_all_but(step, self._of_checkpoint, self._of_next)

    def begin_checkpoint(self) -> None:
        """A checkpoint is being written whose curve names these weights: keep them beside those of the one before."""
        self._of_next = self._step

    def stand(self) -> None:
        """That checkpoint is whole: forget the weights of the one before."""
        self._of_checkpoint = self._of_next
        self._forget_all_but(self._step, self._of_next)

    def export(self, save_last: Callable[[Path], None]) -> None:
        """Write the weights to the file.

        Args:
            save_last: Writes those that the training ended with to a file.

        Raises:
            CheckpointError: If the best are others, and not what was written.
        """
        if self._step in (None, self._last_step):
            save_last(self._file)
        elif self._writes:
            copy_weights(self._folder / f"best-{self._step}", STUDENT, self._file)

    def _tell(self) -> None:
        if self._writes and self._step is not None:
            write_sealed(self._file.with_name(BEST), {"step": self._step, "value": self._value})

    def _place(self, step: int) -> Path:
        return self._folder / f"best-{step}"

    def _forget_all_but(self, *steps: int | None) -> None:
        kept = [self._place(step) for step in steps if step is not None]
        for place in self._folder.glob("best-*") if self._writes else ():
            if place not in kept:
                shutil.rmtree(place, ignore_errors=True)
