"""Targets: what the teacher says over the tokens of a batch."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from minitron_nas.distillation.head import OutputHead


class Targets(Protocol):
    """What the teacher says over the tokens of a batch, to be had a chunk of tokens at a time."""

    def logits(self, rows: slice) -> Tensor:
        """Return (num_rows, teacher_vocab_size), float32 or wider."""


@dataclass(frozen=True, slots=True)
class HiddenTargets:
    """The full distribution, as final hidden states and the head that turns them into logits.

    Attributes:
        hidden: (num_tokens, teacher_hidden_size), after the final norm.
        head: The teacher's output head, on the same device.
    """

    hidden: Tensor
    head: OutputHead

    def logits(self, rows: slice) -> Tensor:
        """Return (num_rows, teacher_vocab_size), float32 or wider."""
        return self.head.logits(self.hidden[rows])


@dataclass(frozen=True, slots=True)
class TopKTargets:
    """The K most probable next tokens of each position; the rest of the distribution is not known.

    Attributes:
        log_probs: (num_tokens, k), float32: log-probabilities under the teacher's full softmax, descending.
        indices: (num_tokens, k), int64: which tokens they are of.
    """

    log_probs: Tensor
    indices: Tensor
