"""`Targets`: what the teacher says over the tokens of a batch."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from minitron_nas.distillation.head import OutputHead


class Targets(Protocol):
    """What the teacher says over the tokens of a batch, to be had a chunk of tokens at a time."""

    def logits(self, rows: slice) -> Tensor:
        """Return (num_rows, teacher_vocab_size), float32 or wider.

        Args:
            rows: Of the tokens.
        """


@dataclass(frozen=True, slots=True)
class HiddenTargets:
    """The teacher's full distribution, one matrix product away.

    Attributes:
        hidden: (num_tokens, teacher_hidden_size), its final hidden states.
        head: Its output head.
    """

    hidden: Tensor
    head: OutputHead

    def logits(self, rows: slice) -> Tensor:
        """Return (num_rows, teacher_vocab_size), float32 or wider.

        Args:
            rows: Of the tokens.
        """
        return self.head.logits(self.hidden[rows])


@dataclass(frozen=True, slots=True)
class TopKTargets:
    """The teacher's most probable tokens.

    Attributes:
        log_probs: (num_tokens, k), float32, under the teacher's full softmax, descending.
        indices: (num_tokens, k), int64, the tokens.
    """

    log_probs: Tensor
    indices: Tensor
