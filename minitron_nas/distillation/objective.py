"""A student and its loss as one module."""

from typing import Any

import torch
from torch import Tensor, nn

from minitron_nas.distillation.head import OutputHead
from minitron_nas.distillation.losses import distillation_loss
from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.distillation.signals import final_hidden


class Objective(nn.Module):
    """Computes the distillation loss inside one forward pass.

    DDP averages the gradients of what a forward pass has used, and ZeRO-3 gathers parameters for the
    forward and the backward pass of the module that reads them. The loss reads the output head beside
    the student's own forward pass; here both happen in one module, so that every engine sees both.
    """

    def __init__(self, student: Any, settings: DistillationSettings) -> None:
        """Take a causal LM, which stays usable on its own."""
        super().__init__()
        self.student = student
        self.config = student.config  # engines look for the sizes of buffers here
        self._lm_loss_weight = settings.lm_loss_weight

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        next_tokens: Tensor,
        teacher_hidden: Tensor,
        teacher_head: OutputHead,
    ) -> Tensor:
        """Return the loss of a micro-batch.

        Args:
            input_ids: (batch, seq_len).
            position_ids: (batch, seq_len), restarting at each document.
            next_tokens: (batch, seq_len), or `IGNORE_LABEL`.
            teacher_hidden: (batch, seq_len, teacher_hidden_size).
            teacher_head: The teacher's output head.
        """
        hidden = final_hidden(self.student, input_ids, position_ids)
        with torch.autocast(hidden.device.type, enabled=False):  # the loss chooses its own number formats
            return distillation_loss(
                hidden.flatten(0, 1),
                OutputHead.of(self.student),
                next_tokens.flatten(),
                teacher_hidden.flatten(0, 1),
                teacher_head,
                self._lm_loss_weight,
            )
