"""A teacher that is corrected while a student learns from it.

Sreenivas et al. 2024 (arXiv 2408.11796), figure 5: a student that is pruned from the original teacher, and
distilled from one whose correction goes on, ends where a student of the corrected teacher ends.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.distillation.signals.targets import HiddenTargets
from minitron_nas.distillation.signals.teacher import OnlineTeacher
from minitron_nas.distillation.training.checkpoints import STUDENT, last_whole, load_weights
from minitron_nas.errors import CheckpointError, PlanError
from minitron_nas.models.causal_lm import CausalLM
from minitron_nas.storage.lineage import read_lineage
from minitron_nas.text.tokens import PackedTokens

_LOOK_SECONDS = 30.0
_CHECKPOINTS = "checkpoints-"


@dataclass(frozen=True, slots=True)
class Correction:
    """The folders of a call of `correct`, under way or done.

    Attributes:
        out: Its `--out`, which is there when it is done.
    """

    out: Path

    @property
    def work(self) -> Path:
        """Where it works; gone when it is done."""
        return self.out.with_name(f"{self.out.name}.work")

    def checkpoints(self, fingerprint: str) -> Path:
        """Return where checkpoints lie.

        Args:
            fingerprint: Of the teacher that is corrected.
        """
        return self.work / f"{_CHECKPOINTS}{fingerprint}"

    def require_usable(self, settings: DistillationSettings) -> None:
        """Refuse what cannot be followed.

        Args:
            settings: Of the student's training.

        Raises:
            PlanError: If no correction has written here, or the teacher does not run beside the student.
        """
        if settings.teacher_signal != "online":
            raise PlanError(
                f"a teacher under correction speaks anew at every step, and distillation.teacher_signal="
                f"{settings.teacher_signal} keeps what it has said; set distillation.teacher_signal=online"
            )
        if not self.out.is_dir() and not self.work.is_dir():
            raise PlanError(
                f"nothing corrects a teacher in {self.out}: neither it nor {self.work} exists; start `minitron-nas "
                f"correct TEACHER --out {self.out}` first"
            )

    def require_of(self, fingerprint: str) -> None:
        """Refuse the correction of another teacher.

        Args:
            fingerprint: Of the teacher that speaks to the student.

        Raises:
            PlanError: If what is corrected, or has been, is not that teacher.
        """
        if self.out.is_dir():
            corrected = read_lineage(self.out).corrected
            found = [str(corrected.fingerprint)] if corrected is not None else []
        else:
            found = [folder.name.removeprefix(_CHECKPOINTS) for folder in self.work.glob(f"{_CHECKPOINTS}*")]
            if not found:
                return  # it still reads its text
        if fingerprint not in found:
            what = f"the correction of another teacher ({', '.join(found)})" if found else "no corrected teacher"
            raise PlanError(
                f"{self.out} holds {what}, and the student learns from {fingerprint}; name the --out of a `correct` of "
                "the same TEACHER"
            )

    def newest(self, fingerprint: str) -> Path | None:
        """Return the folder of the newest weights: `out` when it is done, else a checkpoint, or None.

        Of LoRA there are none before it is done.

        Args:
            fingerprint: Of the teacher that is corrected.
        """
        if self.out.is_dir():
            return self.out
        return last_whole(self.checkpoints(fingerprint) / "full")


class FollowingTeacher(OnlineTeacher):
    """The teacher beside the student, always with the newest weights that its correction has saved."""

    def __init__(self, model: CausalLM, fingerprint: str, correction: Correction) -> None:
        """Begin with the teacher as it is.

        Args:
            model: A causal LM whose parameters change as the correction goes on.
            fingerprint: Of the teacher.
            correction: Of that teacher.
        """
        super().__init__(model)
        self._fingerprint, self._correction = fingerprint, correction
        self._taken: Path | None = None
        self._looked_at = -_LOOK_SECONDS

    def targets(self, indices: Tensor, tokens: PackedTokens) -> HiddenTargets:
        """Look for newer weights now and then, and run the teacher on the sequences.

        Args:
            indices: (batch,), positions of the sequences, which the teacher need not know.
            tokens: The sequences.

        Raises:
            CheckpointError: If newer weights are not what was written.
        """
        if time.monotonic() - self._looked_at >= _LOOK_SECONDS:
            self._looked_at = time.monotonic()
            self._take_newest()
        return super().targets(indices, tokens)

    def _take_newest(self) -> None:
        newest = self._correction.newest(self._fingerprint)
        if newest is None or newest == self._taken:
            return
        try:
            _take(newest, self.model, is_checkpoint=newest != self._correction.out)
        except CheckpointError:
            if self._correction.newest(self._fingerprint) == newest:
                raise
            return  # a newer checkpoint has just replaced it, and the next look finds that one
        self._taken = newest


def _take(folder: Path, model: CausalLM, is_checkpoint: bool) -> None:
    """Set a model's parameters to those of a checkpoint, or of a stock folder."""
    if is_checkpoint:
        load_weights(folder, nn.ModuleDict({STUDENT: model}))  # a correction trains it as a student
        return
    from transformers import AutoModelForCausalLM  # deferred: importing model classes takes seconds

    try:  # on the CPU, because a device that holds the teacher and the student may not hold another teacher
        corrected = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype, trust_remote_code=False)
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{folder} cannot be read ({reason}); delete it and correct the teacher again") from None
    with torch.no_grad():
        for own, other in zip(model.parameters(), corrected.parameters(), strict=True):
            own.copy_(other)
