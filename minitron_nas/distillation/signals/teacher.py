"""Teacher signals: what a student learns from, whether the teacher speaks now or has spoken before.

The teacher's logits are one matrix product away from its final hidden states, so a cache of those
is as good as the teacher, and N students pay for it once.
"""

from typing import Protocol

import torch
from torch import Tensor

from minitron_nas.distillation.signals.head import OutputHead
from minitron_nas.distillation.signals.targets import HiddenTargets, TopKTargets
from minitron_nas.models.borders import border_masks
from minitron_nas.models.causal_lm import CausalLM, decoder_of
from minitron_nas.text.tokens import PackedTokens


class TeacherSignal(Protocol):
    """What a student learns from: the teacher itself, or a cache of what it said."""

    def targets(self, indices: Tensor, tokens: PackedTokens) -> HiddenTargets | TopKTargets:
        """Return what the teacher says over sequences of the stream, batch and sequence flattened.

        Args:
            indices: (batch,), positions of the sequences in the token stream; on the CPU.
            tokens: The sequences themselves.
        """


def final_hidden(model: CausalLM, input_ids: Tensor, position_ids: Tensor) -> Tensor:
    """Run a causal LM up to its output head.

    Args:
        model: A transformers causal LM.
        input_ids: (batch, seq_len).
        position_ids: (batch, seq_len), restarting at each document.

    Returns:
        (batch, seq_len, hidden_size), after the final norm.
    """
    masks = border_masks(model, position_ids)
    output = decoder_of(model)(input_ids=input_ids, position_ids=position_ids, use_cache=False, **masks)
    hidden: Tensor = output.last_hidden_state
    return hidden


class OnlineTeacher:
    """The teacher itself, run beside the student."""

    def __init__(self, model: CausalLM) -> None:
        """Wrap a teacher.

        Args:
            model: Stays as it is, but is set to evaluate.
        """
        self._model: CausalLM = model.eval()

    @property
    def model(self) -> CausalLM:
        """The teacher."""
        return self._model

    @property
    def head(self) -> OutputHead:
        """The teacher's output head."""
        return OutputHead.of(self._model).detached()

    @torch.no_grad()
    def targets(self, indices: Tensor, tokens: PackedTokens) -> HiddenTargets:
        """Run the teacher on the sequences.

        Args:
            indices: (batch,), positions of the sequences, which the teacher need not know.
            tokens: The sequences.
        """
        head = self.head
        device = head.weight.device
        states = final_hidden(self._model, tokens.input_ids.to(device), tokens.position_ids.to(device))
        return HiddenTargets(states.flatten(0, 1), head)
