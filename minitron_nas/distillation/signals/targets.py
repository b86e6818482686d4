"""What the teacher says over the tokens of a batch, to be had a chunk of tokens at a time."""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from minitron_nas.distillation.signals.head import OutputHead


@dataclass(frozen=True, slots=True)
class HiddenTargets:
    """The teacher's full distribution, one matrix product away.

    Attributes:
        hidden: (num_tokens, teacher_hidden_size), its final hidden states.
        head: Its output head.
    """

    hidden: Tensor
    head: OutputHead

    @property
    def vocab_size(self) -> int:
        """Of the teacher."""
        return self.head.vocab_size

    def of(self, rows: slice) -> Self:
        """Return the targets of some tokens.

        Args:
            rows: Which of num_tokens.
        """
        return type(self)(self.hidden[rows], self.head)

    def logits(self) -> Tensor:
        """Return (num_tokens, teacher_vocab_size), float32 or wider."""
        return self.head.logits(self.hidden)


@dataclass(frozen=True, slots=True)
class TopKTargets:
    """The teacher's most probable tokens, and all others as one.

    Attributes:
        log_probs: (num_tokens, k), float32, under the teacher's full softmax, descending.
        rest: (num_tokens,), float32, the logarithm of the probability that is left for all other tokens together.
        indices: (num_tokens, k), int64, the tokens.
        vocab_size: Of the teacher.
    """

    log_probs: Tensor
    rest: Tensor
    indices: Tensor
    vocab_size: int

    def of(self, rows: slice) -> Self:
        """Return the targets of some tokens.

        Args:
            rows: Which of num_tokens.
        """
        return type(self)(self.log_probs[rows], self.rest[rows], self.indices[rows], self.vocab_size)
