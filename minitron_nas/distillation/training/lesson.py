"""`Lesson`: what a student is taught, in which steps; it decides the weights of every step."""

from dataclasses import asdict, dataclass

from minitron_nas.distillation.settings import HOW_TO_TRAIN, DistillationSettings
from minitron_nas.distillation.signals.teacher import TeacherSignal
from minitron_nas.distillation.training.curve import Judge
from minitron_nas.distillation.training.schedule import Schedule
from minitron_nas.storage.ledger import fingerprint
from minitron_nas.text.tokens import PackedTokens

_NOT_DECIDING = {
    *HOW_TO_TRAIN,
    "num_evaluations",
    *("teacher_signal", "top_k"),  # hidden states say what the teacher says; how many logits count stands beside this
    *("batch_sequences", "tokens"),  # the schedule says these
}


@dataclass(frozen=True, slots=True)
class Stream:
    """A token stream with the teacher's signal over it.

    Attributes:
        tokens: The stream.
        signal: The teacher: over the whole vocabulary for validation; None where no loss asks it.
    """

    tokens: PackedTokens
    signal: TeacherSignal | None


@dataclass(frozen=True, slots=True)
class Lesson:
    """A training but for the student.

    Attributes:
        train: Sequences in the order of training; repeated if the schedule is longer.
        validation: Held-out sequences.
        settings: Learning rate, loss and so on.
        schedule: Steps and batch.
        seed: Seeds what the model may draw (dropout).
        judge: What validations are compared by.
    """

    train: Stream
    validation: Stream
    settings: DistillationSettings
    schedule: Schedule
    seed: int
    judge: Judge = "kl_nats"

    @property
    def identity(self) -> str:
        """A hash of what decides the weights of every step; the first batch stands for the tokens."""
        top_k = self.settings.cached_top_k or self.settings.top_k
        return fingerprint(
            {
                "tokens": self.train.tokens.first(self.schedule.batch_sequences).fingerprint,
                "settings": self.settings.model_dump(exclude=_NOT_DECIDING),
                "top_k": top_k and f"{top_k} and the rest",
                "schedule": asdict(self.schedule),
                "seed": self.seed,
                "best": self.judge,
            }
        )
