"""How many steps a distillation takes, and of how many sequences."""

from dataclasses import dataclass
from math import ceil, cos, pi
from typing import Self

from minitron_nas.distillation.settings import DistillationSettings

_MAX_BATCH_SEQUENCES = 1152
_WANTED_STEPS = 200


@dataclass(frozen=True, slots=True)
class Schedule:
    """Steps and batch of one distillation.

    Attributes:
        num_steps: Optimizer steps of the whole learning-rate schedule.
        batch_sequences: Sequences of one optimizer step, over all processes.
        sequence_length: Tokens of a sequence.
    """

    num_steps: int
    batch_sequences: int
    sequence_length: int

    @classmethod
    def resolve(cls, settings: DistillationSettings, tokens: int, sequence_length: int) -> Self:
        """Fill in what the settings leave open.

        A batch that they do not name gives about 200 steps and divides into their micro-batches, a larger one over
        8 or 64 processes too. What does not fill a batch at the end is left out, so that no token is seen twice.

        Args:
            settings: May name the batch.
            tokens: KD tokens of the whole schedule; of less than a batch, one step is made.
            sequence_length: Tokens of a sequence.
        """
        wanted = min(max(tokens // (sequence_length * _WANTED_STEPS), 1), _MAX_BATCH_SEQUENCES)
        units = (processes * settings.micro_batch_sequences for processes in (64, 8, 1))
        unit = next((unit for unit in units if wanted >= 2 * unit), min(settings.micro_batch_sequences, wanted))
        batch = settings.batch_sequences or wanted // unit * unit
        return cls(max(tokens // (batch * sequence_length), 1), batch, sequence_length)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step."""
        return self.batch_sequences * self.sequence_length

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole schedule."""
        return self.num_steps * self.tokens_per_step

    def steps_for(self, tokens: int) -> int:
        """Return the steps after which at most `tokens` were seen, within the schedule and at least one.

        Args:
            tokens: How many may be seen.
        """
        return min(max(tokens // self.tokens_per_step, 1), self.num_steps)

    def learning_rate_factor(self, step: int, settings: DistillationSettings) -> float:
        """Return the learning rate of an optimizer step as a fraction of the peak.

        It rises linearly over the warm-up steps, the first of which already learns, and then falls
        along half a cosine to the settings' end.

        Args:
            step: From 0.
            settings: Warm-up and end.
        """
        warmup = ceil(settings.warmup_fraction * self.num_steps)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = (step - warmup) / max(self.num_steps - warmup, 1)
        end = settings.min_learning_rate_fraction
        return end + (1 - end) * (1 + cos(pi * min(progress, 1.0))) / 2
